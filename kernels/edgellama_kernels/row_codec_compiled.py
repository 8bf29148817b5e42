"""The row codec compiled, equal to ``row_codec`` to the bit. Any thread may call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels.elementwise import HALF_TO_FLOAT, store_half_lanes
from edgellama_kernels.jit import inlined, kernel
from edgellama_kernels.lanes import load_lanes
from edgellama_kernels.row_codec import (
    BLOCK_COLUMNS,
    HALF_LARGEST,
    LEVELS,
    PackedRows,
    RowCodec,
    blocks,
    outliers,
)
from edgellama_kernels.team import address
from edgellama_kernels.vec import (
    bits_f32,
    lane_half,
    load_u8,
    load_u16,
    splat_f32,
    store_f32,
    store_u8,
    store_u16,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Added and taken away again, it rounds a positive float32 below 2^22 to an integer, half to even.
ROUNDING = np.float32(12582912.0)
ZERO = np.float32(0)


@inlined
def from_half(magnitude: Any) -> Any:
    """Return the number that the bits of a positive finite fp16 stand for."""
    return bits_f32(np.int32(magnitude << 13)) * HALF_TO_FLOAT


@kernel
def pack_rows(
    halves: int, columns: int, taken: int, scales: int, quants: int, width: int, count: int,
    rows: int,
) -> int:  # fmt: skip
    """Pack rows of ``width``, ``count`` outliers each."""
    per_row = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    for row in range(rows):
        at, out = row * width, row * count
        choose_outliers(halves, at, columns, out, width, count)
        for i in range(count):
            store_u16(taken, out + i, load_u16(halves, at + load_u16(columns, out + i)))
        for block in range(per_row):
            first = block * BLOCK_COLUMNS
            past = min(first + BLOCK_COLUMNS, width)
            largest = np.int64(0)
            for column in range(first, past):
                magnitude = np.int64(load_u16(halves, at + column)) & 0x7FFF
                if magnitude > largest and not contains(columns, out, count, column):
                    largest = magnitude
            scale = lane_half(splat_f32(from_half(largest) / LEVELS), 0)
            store_u16(scales, row * per_row + block, scale)
            quantize_block(halves, quants, at + first, at + past, from_half(np.int64(scale)))
        for i in range(count):
            store_u8(quants, at + load_u16(columns, out + i), np.uint8(0))
    return 0


@inlined
def contains(columns: int, first: int, count: int, column: int) -> bool:
    """Return whether a column is among a row's outliers."""
    found = False
    for i in range(count):
        found |= load_u16(columns, first + i) == column
    return found


@inlined
def choose_outliers(halves: int, at: int, columns: int, out: int, width: int, count: int) -> None:
    """Write the columns of the largest magnitudes, ascending; the lower of equals is larger."""
    kept, least = 0, np.int64(0)  # how many are kept, and the place of the least of them
    for column in range(width):
        magnitude = np.int64(load_u16(halves, at + column)) & 0x7FFF
        if kept == count:
            if magnitude <= magnitude_at(halves, at, columns, out + least):
                continue
            # The columns ascend, so what is removed leaves a gap to be closed.
            for i in range(least, count - 1):
                store_u16(columns, out + i, load_u16(columns, out + i + 1))
            store_u16(columns, out + count - 1, np.uint16(column))
        else:
            store_u16(columns, out + kept, np.uint16(column))
            kept += 1
        least = np.int64(0)
        for i in range(1, kept):
            # Among equals the last one goes first.
            if magnitude_at(halves, at, columns, out + i) <= magnitude_at(
                halves, at, columns, out + least
            ):
                least = np.int64(i)


@inlined
def magnitude_at(halves: int, at: int, columns: int, place: Any) -> Any:
    """Return the bits of the outlier's magnitude, whose order is the numbers'."""
    return np.int64(load_u16(halves, at + load_u16(columns, place))) & 0x7FFF


@inlined
def quantize_block(halves: int, quants: int, first: int, past: int, scale: Any) -> None:
    """Write the nearest level of each number; all are 0 where the scale is."""
    for place in range(first, past):
        bits = np.int64(load_u16(halves, place))
        quotient = ZERO
        if scale > ZERO:
            quotient = from_half(bits & 0x7FFF) / scale
        if quotient > LEVELS:
            quotient = LEVELS
        level = np.int64((quotient + ROUNDING) - ROUNDING)
        if bits > 0x7FFF:
            level = -level
        store_u8(quants, place, np.uint8(level & 0xFF))


@kernel
def unpack_rows(
    columns: int, taken: int, scales: int, quants: int, halves: int, scratch: int, width: int,
    count: int, rows: int,
) -> int:  # fmt: skip
    """Unpack rows; ``scratch`` is a float32 [BLOCK_COLUMNS]."""
    per_row = (width + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    for row in range(rows):
        at, out = row * width, row * count
        for block in range(per_row):
            first = at + block * BLOCK_COLUMNS
            size = min(BLOCK_COLUMNS, at + width - first)
            scale = from_half(np.int64(load_u16(scales, row * per_row + block)))
            for i in range(size):
                level = np.int64(load_u8(quants, first + i))
                if level > 127:
                    level -= 256
                number = np.float32(level) * scale
                number = min(max(number, -HALF_LARGEST), HALF_LARGEST)
                store_f32(scratch, i, number)
            for i in range(0, size, 8):
                store_half_lanes(halves, first + i, size - i, load_lanes(scratch, i, size - i))
        for i in range(count):
            store_u16(halves, at + load_u16(columns, out + i), load_u16(taken, out + i))
    return 0


def pack(halves: NDArray[np.uint16]) -> PackedRows:
    """Do what ``row_codec.pack`` does."""
    halves = np.ascontiguousarray(halves)
    rows, width = halves.shape
    count = outliers(width)
    packed = PackedRows(
        np.empty((rows, count), np.uint16),
        np.empty((rows, count), np.uint16),
        np.empty((rows, blocks(width)), np.uint16),
        np.empty((rows, width), np.int8),
    )
    columns, taken, scales, quants = (address(part) for part in packed)
    pack_rows(address(halves), columns, taken, scales, quants, width, count, rows)
    return packed


def unpack(packed: PackedRows) -> NDArray[np.uint16]:
    """Do what ``row_codec.unpack`` does."""
    packed = PackedRows._make(np.ascontiguousarray(part) for part in packed)
    rows, width = packed.quants.shape
    halves = np.empty((rows, width), np.uint16)
    scratch = np.empty(BLOCK_COLUMNS, np.float32)
    count = packed.columns.shape[1]
    columns, taken, scales, quants = (address(part) for part in packed)
    to, block = address(halves), address(scratch)
    unpack_rows(columns, taken, scales, quants, to, block, width, count, rows)
    return halves


COMPILED = RowCodec(pack, unpack)
