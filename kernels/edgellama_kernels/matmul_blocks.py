"""Compiled matmuls of the kinds whose weights are more than a scale and a byte or a nibble.

One text serves them all, and what differs is asked of ``kind`` for every block: the answers are
always the same, so they cost little, while a loop for each kind would take ten times as long to
compile. Arguments are those of ``matmul``; ``records`` are what ``layout`` draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellama_kernels.block_words import (
    dot_fives,
    dot_nibbles,
    dot_scaled_sixes,
    dot_scaled_threes,
    first_sum,
    high_nibbles,
    load_fives,
    load_i8x8,
    load_nibbles,
    load_sixes,
    load_threes,
    load_twos,
    load_u8x8,
    low_nibbles,
    whole_sum,
)
from edgellama_kernels.jit import inlined, part
from edgellama_kernels.kinds import (
    FORMATS,
    Q2_K,
    Q3_K,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    WeightKind,
)
from edgellama_kernels.layout import record_bytes
from edgellama_kernels.operations import PREFETCH_BYTES, TOKENS_TILE
from edgellama_kernels.row_sums import clear, finish, finish_tile
from edgellama_kernels.vec import (
    broadcast_f32,
    float_from_i32,
    load_f32x8,
    load_half_x8,
    prefetch,
    splat_i32,
    store_f32x8,
    zeros_f32x8,
    zeros_i32x8,
)

_FORMATS = [FORMATS.get(kind) for kind in WeightKind]  # in the order of their codes
VECTORS = tuple(format_.bits if format_ else 0 for format_ in _FORMATS)
MINIMUMS = tuple(bool(format_ and format_.minimums) for format_ in _FORMATS)
RECORD_BYTES = tuple(record_bytes(kind) if kind in FORMATS else 0 for kind in WeightKind)
FIRST_WITH_FACTORS = Q2_K
LANES_BYTES = 16  # of eight fp16, or two factors of each of eight rows


@inlined
def load_quants(kind: int, quants: int, at: int) -> Any:
    """Load a block's quants, a byte each."""
    if kind == Q2_K:
        return load_twos(quants, at)
    if kind == Q3_K:
        return load_threes(quants, at)
    if kind in (Q4_1, Q4_K):
        return load_nibbles(quants, at)
    if kind == Q6_K:
        return load_sixes(quants, at)
    return load_fives(quants, at)


@inlined
def record_of(kind: int, records: int, block: int) -> int:
    """Return the address of a block's record; eight blocks share one where there are factors."""
    return records + (block >> 3 if kind >= FIRST_WITH_FACTORS else block) * RECORD_BYTES[kind]


@inlined
def load_factors(kind: int, record: int, block: int, second: int) -> Any:
    """Load the first or the second factors of a block's rows; 0 where there are none."""
    at = LANES_BYTES * (2 if MINIMUMS[kind] else 1) + LANES_BYTES * (block & 7) + 8 * second
    if kind < FIRST_WITH_FACTORS:
        return zeros_i32x8()
    if kind in (Q3_K, Q6_K):
        return load_i8x8(record, at)
    return load_u8x8(record, at)


@inlined
def less_offset(n: int, first: Any, second: Any, sums: int, token: int) -> Any:
    """Return what turns factors times products with quants into those with quants less ``n``."""
    halves = (second - first) * splat_i32(np.int32(n)) * first_sum(sums, token)
    return halves - second * splat_i32(np.int32(n)) * whole_sum(sums, token)


