"""The row codec compiled, equal to ``row_codec`` to the bit. Any thread may call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellama_kernels.entries import entries
from edgellama_kernels.row_codec import BLOCK_COLUMNS, PackedRows, RowCodec, blocks, outliers
from edgellama_kernels.team import address

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCRATCH_NUMBERS = 2 * BLOCK_COLUMNS


def pack(halves: NDArray[np.uint16]) -> PackedRows:
    """Do what ``row_codec.pack`` does."""
    halves = np.ascontiguousarray(halves)
    rows, width = halves.shape
    count = outliers(width)
    packed = PackedRows(
        np.empty((rows, count), np.uint16),
        np.empty((rows, count), np.uint16),
        np.empty((rows, blocks(width)), np.uint16),
        np.empty((rows, blocks(width) * BLOCK_COLUMNS), np.int8),
    )
    scratch = np.empty(SCRATCH_NUMBERS, np.float32)
    columns, taken, scales, quants = (address(part) for part in packed)
    given, work = address(halves), address(scratch)
    entries().pack_rows(given, columns, taken, scales, quants, work, width, count, rows)
    return packed


def unpack(packed: PackedRows, width: int) -> NDArray[np.uint16]:
    """Do what ``row_codec.unpack`` does."""
    packed = PackedRows._make(np.ascontiguousarray(part) for part in packed)
    rows, count = packed.columns.shape
    halves = np.empty((rows, width), np.uint16)
    scratch = np.empty(SCRATCH_NUMBERS, np.float32)
    columns, taken, scales, quants = (address(part) for part in packed)
    to, work = address(halves), address(scratch)
    entries().unpack_rows(columns, taken, scales, quants, to, work, width, count, rows)
    return halves


COMPILED = RowCodec(pack, unpack)
