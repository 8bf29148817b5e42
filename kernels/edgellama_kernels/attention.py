"""Compiled attention over the fp16 KV cache (rule 7).

The maximum comes first, over all keys, so that nothing is ever rescaled; values are added up in
tiles of 64 absolute positions. Query rows that share a key head are worked on four at a time.
All arguments are addresses and sizes; ``scratch`` holds four rows of scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellama_kernels.interface import LANE_POSITIONS, TILE_POSITIONS
from edgellama_kernels.jit import inlined, part
from edgellama_kernels.lanes import FULL, LOWEST_SCORE, exp_of_scores, load_lanes, store_lanes
from edgellama_kernels.reference import ONE
from edgellama_kernels.vec import (
    broadcast_f32,
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
    tree_max,
    tree_sum,
    zeros_f32x8,
    zeros_i32x8,
)

ROWS_AT_ONCE = 4
QUERY_LIMIT_BITS = np.int32((127 + 100) << 23)  # of 2^100
TILE_CHUNKS = TILE_POSITIONS // LANE_POSITIONS


@part
def round_queries(
    queries: int, rounded: int, width: int, scale: np.float32, first: int, past: int
) -> int:
    """Rule 7 (a) on heads of ``width`` float32; 1 where a score could overflow."""
    largest = zeros_i32x8()
    stop = past * width
    for i in range(first * width, stop, FULL):
        lanes = rounded_13_bits(load_lanes(queries, i, stop - i) * splat_f32(scale))
        largest = larger_i32(largest, magnitude_bits(lanes))
        store_lanes(rounded, i, stop - i, lanes)
    return 1 if max_i32(largest) >= QUERY_LIMIT_BITS else 0


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
def weigh(scores: int, at: int, limit: int, tiles: int) -> Any:
    """Rule 7 (c) to (e): turn one row's scores into weights in place; return 1 / their sum."""
    positions = tiles * TILE_POSITIONS
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
    return splat_f32(ONE) / splat_f32(tree_sum(low + high))


@inlined
def mix_one(
    weights: int, limit: int, values: int, width: int, inverse: Any, y: int, row: int
) -> None:
    """Rule 7 (f) and (g) for one row, 32 dimensions at a time.

    Where dimensions run out the last eight are computed again: same bits, same place.
    """
    last = width - FULL
    for d in range(0, width, 4 * FULL):
        d0, d1 = min(d, last), min(d + 8, last)
        d2, d3 = min(d + 16, last), min(d + 24, last)
        total0 = total1 = total2 = total3 = zeros_f32x8()
        for start in range(0, limit, TILE_POSITIONS):
            sum0 = sum1 = sum2 = sum3 = zeros_f32x8()
            for j in range(start, min(start + TILE_POSITIONS, limit)):
                e = broadcast_f32(weights, j)
                at = j * width
                sum0 = multiply_add_exact(load_half_x8(values, at + d0), e, sum0)
                sum1 = multiply_add_exact(load_half_x8(values, at + d1), e, sum1)
                sum2 = multiply_add_exact(load_half_x8(values, at + d2), e, sum2)
                sum3 = multiply_add_exact(load_half_x8(values, at + d3), e, sum3)
            total0, total1 = total0 + sum0, total1 + sum1
            total2, total3 = total2 + sum2, total3 + sum3
        store_f32x8(y, row + d0, total0 * inverse)
        store_f32x8(y, row + d1, total1 * inverse)
        store_f32x8(y, row + d2, total2 * inverse)
        store_f32x8(y, row + d3, total3 * inverse)


