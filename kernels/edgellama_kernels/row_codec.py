"""Hidden rows in half of their bytes, for a link that may lose a little: rule 11 in NumPy.

The fp16 numbers of a row, without its exponent, become bytes in blocks of 64 columns with an fp16
scale each. The four largest of the row go as they are, so that one channel that stands out does
not coarsen its neighbours; the rest of a block is rotated, so that its numbers are about equally
large. Each row is packed by itself and in one stated order: the bytes depend neither on which rows
travel together nor on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SIDE = 8
BLOCK_COLUMNS = SIDE * SIDE
OUTLIERS = 4  # of a row: more than the channels that stand out in known models' rows
LEVELS = np.float32(127)
SHRINKING = np.float32(1 / SIDE)  # makes the rotation one: lengths stay what they are
HALF_LARGEST = np.float32(65504)  # of a finite fp16


class PackedRows(NamedTuple):
    """T rows; ``outliers(width)`` and ``blocks(width)`` say how many of each a row has."""

    columns: NDArray[np.uint16]  # [T, outliers], ascending in each row
    outliers: NDArray[np.uint16]  # [T, outliers], fp16 bits
    scales: NDArray[np.uint16]  # [T, blocks], fp16 bits, positive or 0
    quants: NDArray[np.int8]  # [T, blocks * 64], -127 to 127


class RowCodec(NamedTuple):
    """``pack`` takes finite fp16 bits [T, width]; ``unpack`` takes what it returns, and the width.

    Any quants, finite scales and outliers at different columns below the width can be unpacked.
    """

    pack: Callable[[NDArray[np.uint16]], PackedRows]
    unpack: Callable[[PackedRows, int], NDArray[np.uint16]]


def outliers(width: int) -> int:
    """Return how many numbers of a row go as they are."""
    return min(OUTLIERS, width)


def blocks(width: int) -> int:
    """Return how many blocks a row has; the last one may end in zeros that are no columns."""
    return -(-width // BLOCK_COLUMNS)


def pack(halves: NDArray[np.uint16]) -> PackedRows:
    """Pack rows: the largest numbers, the lowest column first among equals, then the blocks."""
    rows, width = halves.shape
    columns = np.sort(_largest(halves, outliers(width)), axis=1)
    taken = np.take_along_axis(halves, columns, axis=1)
    numbers = np.zeros((rows, blocks(width) * BLOCK_COLUMNS), np.float32)
    numbers[:, :width] = halves.view(np.float16)
    np.put_along_axis(numbers, columns, np.float32(0), axis=1)
    grouped = rotated(numbers.reshape(rows, blocks(width), SIDE, SIDE))
    scales = (np.abs(grouped).max(axis=(2, 3), initial=0) / LEVELS).astype(np.float16)
    wide = scales.astype(np.float32)[:, :, None, None]
    # A scale among the least fp16 numbers is coarse, so a quotient may exceed the levels.
    quotients = np.divide(grouped, wide, out=np.zeros_like(grouped), where=wide > 0)
    quants = np.clip(np.rint(quotients), -LEVELS, LEVELS).astype(np.int8)
    return PackedRows(
        columns.astype(np.uint16), taken, scales.view(np.uint16), quants.reshape(numbers.shape)
    )


def unpack(packed: PackedRows, width: int) -> NDArray[np.uint16]:
    """Return the fp16 bits [T, width]: quants times scales, rotated back, rounded to fp16."""
    rows, count = packed.scales.shape
    wide = packed.scales.view(np.float16).astype(np.float32)[:, :, None, None]
    grouped = packed.quants.reshape(rows, count, SIDE, SIDE).astype(np.float32) * wide
    numbers = rotated(grouped).reshape(packed.quants.shape)[:, :width]
    limited = np.clip(numbers, -HALF_LARGEST, HALF_LARGEST).astype(np.float16)
    halves: NDArray[np.uint16] = limited.view(np.uint16)
    np.put_along_axis(halves, packed.columns.astype(np.int64), packed.outliers, axis=1)
    return halves


def rotated(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return H x^T H / 8 for blocks x [..., 8, 8] and the Hadamard matrix H; twice, it is x again.

    Sums and differences of rows 1, 2 and 4 apart, in this order, transposed, and once more.
    """
    return _sums(np.swapaxes(_sums(x), -1, -2)) * SHRINKING


def _sums(x: NDArray[np.float32]) -> NDArray[np.float32]:
    for apart in (1, 2, 4):
        pairs = x.reshape(*x.shape[:-2], SIDE // (2 * apart), 2, apart, SIDE)
        first, second = pairs[..., 0, :, :], pairs[..., 1, :, :]
        x = np.stack([first + second, first - second], axis=-3).reshape(x.shape)
    return x


def _largest(halves: NDArray[np.uint16], count: int) -> NDArray[np.int64]:
    """Return the columns of each row's largest magnitudes, the largest first."""
    magnitudes = (halves & np.uint16(0x7FFF)).astype(np.int16)
    found = np.empty((len(halves), count), np.int64)
    for place in range(count):
        found[:, place] = magnitudes.argmax(axis=1)  # the first of equals
        np.put_along_axis(magnitudes, found[:, place : place + 1], np.int16(-1), axis=1)
    return found


REFERENCE = RowCodec(pack, unpack)


def agrees(codec: RowCodec) -> bool:
    """Return whether the codec does to rows of every kind what the reference does."""
    dice = np.random.Generator(np.random.PCG64(11))
    halves = dice.integers(0, 1 << 16, (3, 200), dtype=np.uint16)
    halves[(halves & 0x7C00) == 0x7C00] = 0x7BFF
    halves[1] &= 0x83FF  # the least numbers that there are
    packed, expected = codec.pack(halves), pack(halves)
    same = [part.tobytes() for part in packed] == [part.tobytes() for part in expected]
    return same and np.array_equal(codec.unpack(packed, 200), unpack(expected, 200))
