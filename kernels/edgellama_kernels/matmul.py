"""Compiled matmuls over layout R8 (rule 1): the lane is the row, so no sum crosses lanes.

A kernel works on the groups of eight rows ``first`` up to ``past``. All arguments are addresses
and sizes: activations as ``QuantizedBlocks`` or float32 [tokens, columns], ``residual`` float32
[tokens, rows] or 0, ``y`` float32 [tokens, rows]. ``scratch`` is the calling thread's own memory,
room for ``TOKENS_TILE`` sums of eight rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellama_kernels.block_words import (
    bytes_start,
    dot_bytes,
    dot_nibbles,
    load_block,
    load_nibbles,
    whole_sum,
)
from edgellama_kernels.jit import inlined, part
from edgellama_kernels.kinds import F16, F32, Q4_0, Q4_1, Q8_0
from edgellama_kernels.matmul_blocks import batch_blocks, decode_blocks
from edgellama_kernels.operations import PREFETCH_BYTES, TOKENS_TILE
from edgellama_kernels.row_sums import clear, finish, finish_tile
from edgellama_kernels.vec import (
    broadcast_f32,
    float_from_i32,
    load_bfloat_x8,
    load_f32x8,
    load_half_x8,
    prefetch,
    splat_i32,
    store_f32x8,
    zeros_f32x8,
)

NIBBLES_BYTES = 128  # a block of Q4_0 of eight rows, without scales
BLOCK_BYTES = 256  # a block of Q8_0 of eight rows, without scales
SCALES_BYTES = 16  # the scales of either


@inlined
def offsets_of_nibbles(sums: int, index: int) -> Any:
    """Return what turns products with nibbles 0..15 into products with -8..7."""
    return whole_sum(sums, index) * splat_i32(np.int32(-8))


@part
def decode_nibbles(
    quants: int, scales: int, blocks: int, x: int, x_scales: int, sums: int,
    residual: int, y: int, rows: int, first: int, past: int,
) -> int:  # fmt: skip
    """Q4_0 for one token: the weights pass by once, at the speed of memory."""
    for group in range(first, past):
        total = zeros_f32x8()
        for block in range(group * blocks, (group + 1) * blocks):
            at = block * NIBBLES_BYTES
            prefetch(quants, at + PREFETCH_BYTES)
            prefetch(quants, at + PREFETCH_BYTES + 64)
            prefetch(scales, (block + PREFETCH_BYTES // NIBBLES_BYTES) * SCALES_BYTES)
            b = block - group * blocks
            weights = load_nibbles(quants, at)
            dots = dot_nibbles(weights, x, b * 32, offsets_of_nibbles(sums, b))
            scale = load_half_x8(scales, block * 8) * broadcast_f32(x_scales, b)
            total = total + float_from_i32(dots) * scale
        finish(y, residual, group * 8, rows - group * 8, total)
    return 0


@part
def decode_bytes(
    quants: int, scales: int, blocks: int, x: int, x_scales: int, sums: int,
    residual: int, y: int, rows: int, first: int, past: int,
) -> int:  # fmt: skip
    """Q8_0 for one token."""
    for group in range(first, past):
        total = zeros_f32x8()
        for block in range(group * blocks, (group + 1) * blocks):
            at = block * BLOCK_BYTES
            for line in range(0, BLOCK_BYTES, 64):
                prefetch(quants, at + PREFETCH_BYTES + line)
            prefetch(scales, (block + PREFETCH_BYTES // BLOCK_BYTES) * SCALES_BYTES)
            b = block - group * blocks
            dots = dot_bytes(load_block(quants, at), x, b * 32, bytes_start(whole_sum(sums, b)))
            scale = load_half_x8(scales, block * 8) * broadcast_f32(x_scales, b)
            total = total + float_from_i32(dots) * scale
        finish(y, residual, group * 8, rows - group * 8, total)
    return 0


@part
def batch_nibbles(
    quants: int, scales: int, blocks: int, x: int, x_scales: int, sums: int,
    residual: int, y: int, tokens: int, rows: int, first: int, past: int, scratch: int,
) -> int:  # fmt: skip
    """Q4_0 for several tokens: a block is unpacked once and meets all of them."""
    for start in range(0, tokens, TOKENS_TILE):
        stop = min(start + TOKENS_TILE, tokens)
        for group in range(first, past):
            clear(scratch, stop - start)
            for b in range(blocks):
                block = group * blocks + b
                weights = load_nibbles(quants, block * NIBBLES_BYTES)
                scale = load_half_x8(scales, block * 8)
                for token in range(b * tokens + start, b * tokens + stop):
                    dots = dot_nibbles(weights, x, token * 32, offsets_of_nibbles(sums, token))
                    step = float_from_i32(dots) * (scale * broadcast_f32(x_scales, token))
                    at = (token - b * tokens - start) * 8
                    store_f32x8(scratch, at, load_f32x8(scratch, at) + step)
            finish_tile(scratch, y, residual, group, rows, start, stop)
    return 0


@part
def batch_bytes(
    quants: int, scales: int, blocks: int, x: int, x_scales: int, sums: int,
    residual: int, y: int, tokens: int, rows: int, first: int, past: int, scratch: int,
) -> int:  # fmt: skip
    """Q8_0 for several tokens."""
    for start in range(0, tokens, TOKENS_TILE):
        stop = min(start + TOKENS_TILE, tokens)
        for group in range(first, past):
            clear(scratch, stop - start)
            for b in range(blocks):
                block = group * blocks + b
                weights = load_block(quants, block * BLOCK_BYTES)
                scale = load_half_x8(scales, block * 8)
                for token in range(b * tokens + start, b * tokens + stop):
                    beginning = bytes_start(whole_sum(sums, token))
                    dots = dot_bytes(weights, x, token * 32, beginning)
                    step = float_from_i32(dots) * (scale * broadcast_f32(x_scales, token))
                    at = (token - b * tokens - start) * 8
                    store_f32x8(scratch, at, load_f32x8(scratch, at) + step)
            finish_tile(scratch, y, residual, group, rows, start, stop)
    return 0


@inlined
def load_elements(elements: int, index: int, kind: int) -> Any:
    """Load one column of eight rows as float32, exactly."""
    if kind == F32:
        return load_f32x8(elements, index)
    if kind == F16:
        return load_half_x8(elements, index)
    return load_bfloat_x8(elements, index)


@part
def multiply_floats(
    elements: int, kind: int, columns: int, x: int,
    residual: int, y: int, tokens: int, rows: int, first: int, past: int,
) -> int:  # fmt: skip
    """F32, F16 and BF16, four tokens at once (the last ones again where tokens run out).

    Computing an element twice gives the same bits, and stores them in the same place.
    """
    for group in range(first, past):
        base = group * columns
        for token in range(0, tokens, 4):
            at0 = token
            at1, at2, at3 = (
                min(at0 + 1, tokens - 1),
                min(at0 + 2, tokens - 1),
                min(at0 + 3, tokens - 1),
            )
            total0 = total1 = total2 = total3 = zeros_f32x8()
            for start in range(0, columns, 32):
                sum0 = sum1 = sum2 = sum3 = zeros_f32x8()
                for k in range(start, min(start + 32, columns)):
                    weights = load_elements(elements, (base + k) * 8, kind)
                    sum0 = sum0 + weights * broadcast_f32(x, at0 * columns + k)
                    sum1 = sum1 + weights * broadcast_f32(x, at1 * columns + k)
                    sum2 = sum2 + weights * broadcast_f32(x, at2 * columns + k)
                    sum3 = sum3 + weights * broadcast_f32(x, at3 * columns + k)
                total0, total1 = total0 + sum0, total1 + sum1
                total2, total3 = total2 + sum2, total3 + sum3
            left = rows - group * 8
            finish(y, residual, at0 * rows + group * 8, left, total0)
            finish(y, residual, at1 * rows + group * 8, left, total1)
            finish(y, residual, at2 * rows + group * 8, left, total2)
            finish(y, residual, at3 * rows + group * 8, left, total3)
    return 0


@part
def multiply(
    kind: int, weights: int, scales: int, columns: int, rows: int, x: int, quants: int,
    x_scales: int, sums: int, residual: int, y: int, tokens: int, first: int, past: int,
    scratch: int,
) -> int:  # fmt: skip
    """Multiply any kind of weights: the one place that tells them apart.

    Activations are ``x`` for F32, F16 and BF16, the three arrays of blocks for all others.
    """
    blocks = columns // 32
    if kind == Q4_0:
        if tokens == 1:
            return decode_nibbles(
                weights, scales, blocks, quants, x_scales, sums,
                residual, y, rows, first, past,
            )  # fmt: skip
        return batch_nibbles(
            weights, scales, blocks, quants, x_scales, sums,
            residual, y, tokens, rows, first, past, scratch,
        )  # fmt: skip
    if kind >= Q4_1:
        if tokens == 1:
            return decode_blocks(
                kind, weights, scales, blocks, quants, x_scales, sums, residual, y, rows,
                first, past,
            )  # fmt: skip
        return batch_blocks(
            kind, weights, scales, blocks, quants, x_scales, sums, residual, y, tokens, rows,
            first, past, scratch,
        )  # fmt: skip
    if kind == Q8_0:
        if tokens == 1:
            return decode_bytes(
                weights, scales, blocks, quants, x_scales, sums, residual, y, rows, first, past
            )
        return batch_bytes(
            weights, scales, blocks, quants, x_scales, sums, residual, y, tokens, rows,
            first, past, scratch,
        )  # fmt: skip
    return multiply_floats(weights, kind, columns, x, residual, y, tokens, rows, first, past)
