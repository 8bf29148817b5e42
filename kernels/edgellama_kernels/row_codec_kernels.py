"""The kernels of the row codec, equal to ``row_codec`` to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgellama_kernels.elementwise import HALF_TO_FLOAT, largest_magnitude, store_half_lanes
from edgellama_kernels.jit import inlined, kernel
from edgellama_kernels.lanes import load_lanes
from edgellama_kernels.row_codec import (
    BLOCK_COLUMNS,
    HALF_LARGEST,
    LEVELS,
    SHRINKING,
    SIDE,
)
from edgellama_kernels.vec import (
    bits_f32,
    i32_from_float,
    lane_half,
    larger,
    load_f32,
    load_f32x8,
    load_half_x8,
    load_u8,
    load_u16,
    nearest,
    smaller,
    splat_f32,
    store_f32,
    store_f32x8,
    store_i32x8_as_i8,
    store_u16,
    zeros_f32x8,
)

ZERO = np.float32(0)


@inlined
def from_half(bits: Any) -> Any:
    """Return the number that the bits of a finite fp16 stand for."""
    number = bits_f32(np.int32((bits & 0x7FFF) << 13)) * HALF_TO_FLOAT
    return -number if bits > 0x7FFF else number


@kernel
def pack_rows(
    halves: int, columns: int, taken: int, scales: int, quants: int, scratch: int, width: int,
    count: int, rows: int,
) -> int:  # fmt: skip
    """Pack rows, ``count`` outliers each; ``scratch`` is a float32 [SCRATCH_NUMBERS]."""
    per_row = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    for row in range(rows):
        at, out = row * width, row * count
        choose_outliers(halves, at, columns, out, width, count)
        for i in range(count):
            store_u16(taken, out + i, load_u16(halves, at + load_u16(columns, out + i)))
        for block in range(per_row):
            first = block * BLOCK_COLUMNS
            load_block(halves, at + first, min(BLOCK_COLUMNS, width - first), scratch)
            for i in range(count):
                column = np.int64(load_u16(columns, out + i))
                if first <= column < first + BLOCK_COLUMNS:
                    store_f32(scratch, column - first, ZERO)
            rotate(scratch)
            to = row * per_row + block
            largest = bits_f32(largest_magnitude(scratch, 0, BLOCK_COLUMNS))
            scale = np.int64(lane_half(splat_f32(largest / LEVELS), 0))
            store_u16(scales, to, np.uint16(scale))
            quantize_block(scratch, quants, to * BLOCK_COLUMNS, from_half(scale))
    return 0


@inlined
def load_block(halves: int, at: int, size: int, scratch: int) -> None:
    """Write a block as float32, zeros behind its columns."""
    whole = size // SIDE * SIDE
    for i in range(0, whole, SIDE):
        store_f32x8(scratch, i, load_half_x8(halves, at + i))
    for i in range(whole, BLOCK_COLUMNS):
        store_f32(scratch, i, from_half(np.int64(load_u16(halves, at + i))) if i < size else ZERO)


@inlined
def rotate(scratch: int) -> None:
    """Do what ``row_codec.rotated`` does to the first 64 numbers; the others are for its work."""
    add_rows(scratch, 0)
    for row in range(SIDE):
        for column in range(SIDE):
            number = load_f32(scratch, row * SIDE + column)
            store_f32(scratch, BLOCK_COLUMNS + column * SIDE + row, number)
    add_rows(scratch, BLOCK_COLUMNS)
    for i in range(0, BLOCK_COLUMNS, SIDE):
        shrunk = load_f32x8(scratch, BLOCK_COLUMNS + i) * splat_f32(SHRINKING)
        store_f32x8(scratch, i, shrunk)


@inlined
def add_rows(scratch: int, at: int) -> None:
    """Write sums and differences of rows 1, 2 and 4 apart, eight numbers each."""
    apart = 1
    while apart < SIDE:
        for start in range(0, SIDE, 2 * apart):
            for row in range(start, start + apart):
                to, other = at + row * SIDE, at + (row + apart) * SIDE
                first, second = load_f32x8(scratch, to), load_f32x8(scratch, other)
                store_f32x8(scratch, to, first + second)
                store_f32x8(scratch, other, first - second)
        apart *= 2


@inlined
def quantize_block(scratch: int, quants: int, to: int, scale: Any) -> None:
    """Write the nearest level of each number; all are 0 where the scale is."""
    for i in range(0, BLOCK_COLUMNS, SIDE):
        levels = zeros_f32x8()
        if scale > ZERO:
            levels = nearest(load_f32x8(scratch, i) / splat_f32(scale))
            levels = smaller(larger(levels, splat_f32(-LEVELS)), splat_f32(LEVELS))
        store_i32x8_as_i8(quants, to + i, i32_from_float(levels))


@inlined
def choose_outliers(halves: int, at: int, columns: int, out: int, width: int, count: int) -> None:
    """Write the columns of the largest magnitudes, ascending; the lower of equals is larger."""
    kept, least = 0, np.int64(0)  # how many are kept, and the place of the least of them
    bar = np.int64(-1)  # its magnitude
    for column in range(width):
        magnitude = np.int64(load_u16(halves, at + column)) & 0x7FFF
        if kept == count:
            if magnitude <= bar:
                continue
            # The columns ascend, so what is removed leaves a gap to be closed.
            for i in range(least, count - 1):
                store_u16(columns, out + i, load_u16(columns, out + i + 1))
            store_u16(columns, out + count - 1, np.uint16(column))
        else:
            store_u16(columns, out + kept, np.uint16(column))
            kept += 1
        bar = np.int64(0x8000)
        for i in range(kept):
            known = np.int64(load_u16(halves, at + load_u16(columns, out + i))) & 0x7FFF
            if known <= bar:  # among equals the last one goes first
                bar, least = known, np.int64(i)


@kernel
def unpack_rows(
    columns: int, taken: int, scales: int, quants: int, halves: int, scratch: int, width: int,
    count: int, rows: int,
) -> int:  # fmt: skip
    """Unpack rows; ``scratch`` is as in ``pack_rows``."""
    per_row = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    for row in range(rows):
        at, out = row * width, row * count
        for block in range(per_row):
            first, place = block * BLOCK_COLUMNS, row * per_row + block
            scale = from_half(np.int64(load_u16(scales, place)))
            for i in range(BLOCK_COLUMNS):
                level = np.int64(load_u8(quants, place * BLOCK_COLUMNS + i))
                store_f32(scratch, i, np.float32(level - 256 if level > 127 else level) * scale)
            rotate(scratch)
            size = min(BLOCK_COLUMNS, width - first)
            for i in range(0, size, SIDE):
                lanes = load_lanes(scratch, i, size - i)
                lanes = smaller(larger(lanes, splat_f32(-HALF_LARGEST)), splat_f32(HALF_LARGEST))
                store_half_lanes(halves, at + first + i, size - i, lanes)
        for i in range(count):
            store_u16(halves, at + load_u16(columns, out + i), load_u16(taken, out + i))
    return 0
