"""Compiled kernels of a mixture of experts (rule 11): choosing, multiplying, adding up.

All arguments are addresses of C-ordered arrays and sizes. A pair is a token and one of the experts
that it chose: token * used + slot, a token's slots being its experts in ascending order. ``chosen``
holds the pairs' experts, ``order`` the pairs sorted by expert.
"""

from __future__ import annotations

import numpy as np

from edgellama_kernels.jit import inlined, part
from edgellama_kernels.kinds import BF16
from edgellama_kernels.lanes import FULL, exp_clamped, load_lanes, piece_of, store_lanes
from edgellama_kernels.matmul import multiply
from edgellama_kernels.operations import PAIRS_TILE, SUMS_NUMBERS
from edgellama_kernels.reference import EXP_LOWEST, ZERO
from edgellama_kernels.vec import (
    lane_f32,
    load_f32,
    load_i32x8,
    load_index,
    splat_f32,
    store_f32,
    store_i32,
    store_i32x8,
    zeros_f32x8,
)

LARGEST = np.float32(3.4028234663852886e38)
NONE, TAKEN = 0, 1


@inlined
def exponential(x: np.float32) -> np.float32:
    """Rule 4 for one number."""
    return ZERO if x < EXP_LOWEST else lane_f32(exp_clamped(splat_f32(x)), 0)


@part
def route(
    logits: int, chosen: int, shares: int, order: int, experts: int, used: int, tokens: int,
    scratch: int,
) -> int:  # fmt: skip
    """Choose ``used`` of ``experts`` by float32 [tokens, experts]; 1 where one is not finite.

    All tokens are one unit, as pairs are sorted over all of them.
    """
    for token in range(tokens):
        row = token * experts
        for expert in range(experts):
            logit = load_f32(logits, row + expert)
            if not -LARGEST <= logit <= LARGEST:
                return 1
            store_i32(scratch, expert, np.int32(NONE))
        largest = ZERO
        for slot in range(used):
            best = -1
            for expert in range(experts):
                if load_index(scratch, expert) == NONE and (
                    best < 0 or load_f32(logits, row + expert) > load_f32(logits, row + best)
                ):
                    best = expert
            store_i32(scratch, best, np.int32(TAKEN))
            if slot == 0:
                largest = load_f32(logits, row + best)
        total = ZERO
        pair = token * used
        for expert in range(experts):
            if load_index(scratch, expert) == TAKEN:
                number = exponential(load_f32(logits, row + expert) - largest)
                total = total + number
                store_i32(chosen, pair, np.int32(expert))
                store_f32(shares, pair, number)
                pair += 1
        for pair in range(token * used, (token + 1) * used):
            store_f32(shares, pair, load_f32(shares, pair) / total)
    sort_pairs(chosen, order, experts, tokens * used, scratch)
    return 0


@inlined
def sort_pairs(chosen: int, order: int, experts: int, pairs: int, scratch: int) -> None:
    """Sort pairs by expert, those of one expert by number; counts the experts in ``scratch``."""
    for expert in range(experts + 1):
        store_i32(scratch, expert, np.int32(0))
    for pair in range(pairs):
        after = load_index(chosen, pair) + 1
        store_i32(scratch, after, np.int32(load_index(scratch, after) + 1))
    for expert in range(experts):
        total = load_index(scratch, expert) + load_index(scratch, expert + 1)
        store_i32(scratch, expert + 1, np.int32(total))
    for pair in range(pairs):
        expert = load_index(chosen, pair)
        place = load_index(scratch, expert)
        store_i32(order, place, np.int32(pair))
        store_i32(scratch, expert, np.int32(place + 1))


@inlined
def gather(
    kind: int, columns: int, x: int, quants: int, scales: int, sums: int, rows: int,
    order: int, begin: int, count: int, slots: int, to: int,
) -> None:  # fmt: skip
    """Copy the activations of ``count`` pairs to ``to``, as a matmul of ``count`` tokens wants it.

    They are those of the pair where each has its own (``slots`` 1), else those of its token.
    """
    blocks = columns // 32
    to_scales = to + count * columns
    to_sums = to_scales + 4 * count * blocks
    for n in range(count):
        row = load_index(order, begin + n) // slots
        if kind <= BF16:
            for i in range(0, columns, FULL):
                left = columns - i
                store_lanes(to, n * columns + i, left, load_lanes(x, row * columns + i, left))
        else:
            for block in range(blocks):
                at, place = block * rows + row, block * count + n
                store_i32x8(to, place * 8, load_i32x8(quants, at * 8))
                store_f32(to_scales, place, load_f32(scales, at))
                store_i32(to_sums, place, np.int32(load_index(sums, at)))


@part
def multiply_experts(
    kind: int, weights: int, scales: int, columns: int, rows: int, bytes_each: int,
    x: int, quants: int, x_scales: int, sums: int, slots: int, chosen: int, order: int,
    used: int, y: int, tokens: int, first: int, past: int, scratch: int,
) -> int:  # fmt: skip
    """Multiply each pair's expert with its activations: y is float32 [pairs, rows].

    The groups of eight rows ``first`` up to ``past`` of every expert. Activations lie as for
    ``multiply``, one row for each pair (``slots`` 1) or for each token (``slots`` as ``used``).
    """
    if first >= past:
        return 0
    pairs = tokens * used
    gathered = scratch + 4 * SUMS_NUMBERS
    tile = gathered + 4 * PAIRS_TILE * columns
    begin = 0
    while begin < pairs:
        expert = load_index(chosen, load_index(order, begin))
        end = begin + 1
        while (
            end < min(pairs, begin + PAIRS_TILE)
            and load_index(chosen, load_index(order, end)) == expert
        ):
            end += 1
        count = end - begin
        gather(
            kind, columns, x, quants, x_scales, sums, pairs // slots, order, begin, count, slots,
            gathered,
        )  # fmt: skip
        at_scales = gathered + count * columns
        at_sums = at_scales + 4 * count * (columns // 32)
        multiply(
            kind, weights + expert * bytes_each, scales + expert * bytes_each, columns, rows,
            gathered, gathered, at_scales, at_sums, 0, tile, count, first, past, scratch,
        )  # fmt: skip
        stop = min(past * 8, rows)
        for n in range(count):
            pair = load_index(order, begin + n)
            for i in range(first * 8, stop, FULL):
                left = stop - i
                store_lanes(y, pair * rows + i, left, load_lanes(tile, n * rows + i, left))
        begin = end
    return 0


@part
def mix(
    outputs: int, shares: int, residual: int, y: int, width: int, used: int, first: int, past: int
) -> int:
    """Add up a token's experts, float32 [tokens, used, width]. A unit is a piece of a row."""
    for unit in range(first, past):
        token, start, stop = piece_of(unit, width)
        for i in range(start, stop, FULL):
            left = stop - i
            total = zeros_f32x8()
            for pair in range(token * used, (token + 1) * used):
                share = splat_f32(load_f32(shares, pair))
                total = total + share * load_lanes(outputs, pair * width + i, left)
            if residual != 0:
                total = total + load_lanes(residual, token * width + i, left)
            store_lanes(y, token * width + i, left, total)
    return 0