@inlined
def mix_four(
    weights: int, stride: int, limit: int, values: int, width: int, inverses: Any, y: int, rows: Any
) -> None:
    """Rule 7 (f) and (g) for four rows, 16 dimensions at a time; see ``mix_one``."""
    last = width - FULL
    for d in range(0, width, 2 * FULL):
        low, high = min(d, last), min(d + FULL, last)
        ta0 = ta1 = tb0 = tb1 = tc0 = tc1 = td0 = td1 = zeros_f32x8()
        for start in range(0, limit, TILE_POSITIONS):
            a0 = a1 = b0 = b1 = c0 = c1 = d0 = d1 = zeros_f32x8()
            for j in range(start, min(start + TILE_POSITIONS, limit)):
                v0 = load_half_x8(values, j * width + low)
                v1 = load_half_x8(values, j * width + high)
                e = broadcast_f32(weights, j)
                a0, a1 = multiply_add_exact(v0, e, a0), multiply_add_exact(v1, e, a1)
                e = broadcast_f32(weights, j + stride)
                b0, b1 = multiply_add_exact(v0, e, b0), multiply_add_exact(v1, e, b1)
                e = broadcast_f32(weights, j + 2 * stride)
                c0, c1 = multiply_add_exact(v0, e, c0), multiply_add_exact(v1, e, c1)
                e = broadcast_f32(weights, j + 3 * stride)
                d0, d1 = multiply_add_exact(v0, e, d0), multiply_add_exact(v1, e, d1)
            ta0, ta1, tb0, tb1 = ta0 + a0, ta1 + a1, tb0 + b0, tb1 + b1
            tc0, tc1, td0, td1 = tc0 + c0, tc1 + c1, td0 + d0, td1 + d1
        totals = ((ta0, ta1), (tb0, tb1), (tc0, tc1), (td0, td1))
        for row, inverse, total in zip(rows, inverses, totals):  # noqa: B905 - numba has no strict
            store_f32x8(y, row + low, total[0] * inverse)
            store_f32x8(y, row + high, total[1] * inverse)


@part
def attend(
    queries: int, keys: int, values: int, y: int, heads: int, kv_heads: int, width: int,
    capacity: int, tokens: int, position: int, first: int, past: int, scratch: int,
) -> int:  # fmt: skip
    """Rule 7 for rounded queries [tokens, heads, width]; a unit is four rows of one key head.

    Row r of a key head is token ``r // shared`` and its query head ``r % shared``.
    """
    shared = heads // kv_heads
    rows = tokens * shared
    units = -(-rows // ROWS_AT_ONCE)
    for unit in range(first, past):
        head, block = divmod(unit, units)
        key = keys + head * capacity * width * 2
        value = values + head * capacity * width * 2
        start = block * ROWS_AT_ONCE
        stop = min(start + ROWS_AT_ONCE, rows)
        seen = position + (stop - 1) // shared + 1
        tiles = -(-seen // TILE_POSITIONS)
        stride = tiles * TILE_POSITIONS
        if stop - start == ROWS_AT_ONCE:
            r0 = (start // shared * heads + head * shared + start % shared) * width
            n1, n2, n3 = start + 1, start + 2, start + 3
            r1 = (n1 // shared * heads + head * shared + n1 % shared) * width
            r2 = (n2 // shared * heads + head * shared + n2 % shared) * width
            r3 = (n3 // shared * heads + head * shared + n3 % shared) * width
            at = (r0, r1, r2, r3)
            score_four(queries, at, key, tiles, width, scratch, stride)
            inverses = (
                weigh(scratch, 0, position + start // shared + 1, tiles),
                weigh(scratch, stride, position + n1 // shared + 1, tiles),
                weigh(scratch, 2 * stride, position + n2 // shared + 1, tiles),
                weigh(scratch, 3 * stride, position + n3 // shared + 1, tiles),
            )
            mix_four(scratch, stride, seen, value, width, inverses, y, at)
        else:
            for row in range(start, stop):
                limit = position + row // shared + 1
                at_row = (row // shared * heads + head * shared + row % shared) * width
                tiles = -(-limit // TILE_POSITIONS)
                score_one(queries, at_row, key, tiles, width, scratch)
                inverse = weigh(scratch, 0, limit, tiles)
                mix_one(scratch, limit, value, width, inverse, y, at_row)
    return 0
