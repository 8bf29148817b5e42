"""Inputs for the kernels' tests: awkward on purpose, random from a seed that a failure shows."""

from __future__ import annotations

import numpy as np
from edgellama_kernels import PackedMatrix, WeightKind
from edgellama_kernels.kinds import block_fields
from edgellama_kernels.layout import row_bytes


def random_rows(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def awkward_rows(seed: int, tokens: int, width: int) -> np.ndarray:
    """Rows with a block of zeros, blocks below the quantiser's threshold, and every magnitude."""
    x = random_rows(seed, tokens, width)
    x *= np.float32(10.0) ** np.linspace(-38, 15, tokens, dtype=np.float32)[:, None]
    x[0, :32] = 0
    x[tokens // 2, 32:64] = np.float32(1e-31)
    x[tokens // 2, -1:] = np.float32(-3e4)
    return x


def raw_matrix(kind: WeightKind, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Raw GGUF rows whose scales and weights include the extremes of their formats."""
    generator = np.random.default_rng(seed)
    if not kind.quantized:
        w = generator.standard_normal((rows, columns)).astype(np.float32)
        w[0, :4] = [0.0, -0.0, 6e-8, 65504]
        if kind is WeightKind.F16:
            return w.astype(np.float16).view(np.uint8)
        if kind is WeightKind.BF16:
            return (w.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return w.view(np.uint8)
    size = row_bytes(kind, columns)
    blocks = generator.integers(0, 256, (rows, size), dtype=np.uint8)
    blocks = blocks.reshape(rows, -1, kind.block_bytes)
    fields = block_fields(kind, blocks)
    for number, name in enumerate(("scale", "minimum")):
        if name in fields:
            scales = (generator.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
            # 6e-8 is the least subnormal
            extremes = np.array([6e-8, 0, 65504, -3e-5, -65504, -0.0], np.float16)
            scales.reshape(-1)[: len(extremes)] = np.roll(extremes, number)[: scales.size]
            fields[name][:] = scales[..., None].view(np.uint8)
    for name in ("low", "high"):
        if name in fields:
            fields[name][-1] = 0x80  # -128 throughout, or a quant that is 0 but for one bit
            fields[name][-2:-1] = 0xFF
    if "factors" in fields:
        fields["factors"][-1] = 0x80
        fields["factors"][-2:-1] = 0xFF
        fields["factors"][-3:-2] = 0
    return blocks.reshape(rows, size)


def whole_blocks(kind: WeightKind, blocks: int) -> int:
    """Return columns for a matrix: about so many blocks of 32, and whole blocks of the kind."""
    return -(-blocks * 32 // kind.block_size) * kind.block_size


def packed(kind: WeightKind, rows: int, columns: int, seed: int = 0) -> PackedMatrix:
    matrix = PackedMatrix.zeros(kind, rows, columns)
    matrix.store_rows(0, raw_matrix(kind, rows, columns, seed))
    return matrix


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    a, b = (np.ascontiguousarray(x).view(np.uint8).reshape(-1, x.itemsize) for x in (one, other))
    differing = np.flatnonzero((a != b).any(axis=1))
    assert differing.size == 0, f"{differing.size} of {one.size} differ, first {differing[:5]}"
