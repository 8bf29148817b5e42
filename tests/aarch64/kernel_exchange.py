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
    PackedExperts,
    PackedMatrix,
    WeightKind,
    allocate_cache_layer,
)
from edgellama_kernels.layout import row_bytes

CASES = 24
EXPERTS, EXPERTS_USED = 5, 2
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
    width = (8, 24, 64, 42)[case // 4 % 4]
    halves = generator.integers(0, 1 << 16, (tokens, columns), dtype=np.uint16)
    halves[halves & 0x7C00 == 0x7C00] &= 0xBFFF  # finite
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
        "halves": halves,
        "logits": normal(tokens, EXPERTS) * np.float32(9),
    }


def outputs(kernels: Kernels, case: int, given: Arrays) -> Arrays:
    """Return what every kernel makes of the inputs."""
    kind = list(WeightKind)[case % len(WeightKind)]
    (rows, _), columns = given["raw"].shape, given["x"].shape[1]
    matrix = PackedMatrix.zeros(kind, rows, columns)
    matrix.store_rows(0, given["raw"])
    prepared = kernels.prepare(given["x"])
    hidden: HiddenRows = kernels.shrink(given["x"])
    rotated = given["heads"].copy()
    kernels.rope(rotated, given["table"])
    gate, weight = given["gate"], given["weight"]
    small = gate / np.float32(30)
    row = np.ascontiguousarray(given["keys"][0, 0])
    found = {
        "packed": matrix.buffer,
        "matmul": kernels.matmul(matrix, prepared, given["residual"]),
        "one token": kernels.matmul(matrix, kernels.prepare(given["x"][-1:])),
        "embed": kernels.expand(kernels.embed(matrix, np.array([0, rows - 1]))),
        "embed, scaled": kernels.embed(matrix, np.array([rows - 1]), 3.3).halves,
        "halves": hidden.halves,
        "exponents": hidden.exponents,
        "expand": kernels.expand(hidden),
        "rms_norm": kernels.rms_norm(small, weight, 1e-5),
        "rms_norm of heads": kernels.rms_norm(given["heads"], row, 1e-6),
        "silu_multiply": kernels.silu_multiply(gate, small),
        "gelu_multiply": kernels.gelu_multiply(gate, small),
        "add a bias": kernels.add(gate, weight),
        "add a sum": kernels.add(gate, small),
        "rope": rotated,
    }
    found |= packed_outputs(kernels, given["halves"])
    found |= expert_outputs(kernels, kind, given)
    for cache_kind in CacheKind:
        found |= cache_outputs(kernels, cache_kind, case, given)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def packed_outputs(kernels: Kernels, halves: np.ndarray) -> Arrays:
    """Return what the codec of a link that may lose a little makes of finite fp16."""
    packed = kernels.row_codec.pack(halves)
    unpacked = kernels.row_codec.unpack(packed, halves.shape[1])
    parts = {f"codec {name}": array for name, array in packed._asdict().items()}
    return parts | {"codec unpacked": unpacked}


def expert_outputs(kernels: Kernels, kind: WeightKind, given: Arrays) -> Arrays:
    """Return what a mixture makes of the activations, each expert's weights being other rows."""
    (rows, _), (tokens, columns) = given["raw"].shape, given["x"].shape
    experts = PackedExperts.zeros(kind, EXPERTS, rows, columns)
    for number in range(EXPERTS):
        experts.expert(number).store_rows(0, np.roll(given["raw"], number, axis=0))
    routing = kernels.route(given["logits"], EXPERTS_USED)
    shared = kernels.expert_matmul(experts, kernels.prepare(given["x"]), routing)
    own = np.stack([given["gate"], given["x"]], axis=1)
    assert own.shape == (tokens, EXPERTS_USED, columns)
    return {
        **{f"routing {name}": array for name, array in routing._asdict().items()},
        "experts": shared,
        "experts, own rows": kernels.expert_matmul(experts, kernels.prepare(own), routing),
        "mix": kernels.mix(shared, routing, given["residual"]),
    }


def cache_outputs(kernels: Kernels, kind: CacheKind, case: int, given: Arrays) -> Arrays:
    """Return a cache that was written to, and what attention makes of it."""
    positions, kv_heads, width = given["keys"].shape
    queries, first = given["heads"], positions - len(given["heads"])
    cache = allocate_cache_layer(kv_heads, width, positions, kind)
    kernels.store(cache, given["keys"], given["values"], 0)
    found = {name: array for name, array in cache._asdict().items() if array is not None}
    found["attention"] = kernels.attention(queries, cache, first)
    window = 1 + case * 7 % positions
    found["attention of a window"] = kernels.attention(queries, cache, first, window, 0.125)
    return {f"{name} {kind.value}": array for name, array in found.items()}


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
    """Return how many arrays and values were compared, and the names of those that differ."""
    kernels = edgellama_kernels.load(backend)
    values, arrays, different = 0, 0, []
    with np.load(path, allow_pickle=False) as kept:
        for case in range(CASES):
            start = f"{case} given "
            names = [name for name in kept.files if name.startswith(start)]
            made = outputs(kernels, case, {name[len(start) :]: kept[name] for name in names})
            known = {name for name in kept.files if name.startswith(f"{case} made ")}
            assert known == {f"{case} made {name}" for name in made}, known
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
