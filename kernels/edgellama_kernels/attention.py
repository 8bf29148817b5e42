"""Compiled attention over the KV cache (rule 7), fp16 or int8.

The maximum comes first, over all keys, so that nothing is ever rescaled; values are added up in
tiles of 64 absolute positions. Query rows that share a key head are worked on four at a time.
All arguments are addresses and sizes; ``scratch`` is what
``operations.attention_scratch`` says: four rows of scores, then of mixed values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellama_kernels.block_words import bytes_start, dot_bytes, dot_quads, load_block, load_i8x8
from edgellama_kernels.elementwise import scale_and_inverse, store_int8_lanes
from edgellama_kernels.interface import (
    GROUP_POSITIONS,
    LANE_POSITIONS,
    QUAD_NUMBERS,
    TILE_POSITIONS,
)
from edgellama_kernels.jit import inlined, part
from edgellama_kernels.lanes import FULL, LOWEST_SCORE, exp_of_scores, load_lanes, store_lanes
from edgellama_kernels.operations import MIXED_AT_ONCE, ROWS_AT_ONCE
from edgellama_kernels.reference import ONE
from edgellama_kernels.vec import (
    broadcast_f32,
    broadcast_i32,
    float_from_i32,
    larger,
    larger_i32,
    load_f32x8,
    load_half_x8,
    magnitude_bits,
    max_i32,
    multiply_add_exact,
    rounded_13_bits,
    splat_f32,
    store_f32,
    store_f32x8,
    store_i32,
    store_u8,
    tree_max,
    tree_sum,
    zeros_f32x8,
    zeros_i32x8,
)

QUERY_LIMIT_BITS = np.int32((127 + 100) << 23)  # of 2^100
TILE_CHUNKS = TILE_POSITIONS // LANE_POSITIONS
TILE_GROUPS = TILE_POSITIONS // GROUP_POSITIONS
BLOCK_QUADS = 8  # that a word multiplies at once


@inlined
def mixing_room(width: int) -> int:
    """Return how many numbers a row's sums take while its values are mixed."""
    return -(-width // MIXED_AT_ONCE) * MIXED_AT_ONCE


@part
def round_queries(
    queries: int, rounded: int, scales: int, width: int, scale: np.float32, first: int, past: int
) -> int:
    """Rule 7 (a) on heads of ``width`` float32; 1 where a score could overflow.

    With ``scales`` they become int8, filled up to whole quads.
    """
    if scales != 0:
        return quantize_queries(queries, rounded, scales, width, scale, first, past)
    largest = zeros_i32x8()
    stop = past * width
    for i in range(first * width, stop, FULL):
        lanes = rounded_13_bits(load_lanes(queries, i, stop - i) * splat_f32(scale))
        largest = larger_i32(largest, magnitude_bits(lanes))
        store_lanes(rounded, i, stop - i, lanes)
    return 1 if max_i32(largest) >= QUERY_LIMIT_BITS else 0


@part
def quantize_queries(
    queries: int, quants: int, scales: int, width: int, scale: np.float32, first: int, past: int
) -> int:
    """Rule 7 (a), int8: scaled, then quantised by rule 2, a head being the block.

    Of each head ``scales`` gets the scale and the sum of the quants, four bytes each.
    """
    room = -(-width // QUAD_NUMBERS) * QUAD_NUMBERS
    for head in range(first, past):
        at = head * width
        largest = zeros_i32x8()
        for i in range(0, width, FULL):
            lanes = load_lanes(queries, at + i, width - i) * splat_f32(scale)
            largest = larger_i32(largest, magnitude_bits(lanes))
        bits = max_i32(largest)
        if bits >= QUERY_LIMIT_BITS:
            return 1
        head_scale, inverse = scale_and_inverse(bits)
        total = store_int8_lanes(queries, at, width, scale, inverse, quants, head * room)
        for i in range(width, room):
            store_u8(quants, head * room + i, 0)
        store_f32(scales, 2 * head, head_scale)
        store_i32(scales, 2 * head + 1, total)
    return 0


@inlined
def query_start(query_scales: int, row: int) -> Any:
    """Return where sums of products with an int8 query start."""
    return bytes_start(broadcast_i32(query_scales, 2 * row + 1))


@inlined
def score_one_quantized(
    queries: int, query_scales: int, row: int, keys: int, key_scales: int, tiles: int,
    width: int, scores: int,
) -> None:  # fmt: skip
    """Rule 7 (b), int8: one query row, 8 positions at a time."""
    quads = -(-width // QUAD_NUMBERS)
    whole = quads // BLOCK_QUADS * BLOCK_QUADS
    room = quads * QUAD_NUMBERS
    start = query_start(query_scales, row)
    for group in range(tiles * TILE_GROUPS):
        dots = start
        base = group * room * GROUP_POSITIONS
        for i in range(0, whole * QUAD_NUMBERS, BLOCK_QUADS * QUAD_NUMBERS):
            key = load_block(keys, base + i * GROUP_POSITIONS)
            dots = dot_bytes(key, queries, row * room + i, dots)
        for i in range(whole * QUAD_NUMBERS, room, QUAD_NUMBERS):
            dots = dot_quads(keys, base + i * GROUP_POSITIONS, queries, row * room + i, dots)
        to = group * GROUP_POSITIONS
        factor = broadcast_f32(query_scales, 2 * row) * load_f32x8(key_scales, to)
        store_f32x8(scores, to, float_from_i32(dots) * factor)


@inlined
def score_four_quantized(
    queries: int, query_scales: int, rows: Any, keys: int, key_scales: int, tiles: int,
    width: int, scores: int, stride: int,
) -> None:  # fmt: skip
    """Rule 7 (b), int8: four query rows, 8 positions at a time; each key is read once for all."""
    quads = -(-width // QUAD_NUMBERS)
    whole = quads // BLOCK_QUADS * BLOCK_QUADS
    room = quads * QUAD_NUMBERS
    row0, row1, row2, row3 = rows
    x0, x1, x2, x3 = row0 * room, row1 * room, row2 * room, row3 * room
    starts = (
        query_start(query_scales, row0),
        query_start(query_scales, row1),
        query_start(query_scales, row2),
        query_start(query_scales, row3),
    )
    for group in range(tiles * TILE_GROUPS):
        dots0, dots1, dots2, dots3 = starts
        base = group * room * GROUP_POSITIONS
        for i in range(0, whole * QUAD_NUMBERS, BLOCK_QUADS * QUAD_NUMBERS):
            key = load_block(keys, base + i * GROUP_POSITIONS)
            dots0 = dot_bytes(key, queries, x0 + i, dots0)
            dots1 = dot_bytes(key, queries, x1 + i, dots1)
            dots2 = dot_bytes(key, queries, x2 + i, dots2)
            dots3 = dot_bytes(key, queries, x3 + i, dots3)
        for i in range(whole * QUAD_NUMBERS, room, QUAD_NUMBERS):
            at = base + i * GROUP_POSITIONS
            dots0 = dot_quads(keys, at, queries, x0 + i, dots0)
            dots1 = dot_quads(keys, at, queries, x1 + i, dots1)
            dots2 = dot_quads(keys, at, queries, x2 + i, dots2)
            dots3 = dot_quads(keys, at, queries, x3 + i, dots3)
        scale = load_f32x8(key_scales, group * GROUP_POSITIONS)
        to = group * GROUP_POSITIONS
        for row, dots in ((row0, dots0), (row1, dots1), (row2, dots2), (row3, dots3)):
            factor = broadcast_f32(query_scales, 2 * row) * scale
            store_f32x8(scores, to, float_from_i32(dots) * factor)
            to += stride


@inlined
def load_values(values: int, index: int, quantized: bool) -> Any:
    """Load eight numbers of a cached value as float32, exactly."""
    if quantized:
        return float_from_i32(load_i8x8(values, index))
    return load_half_x8(values, index)


@inlined
def score_one(queries: int, row: int, keys: int, tiles: int, width: int, scores: int) -> None:
    """Rule 7 (b): one query row against ``tiles`` tiles of keys, 64 positions at a time."""
    chunk_numbers = width * LANE_POSITIONS
    for tile in range(tiles):
        base = tile * TILE_CHUNKS * chunk_numbers
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros_f32x8()
        for d in range(width):
            q = broadcast_f32(queries, row + d)
            at = base + d * LANE_POSITIONS
            s0 = multiply_add_exact(load_half_x8(keys, at), q, s0)
            s1 = multiply_add_exact(load_half_x8(keys, at + 8), q, s1)
            at += chunk_numbers
            s2 = multiply_add_exact(load_half_x8(keys, at), q, s2)
            s3 = multiply_add_exact(load_half_x8(keys, at + 8), q, s3)
            at += chunk_numbers
            s4 = multiply_add_exact(load_half_x8(keys, at), q, s4)
            s5 = multiply_add_exact(load_half_x8(keys, at + 8), q, s5)
            at += chunk_numbers
            s6 = multiply_add_exact(load_half_x8(keys, at), q, s6)
            s7 = multiply_add_exact(load_half_x8(keys, at + 8), q, s7)
        to = tile * TILE_POSITIONS
        for i, lanes in enumerate((s0, s1, s2, s3, s4, s5, s6, s7)):
            store_f32x8(scores, to + i * FULL, lanes)


@inlined
def score_four(
    queries: int, rows: Any, keys: int, tiles: int, width: int, scores: int, stride: int
) -> None:
    """Rule 7 (b): four query rows, 16 positions at a time; each key is read once for all."""
    row0, row1, row2, row3 = rows
    for chunk in range(tiles * TILE_CHUNKS):
        at = chunk * width * LANE_POSITIONS
        a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = zeros_f32x8()
        for d in range(width):
            low = load_half_x8(keys, at)
            high = load_half_x8(keys, at + 8)
            at += LANE_POSITIONS
            q = broadcast_f32(queries, row0 + d)
            a0, a1 = multiply_add_exact(low, q, a0), multiply_add_exact(high, q, a1)
            q = broadcast_f32(queries, row1 + d)
            b0, b1 = multiply_add_exact(low, q, b0), multiply_add_exact(high, q, b1)
            q = broadcast_f32(queries, row2 + d)
            c0, c1 = multiply_add_exact(low, q, c0), multiply_add_exact(high, q, c1)
            q = broadcast_f32(queries, row3 + d)
            d0, d1 = multiply_add_exact(low, q, d0), multiply_add_exact(high, q, d1)
        to = chunk * LANE_POSITIONS
        for low, high in ((a0, a1), (b0, b1), (c0, c1), (d0, d1)):
            store_f32x8(scores, to, low)
            store_f32x8(scores, to + 8, high)
            to += stride


@inlined
def weigh(scores: int, at: int, limit: int, window: int, tiles: int, value_scales: int) -> Any:
    """Rule 7 (c) to (e): turn one row's scores into weights in place; return 1 / their sum.

    Only the last ``window`` positions before ``limit`` weigh anything. With ``value_scales`` the
    weights are multiplied by them when their sum is made.
    """
    positions = tiles * TILE_POSITIONS
    for i in range(limit - window):
        store_f32(scores, at + i, LOWEST_SCORE)
    for i in range(limit, positions):
        store_f32(scores, at + i, LOWEST_SCORE)
    largest = splat_f32(LOWEST_SCORE)
    for i in range(at, at + positions, FULL):
        largest = larger(largest, load_f32x8(scores, i))
    largest = splat_f32(tree_max(largest))
    low = high = zeros_f32x8()
    for i in range(at, at + positions, LANE_POSITIONS):
        weights = rounded_13_bits(exp_of_scores(load_f32x8(scores, i) - largest))
        store_f32x8(scores, i, weights)
        low = low + weights
        weights = rounded_13_bits(exp_of_scores(load_f32x8(scores, i + 8) - largest))
        store_f32x8(scores, i + 8, weights)
        high = high + weights
    if value_scales != 0:
        for i in range(0, positions, FULL):
            weights = load_f32x8(scores, at + i) * load_f32x8(value_scales, i)
            store_f32x8(scores, at + i, rounded_13_bits(weights))
    return splat_f32(ONE) / splat_f32(tree_sum(low + high))


@inlined
def add_up(totals: int, index: int, start: int, lanes: Any) -> None:
    """Add a tile's sums to those of the tiles before it; ``start`` is where the tile begins."""
    if start > 0:
        lanes = load_f32x8(totals, index) + lanes
    store_f32x8(totals, index, lanes)


@inlined
def mix_one(
    weights: int, limit: int, values: int, width: int, totals: int, quantized: bool
) -> None:
    """Rule 7 (f) for one row, 32 dimensions at a time.

    Where dimensions run out the last eight are computed again, and left where nobody looks.
    """
    last = width - FULL
    for start in range(0, limit, TILE_POSITIONS):
        for d in range(0, width, 4 * FULL):
            d0, d1 = min(d, last), min(d + 8, last)
            d2, d3 = min(d + 16, last), min(d + 24, last)
            sum0 = sum1 = sum2 = sum3 = zeros_f32x8()
            for j in range(start, min(start + TILE_POSITIONS, limit)):
                e = broadcast_f32(weights, j)
                at = j * width
                sum0 = multiply_add_exact(load_values(values, at + d0, quantized), e, sum0)
                sum1 = multiply_add_exact(load_values(values, at + d1, quantized), e, sum1)
                sum2 = multiply_add_exact(load_values(values, at + d2, quantized), e, sum2)
                sum3 = multiply_add_exact(load_values(values, at + d3, quantized), e, sum3)
            for i, sums in enumerate((sum0, sum1, sum2, sum3)):
                add_up(totals, d + i * FULL, start, sums)


@inlined
def mix_four(
    weights: int, stride: int, limit: int, values: int, width: int, totals: int, quantized: bool
) -> None:
    """Rule 7 (f) for four rows, 16 dimensions at a time; see ``mix_one``."""
    last = width - FULL
    room = mixing_room(width)
    for start in range(0, limit, TILE_POSITIONS):
        for d in range(0, width, 2 * FULL):
            low, high = min(d, last), min(d + FULL, last)
            a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = zeros_f32x8()
            for j in range(start, min(start + TILE_POSITIONS, limit)):
                v0 = load_values(values, j * width + low, quantized)
                v1 = load_values(values, j * width + high, quantized)
                e = broadcast_f32(weights, j)
                a0, a1 = multiply_add_exact(v0, e, a0), multiply_add_exact(v1, e, a1)
                e = broadcast_f32(weights, j + stride)
                b0, b1 = multiply_add_exact(v0, e, b0), multiply_add_exact(v1, e, b1)
                e = broadcast_f32(weights, j + 2 * stride)
                c0, c1 = multiply_add_exact(v0, e, c0), multiply_add_exact(v1, e, c1)
                e = broadcast_f32(weights, j + 3 * stride)
                d0, d1 = multiply_add_exact(v0, e, d0), multiply_add_exact(v1, e, d1)
            at = d
            for sums in ((a0, a1), (b0, b1), (c0, c1), (d0, d1)):
                add_up(totals, at, start, sums[0])
                add_up(totals, at + FULL, start, sums[1])
                at += room


@inlined
def finish_mixing(totals: int, width: int, inverse: Any, y: int, row: int) -> None:
    """Rule 7 (g) for one row."""
    last = width - FULL
    for d in range(0, width, FULL):
        store_f32x8(y, row + min(d, last), load_f32x8(totals, d) * inverse)


@inlined
def attend_kind(
    queries: int, query_scales: int, keys: int, values: int, cache_scales: int, y: int,
    heads: int, kv_heads: int, width: int, capacity: int, window: int, tokens: int,
    position: int, first: int, past: int, scratch: int, quantized: bool,
) -> None:  # fmt: skip
    """Attend with one kind of cache, known when this is compiled."""
    shared = heads // kv_heads
    rows = tokens * shared
    units = -(-rows // ROWS_AT_ONCE)
    for unit in range(first, past):
        head, block = divmod(unit, units)
        start = block * ROWS_AT_ONCE
        stop = min(start + ROWS_AT_ONCE, rows)
        # Tiles before what the first row sees are left out, and positions count from there.
        unseen = max(0, position + start // shared + 1 - window)
        left_out = unseen // TILE_POSITIONS * TILE_POSITIONS
        base = position - left_out
        first_position = head * capacity + left_out
        key, value, key_scales, value_scales = keys, values, 0, 0
        if quantized:
            key += first_position * -(-width // QUAD_NUMBERS) * QUAD_NUMBERS
            value += first_position * width
            key_scales = cache_scales + 4 * first_position
            value_scales = cache_scales + 4 * (kv_heads * capacity + first_position)
        else:
            key += 2 * first_position * width
            value += 2 * first_position * width
        seen = base + (stop - 1) // shared + 1
        tiles = -(-seen // TILE_POSITIONS)
        stride = tiles * TILE_POSITIONS
        if stop - start == ROWS_AT_ONCE:
            n1, n2, n3 = start + 1, start + 2, start + 3
            r0 = start // shared * heads + head * shared + start % shared
            r1 = n1 // shared * heads + head * shared + n1 % shared
            r2 = n2 // shared * heads + head * shared + n2 % shared
            r3 = n3 // shared * heads + head * shared + n3 % shared
            at = (r0 * width, r1 * width, r2 * width, r3 * width)
            if quantized:
                score_four_quantized(
                    queries, query_scales, (r0, r1, r2, r3), key, key_scales, tiles, width,
                    scratch, stride,
                )  # fmt: skip
            else:
                score_four(queries, at, key, tiles, width, scratch, stride)
            inverses = (
                weigh(scratch, 0, base + start // shared + 1, window, tiles, value_scales),
                weigh(scratch, stride, base + n1 // shared + 1, window, tiles, value_scales),
                weigh(scratch, 2 * stride, base + n2 // shared + 1, window, tiles, value_scales),
                weigh(scratch, 3 * stride, base + n3 // shared + 1, window, tiles, value_scales),
            )
            totals = scratch + 4 * ROWS_AT_ONCE * stride
            mix_four(scratch, stride, seen, value, width, totals, quantized)
            for row_at, inverse in zip(at, inverses):  # noqa: B905 - numba has no strict
                finish_mixing(totals, width, inverse, y, row_at)
                totals += 4 * mixing_room(width)
        else:
            for n in range(start, stop):
                limit = base + n // shared + 1
                row = n // shared * heads + head * shared + n % shared
                tiles = -(-limit // TILE_POSITIONS)
                if quantized:
                    score_one_quantized(
                        queries, query_scales, row, key, key_scales, tiles, width, scratch
                    )
                else:
                    score_one(queries, row * width, key, tiles, width, scratch)
                inverse = weigh(scratch, 0, limit, window, tiles, value_scales)
                totals = scratch + 4 * tiles * TILE_POSITIONS
                mix_one(scratch, limit, value, width, totals, quantized)
                finish_mixing(totals, width, inverse, y, row * width)


@part
def attend(
    queries: int, query_scales: int, keys: int, values: int, cache_scales: int, y: int,
    heads: int, kv_heads: int, width: int, capacity: int, window: int, tokens: int,
    position: int, first: int, past: int, scratch: int,
) -> int:  # fmt: skip
    """Rule 7 for queries as (a) made them; a unit is four rows of a key head.

    Row r of a key head is token ``r // shared`` and its query head ``r % shared``.
    """
    if cache_scales == 0:
        attend_kind(
            queries, 0, keys, values, 0, y, heads, kv_heads, width, capacity, window, tokens,
            position, first, past, scratch, False,
        )  # fmt: skip
    else:
        attend_kind(
            queries, query_scales, keys, values, cache_scales, y, heads, kv_heads, width,
            capacity, window, tokens, position, first, past, scratch, True,
        )  # fmt: skip
    return 0
