"""Functions of vectors that several kernels share; each becomes part of its callers."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellama_kernels.jit import inlined
from edgellama_kernels.operations import PIECE_NUMBERS
from edgellama_kernels.reference import (
    EXP_COEFFICIENTS,
    EXP_FIRST,
    EXP_HIGHEST,
    EXP_LOWEST,
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    ONE,
)
from edgellama_kernels.vec import (
    i32_from_float,
    lane_f32,
    larger,
    load_f32,
    load_f32x8,
    nearest,
    power_of_two,
    smaller,
    splat_f32,
    store_f32,
    store_f32x8,
    with_lane_f32,
    zeros_f32x8,
)

F32x8 = Any  # eight float32 in one vector
FULL = 8
NOT_FINITE_BITS = np.int32(0x7F800000)  # of a magnitude: infinity, and NaN above it
C1, C2, C3, C4, C5 = EXP_COEFFICIENTS
LOWEST_SCORE = np.float32(-3.0e38)  # below every score, and its exponential is 0


@inlined
def piece_of(unit: int, width: int) -> Any:
    """Return the row, the first column and the one past the last of a unit: a piece of a row."""
    pieces = -(-width // PIECE_NUMBERS)
    start = unit % pieces * PIECE_NUMBERS
    return unit // pieces, start, min(start + PIECE_NUMBERS, width)


@inlined
def load_lanes(address: int, index: int, count: int) -> F32x8:
    """Load ``count`` float32, at most 8, and zeros after them."""
    if count >= FULL:
        return load_f32x8(address, index)
    vector = zeros_f32x8()
    for lane in range(count):
        vector = with_lane_f32(vector, lane, load_f32(address, index + lane))
    return vector


@inlined
def store_lanes(address: int, index: int, count: int, vector: F32x8) -> None:
    """Store the first ``count`` lanes, at most 8."""
    if count >= FULL:
        store_f32x8(address, index, vector)
    else:
        for lane in range(count):
            store_f32(address, index + lane, lane_f32(vector, lane))


@inlined
def exp_within(z: F32x8) -> F32x8:
    """Rule 4 for arguments that lie in -87..88 already."""
    k = nearest(z * splat_f32(LOG2_E))
    r = z - k * splat_f32(LN2_HIGH)
    r = r - k * splat_f32(LN2_LOW)
    p = splat_f32(EXP_FIRST)
    p = splat_f32(C1) + p * r
    p = splat_f32(C2) + p * r
    p = splat_f32(C3) + p * r
    p = splat_f32(C4) + p * r
    p = splat_f32(C5) + p * r
    y = (r + p * (r * r)) + splat_f32(ONE)
    return y * power_of_two(i32_from_float(k))


@inlined
def exp_clamped(x: F32x8) -> F32x8:
    """Rule 4 without its last step: e^-87 below -87, which 1 + exp(x) cannot tell from 0."""
    return exp_within(smaller(larger(x, splat_f32(EXP_LOWEST)), splat_f32(EXP_HIGHEST)))


@inlined
def exp_of_scores(x: F32x8) -> F32x8:
    """Rule 4 for x <= 0 where results below 2^-64 will be taken for zero: -87 is low enough."""
    return exp_within(larger(x, splat_f32(EXP_LOWEST)))
