"""Proof at the door (rule 10): every kernel on fixed inputs, and one hash of all that comes out.

A device whose digest differs from ``EXPECTED_DIGEST`` computes other numbers than the mesh, be it
for a compiler's fault or because a foreign library makes it flush subnormals. The digest belongs
to the thread it is made in: flushing is a setting of each thread.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels.expert_layout import PackedExperts
from edgellama_kernels.interface import CacheKind, Float32, Kernels, allocate_cache_layer
from edgellama_kernels.kinds import WeightKind, block_fields
from edgellama_kernels.layout import PackedMatrix, row_bytes
from edgellama_kernels.reference import exponential

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPECTED_DIGEST = "9aee07623909842aa41a054c3989cb952b1300d4f8575c0d09cc3dc0e68ace99"

ROWS = 43  # no multiple of 8
COLUMNS = {1: 150, 32: 160, 256: 512}  # by GGUF's block; of 150 the last block of 32 is short
POSITIONS = 150  # in the third tile of 64
EXPERTS, EXPERTS_USED = 5, 2
HEADS, KV_HEADS = 6, 2  # three query heads share a key head: not four
HEAD_WIDTH = 42  # no multiple of 4, and more than the 32 that a word of bytes takes at once


def _integers(count: int, seed: int) -> NDArray[np.uint32]:
    """Return fixed 32-bit numbers by integer arithmetic alone: a hash of seed and index."""
    numbers = np.arange(count, dtype=np.uint32) + np.uint32(seed * 0x9E3779B1 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        numbers = (numbers ^ (numbers >> np.uint32(shift))) * np.uint32(factor)
    return numbers


def _numbers(seed: int, *shape: int) -> Float32:
    """Return float32 in -4..4 with 24 significant bits, each exact."""
    integers = _integers(int(np.prod(shape)), seed)
    centred = (integers >> np.uint32(7)).astype(np.int32) - np.int32(1 << 24)
    return (centred.astype(np.float32) * np.float32(2.0**-22)).reshape(shape)


def _awkward(seed: int, *shape: int) -> Float32:
    """Return numbers with a block of zeros and rows from subnormal to near 2^60."""
    x = _numbers(seed, *shape)
    x[:, :32] = 0
    x *= np.array([2.0 ** (60 - 46 * (row % 5)) for row in range(len(x))], np.float32)[:, None]
    return x


def _matrix(kind: WeightKind, seed: int) -> PackedMatrix:
    """Return a matrix whose raw bytes are fixed; scales reach down to subnormal fp16."""
    columns = COLUMNS[kind.block_size]
    size = row_bytes(kind, columns)
    raw = _integers(ROWS * size, seed).astype(np.uint8)
    blocks = raw.reshape(ROWS, -1, kind.block_bytes)
    if kind.quantized:
        for name, field in block_fields(kind, blocks).items():
            if name in ("scale", "minimum"):
                field[..., 1] &= 0x87  # the upper bytes: fp16 below 2^-13 in magnitude
    else:
        blocks[..., -1] &= 0xBF  # finite and below 2 in every format
    matrix = PackedMatrix.zeros(kind, ROWS, columns)
    matrix.store_rows(0, raw.reshape(ROWS, size))
    return matrix


def outputs(kernels: Kernels) -> dict[str, NDArray[Any]]:
    """Return what each kernel makes of the fixed inputs, by name."""
    found: dict[str, NDArray[Any]] = {}
    for number, kind in enumerate(WeightKind):
        matrix = _matrix(kind, number)
        hidden = kernels.embed(matrix, np.array([0, 42, 7]))
        found[f"embed {kind.value}"] = kernels.expand(hidden)
        x = _awkward(100 + number, 5, matrix.columns)
        residual = _numbers(200 + number, 2, ROWS)
        for part, added in ((x, None), (x[:2], residual), (x[2:3], None)):
            name = f"matmul {kind.value} T={len(part)}"
            found[name] = kernels.matmul(matrix, kernels.prepare(part), added)
    x = _awkward(30, 5, 150)
    hidden = kernels.shrink(x)
    found |= {"halves": hidden.halves, "exponents": hidden.exponents}
    found["expand"] = kernels.expand(hidden)
    found["rms_norm"] = kernels.rms_norm(_numbers(31, 5, 150), _numbers(32, 150), 1e-5)
    found["silu_multiply"] = kernels.silu_multiply(
        np.float32(25) * _numbers(33, 5, 150), _numbers(34, 5, 150)
    )
    found["gelu_multiply"] = kernels.gelu_multiply(
        np.float32(3) * _numbers(54, 5, 150), _numbers(34, 5, 150)
    )
    heads = _numbers(38, 5, HEADS, HEAD_WIDTH)
    found["rms_norm of heads"] = kernels.rms_norm(heads, _numbers(39, HEAD_WIDTH), 1e-6)
    for name, shape in (("bias", (150,)), ("sum", (5, 150))):
        found[f"add a {name}"] = kernels.add(_numbers(43, 5, 150), _numbers(44, *shape))
    rotated = _numbers(35, 5, HEADS, HEAD_WIDTH)
    kernels.rope(rotated, _numbers(36, 5, 2, HEAD_WIDTH // 2))
    found["rope"] = rotated
    found["exponential"] = exponential(np.float32(22) * _numbers(37, 999))
    for cache_kind in CacheKind:
        found |= _attention_outputs(kernels, cache_kind)
    return found | _expert_outputs(kernels)


def _attention_outputs(kernels: Kernels, kind: CacheKind) -> dict[str, NDArray[Any]]:
    cache = allocate_cache_layer(KV_HEADS, HEAD_WIDTH, POSITIONS, kind)
    keys, values = (_numbers(seed, POSITIONS, KV_HEADS, HEAD_WIDTH) for seed in (40, 41))
    kernels.store(cache, keys[:64], values[:64], 0)
    kernels.store(cache, keys[64:], values[64:], 64)
    queries = _numbers(42, POSITIONS, HEADS, HEAD_WIDTH)
    found: dict[str, NDArray[Any]] = {"keys": cache.keys, "values": cache.values}
    if cache.scales is not None:
        found["scales"] = cache.scales
    found["attention prefill"] = kernels.attention(queries[100:], cache, 100)
    found["attention decode"] = kernels.attention(queries[70:71], cache, 70)
    found["attention of a window"] = kernels.attention(queries[100:], cache, 100, 70, 0.125)
    return {f"{name} {kind.value}": array for name, array in found.items()}


def _expert_outputs(kernels: Kernels) -> dict[str, NDArray[Any]]:
    routing = kernels.route(np.float32(4) * _numbers(50, 40, EXPERTS), EXPERTS_USED)
    found: dict[str, NDArray[Any]] = {"shares": routing.shares, "order": routing.order}
    for kind in (WeightKind.F16, WeightKind.Q8_0, WeightKind.Q4_0, WeightKind.Q4_K):
        matrices = [_matrix(kind, 60 + number) for number in range(EXPERTS)]
        columns = matrices[0].columns
        buffer = np.concatenate([matrix.buffer for matrix in matrices])
        experts = PackedExperts(kind, EXPERTS, ROWS, columns, buffer)
        x = _numbers(51, 40, columns)
        shared = kernels.expert_matmul(experts, kernels.prepare(x), routing)
        own = kernels.prepare(_numbers(52, 40, EXPERTS_USED, columns))
        found[f"experts {kind.value}"] = shared
        found[f"experts {kind.value}, own rows"] = kernels.expert_matmul(experts, own, routing)
        found[f"mix {kind.value}"] = kernels.mix(shared, routing, _numbers(53, 40, ROWS))
    return found


def digest(kernels: Kernels) -> str:
    """Return a hash, 64 hexadecimal digits, of every kernel's output; some seconds when cold."""
    hashed = hashlib.sha256()
    for name, array in outputs(kernels).items():
        hashed.update(f"{name} {array.dtype} {array.shape}\n".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
