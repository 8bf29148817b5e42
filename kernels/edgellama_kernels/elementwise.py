"""Compiled kernels on rows: quantising, norm, RoPE, SiLU, sums, hidden rows, the cache's writes.

All arguments are addresses of C-ordered arrays and sizes. Each function works on the units
``first`` up to ``past``, a unit being a row where it says nothing else, and returns 0, or 1 when it
met a number that the contract refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellama_kernels.interface import (
    GROUP_POSITIONS,
    LANE_POSITIONS,
    QUAD_NUMBERS,
    ROW_EXPONENT_MAX,
)
from edgellama_kernels.jit import inlined, part
from edgellama_kernels.kinds import HALF_COLUMNS
from edgellama_kernels.lanes import FULL, exp_clamped, load_lanes, piece_of, store_lanes
from edgellama_kernels.reference import (
    BLOCK_MAX_TINY,
    GELU_CUBIC,
    GELU_LINEAR,
    HALF_LIMIT,
    ONE,
    ZERO,
)
from edgellama_kernels.vec import (
    bits_f32,
    i32_from_float,
    lane_f32,
    lane_half,
    lane_i32,
    larger_i32,
    load_f32x8,
    load_half_x8,
    load_u8,
    load_u16,
    magnitude_bits,
    max_i32,
    nearest,
    splat_f32,
    square_root,
    store_f32,
    store_f32x8,
    store_half_x8,
    store_i32x8_as_i8,
    store_u8,
    store_u16,
    sum_i32,
    tree_sum,
    zeros_f32x8,
    zeros_i32x8,
)

NOT_FINITE_BITS = np.int32(0x7F800000)  # of a magnitude: infinity, and NaN above it
HALF_OVERFLOW_BITS = np.int32(0x477FF000)  # 65520, which fp16 rounds to infinity
HALF_NOT_FINITE_BITS = 0x7C00
HALF_TO_FLOAT = np.float32(2.0**112)  # between the exponent biases of fp16 and float32
INFINITY = np.float32(np.inf)
LEVELS = np.float32(127)


@inlined
def largest_magnitude(x: int, index: int, count: int) -> Any:
    """Return the largest magnitude of ``count`` float32 as its bits, whose order is the same."""
    largest = zeros_i32x8()
    for i in range(0, count, FULL):
        lanes = load_lanes(x, index + i, min(FULL, count - i))
        largest = larger_i32(largest, magnitude_bits(lanes))
    return max_i32(largest)


@inlined
def scale_and_inverse(bits: Any) -> Any:
    """Rule 2: a block's scale and what it is multiplied with, from the largest's bits."""
    largest = bits_f32(bits)
    if largest < BLOCK_MAX_TINY:
        return ZERO, ZERO
    return largest / LEVELS, LEVELS / largest


@part
def quantize(
    x: int, quants: int, scales: int, sums: int, columns: int, tokens: int,
    first: int, past: int,
) -> int:  # fmt: skip
    """Rule 2: float32 [tokens, columns] to block-major blocks. A unit is 32 columns of a row."""
    blocks = columns // 32
    for unit in range(first, past):
        at = unit * 32
        to = unit % blocks * tokens + unit // blocks
        bits = largest_magnitude(x, at, 32)
        if bits >= NOT_FINITE_BITS:
            return 1
        scale, inverse = scale_and_inverse(bits)
        first_half = total = zeros_i32x8()
        for i in range(0, 32, FULL):
            lanes = i32_from_float(nearest(load_f32x8(x, at + i) * splat_f32(inverse)))
            store_i32x8_as_i8(quants, to * 32 + i, lanes)
            total = total + lanes
            if i < HALF_COLUMNS:
                first_half = total
        store_f32(scales, to, scale)
        store_u16(sums, 2 * to, np.uint16(sum_i32(first_half)))
        store_u16(sums, 2 * to + 1, np.uint16(sum_i32(total)))
    return 0


@part
def rms_norm(
    x: int, weight: int, y: int, width: int, epsilon: np.float32,
    first: int, past: int,
) -> int:  # fmt: skip
    """Rule 3 on float32 [tokens, width]."""
    for token in range(first, past):
        at = token * width
        lanes0 = lanes1 = lanes2 = lanes3 = zeros_f32x8()
        for i in range(0, width, 32):
            left = width - i
            square = load_lanes(x, at + i, left)
            lanes0 = lanes0 + square * square
            square = load_lanes(x, at + i + 8, left - 8)
            lanes1 = lanes1 + square * square
            square = load_lanes(x, at + i + 16, left - 16)
            lanes2 = lanes2 + square * square
            square = load_lanes(x, at + i + 24, left - 24)
            lanes3 = lanes3 + square * square
        total = tree_sum((lanes0 + lanes2) + (lanes1 + lanes3))
        mean = splat_f32(total) / splat_f32(np.float32(width))
        root = splat_f32(ONE) / square_root(mean + splat_f32(epsilon))
        if not ZERO < lane_f32(root, 0) < INFINITY:
            return 1
        for i in range(0, width, FULL):
            left = width - i
            lanes = (load_lanes(x, at + i, left) * root) * load_lanes(weight, i, left)
            store_lanes(y, at + i, left, lanes)
    return 0


@part
def rope(x: int, table: int, heads: int, width: int, first: int, past: int) -> int:
    """Rule 6 in place on float32 [tokens, heads, width]. A unit is a head of a row."""
    half = width // 2
    for unit in range(first, past):
        turn = unit // heads * width
        at = unit * width
        for i in range(0, half, FULL):
            left = half - i
            a = load_lanes(x, at + i, left)
            b = load_lanes(x, at + half + i, left)
            cosine = load_lanes(table, turn + i, left)
            sine = load_lanes(table, turn + half + i, left)
            store_lanes(x, at + i, left, a * cosine - b * sine)
            store_lanes(x, at + half + i, left, a * sine + b * cosine)
    return 0


@inlined
def multiply_gated(
    gate: int, up: int, y: int, width: int, first: int, past: int, is_gelu: bool
) -> int:
    """Rule 5 on float32 [tokens, width]. A unit is a piece of a row."""
    for unit in range(first, past):
        row, start, stop = piece_of(unit, width)
        for i in range(row * width + start, row * width + stop, FULL):
            left = row * width + stop - i
            g = z = load_lanes(gate, i, left)
            if is_gelu:
                z = g * (splat_f32(GELU_LINEAR) + splat_f32(GELU_CUBIC) * (g * g))
            activated = g / (splat_f32(ONE) + exp_clamped(zeros_f32x8() - z))
            store_lanes(y, i, left, activated * load_lanes(up, i, left))
    return 0


@part
def silu_multiply(gate: int, up: int, y: int, width: int, first: int, past: int) -> int:
    """Rule 5's SiLU on float32 [tokens, width]."""
    return int(multiply_gated(gate, up, y, width, first, past, False))


