"""Random kernels in a file: one machine writes inputs and outputs, another computes and compares.

    python kernel_exchange.py write FILE
    python kernel_exchange.py compare FILE BACKEND

The inputs travel too, for a random normal number may come from another libm there.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import edgellama_kernels
import numpy as np
from edgellama_kernels import (
    CacheKind,
    HiddenRows,
    Kernels,
    PackedMatrix,
    WeightKind,
    allocate_cache_layer,
)
from edgellama_kernels.layout import row_bytes

CASES = 24
Arrays = dict[str, np.ndarray]


def random_inputs(generator: np.random.Generator, case: int) -> Arrays:
    """Return inputs of awkward sizes and magnitudes; raw weights are random bytes."""

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    kind = list(WeightKind)[case % len(WeightKind)]
    tokens, rows = generator.integers(1, (13, 60)).tolist()
    columns = kind.block_size * int(generator.integers(1, 7)) if kind.quantized else 32 * 3 + case
    raw = generator.integers(0, 256, (rows, row_bytes(kind, columns)), dtype=np.uint8)
    blocks = raw.reshape(rows, -1, kind.block_bytes)
    blocks &= np.uint8(0xBF)  # no exponent of any format is full: all weights are finite
    heads, kv_heads = ((4, 2), (6, 2), (3, 3), (8, 1))[case % 4]
    width = (8, 24, 64, 40)[case // 4 % 4]
    positions = int(generator.integers(tokens, 150))
    magnitudes = np.float32(10) ** generator.integers(-30, 12, (tokens, 1)).astype(np.float32)
    return {
        "raw": raw,
        "x": normal(tokens, columns) * magnitudes,
        "residual": normal(tokens, rows),
        "weight": normal(columns),
        "gate": normal(tokens, columns) * np.float32(30),
        "heads": normal(tokens, heads, width),
        "table": normal(tokens, 2, width // 2),
        "keys": normal(positions, kv_heads, width),
        "values": normal(positions, kv_heads, width),
    }


def outputs(kernels: Kernels, case: int, given: Arrays) -> Arrays:
    """Return what every kernel makes of the inputs."""
    kind = list(WeightKind)[case % len(WeightKind)]
    (rows, _), (tokens, columns) = given["raw"].shape, given["x"].shape
    matrix = PackedMatrix.zeros(kind, rows, columns)
    matrix.store_rows(0, given["raw"])
    prepared = kernels.prepare(given["x"])
    hidden: HiddenRows = kernels.shrink(given["x"])
    positions, kv_heads, width = given["keys"].shape
    rotated = given["heads"].copy()
    kernels.rope(rotated, given["table"])
    small = given["gate"] / np.float32(30)
    found = {
        "packed": matrix.buffer,
        "matmul": kernels.matmul(matrix, prepared, given["residual"]),
        "one token": kernels.matmul(matrix, kernels.prepare(given["x"][-1:])),
        "embed": kernels.expand(kernels.embed(matrix, np.array([0, rows - 1]))),
        "halves": hidden.halves,
        "exponents": hidden.exponents,
        "expand": kernels.expand(hidden),
        "rms_norm": kernels.rms_norm(small, given["weight"], 1e-5),
        "silu_multiply": kernels.silu_multiply(given["gate"], small),
        "rope": rotated,
    }
    for cache_kind in CacheKind:
        cache = allocate_cache_layer(kv_heads, width, positions, cache_kind)
        kernels.store(cache, given["keys"], given["values"], 0)
        name = cache_kind.value
        found |= {f"keys {name}": cache.keys, f"values {name}": cache.values}
        found[f"attention {name}"] = kernels.attention(given["heads"], cache, positions - tokens)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def write(path: str) -> None:
    kernels = edgellama_kernels.load("auto")
    kept: dict[str, Any] = {}
    for case in range(CASES):
        given = random_inputs(np.random.default_rng(case), case)
        kept |= {f"{case} given {name}": array for name, array in given.items()}
        made = outputs(kernels, case, given)
        kept |= {f"{case} made {name}": array for name, array in made.items()}
    np.savez(path, **kept)


def compare(path: str, backend: str) -> dict[str, Any]:
    """Return how many values were compared, and the names of those that differ."""
    kernels = edgellama_kernels.load(backend)
    values, arrays, different = 0, 0, []
    with np.load(path, allow_pickle=False) as kept:
        for case in range(CASES):
            start = f"{case} given "
            names = [name for name in kept.files if name.startswith(start)]
            made = outputs(kernels, case, {name[len(start) :]: kept[name] for name in names})
            for name, array in made.items():
                expected = kept[f"{case} made {name}"]
                values, arrays = values + array.size, arrays + 1
                same = (array.dtype, array.shape) == (expected.dtype, expected.shape)
                if not same or array.tobytes() != expected.tobytes():
                    different.append(f"{case} {name}")
    return {"backend": kernels.name, "arrays": arrays, "values": values, "different": different}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2])
    else:
        sys.stdout.write(json.dumps(compare(*sys.argv[2:4])))