@inlined
def dots_of(kind: int, quants: Any, first: Any, second: Any, x: int, sums: int, token: int) -> Any:
    """Return a block's integers: activations times quants less their offset times factors."""
    at = token * 32
    if kind == Q4_1:
        return dot_nibbles(quants, x, at, zeros_i32x8())
    if kind == Q5_0:
        return dot_fives(quants, x, at, whole_sum(sums, token) * splat_i32(np.int32(-16)))
    if kind == Q5_1:
        return dot_fives(quants, x, at, zeros_i32x8())
    if kind == Q2_K:
        return dot_scaled_threes(quants, x, at, low_nibbles(first), low_nibbles(second))
    if kind == Q3_K:
        dots = dot_scaled_threes(quants, x, at, first, second)
        return dots + less_offset(4, first, second, sums, token)
    if kind == Q4_K:
        return dot_nibbles(quants, x, at, zeros_i32x8()) * first
    if kind == Q5_K:
        return dot_fives(quants, x, at, zeros_i32x8()) * first
    dots = dot_scaled_sixes(quants, x, at, first, second)
    return dots + less_offset(32, first, second, sums, token)


@inlined
def sums_of(kind: int, first: Any, second: Any, sums: int, token: int) -> Any:
    """Return what multiplies a block's minimum: the activations' sum, times factors."""
    if kind in (Q4_1, Q5_1):
        return whole_sum(sums, token)
    if kind in (Q4_K, Q5_K):
        return whole_sum(sums, token) * second
    later = high_nibbles(second)
    return later * whole_sum(sums, token) + (high_nibbles(first) - later) * first_sum(sums, token)


@part
def decode_blocks(
    kind: int, quants: int, records: int, blocks: int, x: int, x_scales: int, sums: int,
    residual: int, y: int, rows: int, first: int, past: int,
) -> int:  # fmt: skip
    """One token: the weights pass by once, at the speed of memory."""
    for group in range(first, past):
        total = zeros_f32x8()
        for b in range(blocks):
            block = group * blocks + b
            at = block * 32 * VECTORS[kind]
            for line in range(0, 32 * VECTORS[kind], 64):
                prefetch(quants, at + PREFETCH_BYTES + line)
            record = record_of(kind, records, block)
            one, other = load_factors(kind, record, b, 0), load_factors(kind, record, b, 1)
            dots = dots_of(kind, load_quants(kind, quants, at), one, other, x, sums, b)
            x_scale = broadcast_f32(x_scales, b)
            total = total + float_from_i32(dots) * (load_half_x8(record, 0) * x_scale)
            if MINIMUMS[kind]:
                weight = float_from_i32(sums_of(kind, one, other, sums, b))
                total = total + weight * (load_half_x8(record, 8) * x_scale)
        finish(y, residual, group * 8, rows - group * 8, total)
    return 0


@part
def batch_blocks(
    kind: int, quants: int, records: int, blocks: int, x: int, x_scales: int, sums: int,
    residual: int, y: int, tokens: int, rows: int, first: int, past: int, scratch: int,
) -> int:  # fmt: skip
    """Several tokens: a block is unpacked once and meets all of them."""
    for start in range(0, tokens, TOKENS_TILE):
        stop = min(start + TOKENS_TILE, tokens)
        for group in range(first, past):
            clear(scratch, stop - start)
            for b in range(blocks):
                block = group * blocks + b
                weights = load_quants(kind, quants, block * 32 * VECTORS[kind])
                record = record_of(kind, records, block)
                one, other = load_factors(kind, record, b, 0), load_factors(kind, record, b, 1)
                scale, minimum = load_half_x8(record, 0), load_half_x8(record, 8)
                for token in range(b * tokens + start, b * tokens + stop):
                    at = (token - b * tokens - start) * 8
                    dots = dots_of(kind, weights, one, other, x, sums, token)
                    x_scale = broadcast_f32(x_scales, token)
                    total = load_f32x8(scratch, at) + float_from_i32(dots) * (scale * x_scale)
                    if MINIMUMS[kind]:
                        weight = float_from_i32(sums_of(kind, one, other, sums, token))
                        total = total + weight * (minimum * x_scale)
                    store_f32x8(scratch, at, total)
            finish_tile(scratch, y, residual, group, rows, start, stop)
    return 0