@part
def gelu_multiply(gate: int, up: int, y: int, width: int, first: int, past: int) -> int:
    """Rule 5's GELU on float32 [tokens, width]."""
    return int(multiply_gated(gate, up, y, width, first, past, True))


@part
def add(x: int, summand: int, y: int, width: int, stride: int, first: int, past: int) -> int:
    """Add rows that lie ``stride`` numbers apart to float32 [tokens, width]; 0: always the same.

    A unit is a piece of a row.
    """
    for unit in range(first, past):
        row, start, stop = piece_of(unit, width)
        for i in range(start, stop, FULL):
            left = stop - i
            at = row * width + i
            lanes = load_lanes(x, at, left) + load_lanes(summand, row * stride + i, left)
            store_lanes(y, at, left, lanes)
    return 0


@part
def shrink(x: int, halves: int, exponents: int, width: int, first: int, past: int) -> int:
    """Rule 8: float32 [tokens, width] to fp16 rows and their exponents."""
    for token in range(first, past):
        at = token * width
        bits = largest_magnitude(x, at, width)
        if bits >= NOT_FINITE_BITS:
            return 1
        exponent = 0
        while bits_f32(bits) * bits_f32(np.int32((127 - exponent) << 23)) >= HALF_LIMIT:
            exponent += 1
        store_u8(exponents, token, exponent)
        scale = splat_f32(bits_f32(np.int32((127 - exponent) << 23)))
        for i in range(0, width, FULL):
            store_half_lanes(halves, at + i, width - i, load_lanes(x, at + i, width - i) * scale)
    return 0


@inlined
def store_half_lanes(address: int, index: int, count: int, lanes: Any) -> None:
    """Round to fp16 and store the first ``count`` lanes, at most 8."""
    if count >= FULL:
        store_half_x8(address, index, lanes)
    else:
        for lane in range(count):
            store_u16(address, index + lane, lane_half(lanes, lane))


@part
def expand(halves: int, exponents: int, y: int, width: int, first: int, past: int) -> int:
    """Rule 8 backwards: fp16 rows and exponents to float32 [tokens, width]."""
    largest = zeros_i32x8()
    whole = width // FULL * FULL
    for token in range(first, past):
        at = token * width
        exponent = np.int64(load_u8(exponents, token))
        if exponent > ROW_EXPONENT_MAX:
            return 1
        scale = bits_f32(np.int32((127 + exponent) << 23))
        for i in range(0, whole, FULL):
            lanes = load_half_x8(halves, at + i) * splat_f32(scale)
            largest = larger_i32(largest, magnitude_bits(lanes))
            store_f32x8(y, at + i, lanes)
        for i in range(at + whole, at + width):
            bits = np.int64(load_u16(halves, i))
            magnitude = bits & 0x7FFF
            if magnitude >= HALF_NOT_FINITE_BITS:
                return 1
            number = (bits_f32(np.int32(magnitude << 13)) * HALF_TO_FLOAT) * scale
            if number == INFINITY:
                return 1
            store_f32(y, i, -number if bits > 0x7FFF else number)
    return 1 if max_i32(largest) >= NOT_FINITE_BITS else 0


@part
def store_cache(
    keys: int, values: int, cache_keys: int, cache_values: int, scales: int, kv_heads: int,
    width: int, capacity: int, position: int, first: int, past: int,
) -> int:  # fmt: skip
    """Write float32 [tokens, kv_heads, width] as fp16, keys with the position as the lane.

    With ``scales``, as int8. A unit is a head of a row.
    """
    for unit in range(first, past):
        token, head = divmod(unit, kv_heads)
        at = unit * width
        if largest_magnitude(keys, at, width) >= HALF_OVERFLOW_BITS:
            return 1
        if largest_magnitude(values, at, width) >= HALF_OVERFLOW_BITS:
            return 1
        if scales != 0:
            at_position = head * capacity + position + token
            store_quantized_key(keys, at, width, cache_keys, scales, at_position)
            store_quantized_value(
                values, at, width, cache_values, scales, kv_heads * capacity, at_position
            )
            continue
        chunk, lane = divmod(position + token, LANE_POSITIONS)
        value_at = (head * capacity + position + token) * width
        key_at = (head * (capacity // LANE_POSITIONS) + chunk) * width
        for i in range(0, width, FULL):
            left = width - i
            store_half_lanes(cache_values, value_at + i, left, load_lanes(values, at + i, left))
            lanes = load_lanes(keys, at + i, left)
            for d in range(min(FULL, left)):
                to = (key_at + i + d) * LANE_POSITIONS + lane
                store_u16(cache_keys, to, lane_half(lanes, d))
    return 0


@inlined
def store_quantized_key(
    keys: int, at: int, width: int, cache: int, scales: int, position: int
) -> None:
    """Write a head's key as int8 at a position counted over all heads, in quads."""
    scale, inverse = scale_and_inverse(largest_magnitude(keys, at, width))
    store_f32(scales, position, scale)
    group, row = divmod(position, GROUP_POSITIONS)
    quads = -(-width // QUAD_NUMBERS)
    for i in range(0, width, FULL):
        quant = i32_from_float(nearest(load_lanes(keys, at + i, width - i) * splat_f32(inverse)))
        for lane in range(min(FULL, width - i)):
            quad, byte = divmod(i + lane, QUAD_NUMBERS)
            to = ((group * quads + quad) * GROUP_POSITIONS + row) * QUAD_NUMBERS + byte
            store_u8(cache, to, np.uint8(lane_i32(quant, lane)))


@inlined
def store_quantized_value(
    values: int, at: int, width: int, cache: int, scales: int, first_scale: int, position: int
) -> None:
    """Write a head's value as int8 at a position counted over all heads."""
    scale, inverse = scale_and_inverse(largest_magnitude(values, at, width))
    store_f32(scales, first_scale + position, scale)
    store_int8_lanes(values, at, width, ONE, inverse, cache, position * width)


@inlined
def store_int8_lanes(
    x: int, at: int, width: int, factor: np.float32, inverse: np.float32, quants: int, to: int
) -> Any:
    """Write ``width`` float32 as int8 after multiplying them by one number, then the other.

    Returns the sum of what was written.
    """
    total = zeros_i32x8()
    for i in range(0, width, FULL):
        lanes = load_lanes(x, at + i, width - i) * splat_f32(factor)
        quant = i32_from_float(nearest(lanes * splat_f32(inverse)))
        total = total + quant
        if width - i >= FULL:
            store_i32x8_as_i8(quants, to + i, quant)
        else:
            for lane in range(width - i):
                store_u8(quants, to + i + lane, np.uint8(lane_i32(quant, lane)))
    return sum_i32(total)
