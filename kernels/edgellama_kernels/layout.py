"""Weight matrices as the kernels read them: layout R8, where a lane of a vector is a row.

Rows are stored in groups of eight (the last group is filled up with zero rows). Of a quantised
matrix the quants and the scales lie in two sections, each starting at a multiple of 64 bytes:

    quants   uint8 [groups][blocks][vectors][8 rows][4 bytes]   as many vectors as a quant has bits
    records  of each GGUF block of eight rows:
             scales    uint16 [8 rows]                          fp16 bits
             minimums  uint16 [8 rows]                          fp16 bits, where the kind has them
             factors   uint8 [8 blocks][2][8 rows]              where the kind has them

so one 32-byte vector holds four bytes of each of eight rows, and eight scales are one load. A
block is 32 columns, also where GGUF's is 256. Unquantised matrices have one section:

    elements  [groups][columns][8 rows]

The bits of a quant are cut into planes, the lowest first. A plane of ``w`` bits takes ``w``
vectors: byte ``i`` of a row in vector ``u`` holds bits of the columns ``4 (u + w n) + i``, n
counting up from the byte's lowest bits. For Q8_0, Q4_0 and Q4_1 that is GGUF's order of bytes. All
numbers are little-endian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels.kinds import (
    BLOCK_COLUMNS,
    FORMATS,
    HALF_COLUMNS,
    Factors,
    WeightKind,
    block_fields,
    block_quants,
    block_scales,
    factor_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LAYOUT_VERSION = 1
"""Changes whenever the packed bytes of a matrix would; part of a packed file's identity."""

GROUP_ROWS = 8
SECTION_ALIGNMENT_BYTES = 64
ROWS_MAX = COLUMNS_MAX = 1 << 24  # no language model comes near; the products below stay in int64
WEIGHTS_AT_ONCE = 1 << 18  # packed at a time, in some megabytes

PLANE_BITS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
BYTE_VECTORS = 8  # of a block, with a byte for each weight


def _aligned(size: int) -> int:
    return -(-size // SECTION_ALIGNMENT_BYTES) * SECTION_ALIGNMENT_BYTES


def record_bytes(kind: WeightKind) -> int:
    """Return the size of the scales, minimums and factors of one GGUF block of eight rows."""
    format_ = FORMATS[kind]
    halves = 2 if format_.minimums else 1
    pairs = 0 if format_.factors is Factors.NONE else format_.columns // BLOCK_COLUMNS
    return 2 * GROUP_ROWS * (halves + pairs)


def _section_bytes(kind: WeightKind, rows: int, columns: int) -> tuple[int, int]:
    """Return the unpadded bytes of the quants (or elements) and of the records."""
    if not (0 < rows <= ROWS_MAX and 0 < columns <= COLUMNS_MAX):
        raise ValueError(f"a matrix of {rows} rows and {columns} columns cannot be packed")
    size = kind.block_size
    if columns % size:
        raise ValueError(f"{kind.value} needs a multiple of {size} columns, not {columns}")
    groups = -(-rows // GROUP_ROWS)
    if not kind.quantized:
        return groups * GROUP_ROWS * columns * kind.block_bytes, 0
    quants = groups * columns * FORMATS[kind].bits  # a byte is eight bits, a group eight rows
    return quants, groups * (columns // size) * record_bytes(kind)


def packed_bytes(kind: WeightKind, rows: int, columns: int) -> int:
    """Return the size of a packed matrix's flat buffer, padding included."""
    return sum(_aligned(size) for size in _section_bytes(kind, rows, columns))


def row_bytes(kind: WeightKind, columns: int) -> int:
    """Return the size of one row as GGUF stores it."""
    return columns // kind.block_size * kind.block_bytes


class PackedMatrix:
    """A weight matrix in layout R8 over one flat buffer, which may be read-only.

    ``buffer`` is contiguous uint8 [packed_bytes(kind, rows, columns)] at an address that is a
    multiple of 4. ``elements`` [groups, columns, 8], ``quants`` [groups, blocks, vectors, 8, 4],
    ``scales`` and ``minimums`` [groups, GGUF blocks, 8] and ``factors`` [groups, GGUF blocks,
    8 blocks, 2, 8] are views into it; those that the kind does not have are empty. Raises
    ValueError otherwise.
    """

    def __init__(
        self, kind: WeightKind, rows: int, columns: int, buffer: NDArray[np.uint8]
    ) -> None:
        first_bytes, record_bytes = _section_bytes(kind, rows, columns)
        if buffer.dtype != np.uint8 or buffer.shape != (packed_bytes(kind, rows, columns),):
            raise ValueError("the buffer does not have the size of the packed matrix")
        if not buffer.flags.c_contiguous or buffer.ctypes.data % 4:
            raise ValueError("a packed matrix needs a contiguous buffer at a multiple of 4 bytes")
        buffer = np.asarray(buffer)  # a memmap's own views are slow to make
        self.kind, self.rows, self.columns, self.buffer = kind, rows, columns, buffer
        self.groups = -(-rows // GROUP_ROWS)
        self.address = int(buffer.ctypes.data)
        self.scales_address = self.address + _aligned(first_bytes)
        self.elements: NDArray[Any] = np.empty((self.groups, 0, GROUP_ROWS), np.float32)
        self.quants = np.empty((self.groups, 0, 0, GROUP_ROWS, 4), np.uint8)
        self.scales = self.minimums = np.empty((self.groups, 0, GROUP_ROWS), np.uint16)
        self.factors = np.empty((self.groups, 0, 0, 2, GROUP_ROWS), np.uint8)
        first = buffer[:first_bytes]
        if kind.quantized:
            bits, blocks = FORMATS[kind].bits, columns // BLOCK_COLUMNS
            self.quants = first.reshape(self.groups, blocks, bits, GROUP_ROWS, 4)
            self._view_records(buffer[_aligned(first_bytes) :][:record_bytes])
        else:
            element = np.float32 if kind is WeightKind.F32 else np.uint16
            self.elements = first.view(element).reshape(self.groups, columns, GROUP_ROWS)

    def _view_records(self, section: NDArray[np.uint8]) -> None:
        format_ = FORMATS[self.kind]
        records = section.reshape(self.groups, self.columns // format_.columns, -1, 2 * GROUP_ROWS)
        self.scales = records[:, :, 0].view(np.uint16)
        past = 1
        if format_.minimums:
            self.minimums = records[:, :, 1].view(np.uint16)
            past = 2
        if format_.factors is not Factors.NONE:
            pairs = records[:, :, past:]
            self.factors = pairs.reshape(*pairs.shape[:3], 2, GROUP_ROWS)

    @classmethod
    def zeros(cls, kind: WeightKind, rows: int, columns: int) -> PackedMatrix:
        """Return a matrix of zeros in memory of its own, to be filled by ``store_rows``."""
        size = packed_bytes(kind, rows, columns)
        room = np.zeros(size + SECTION_ALIGNMENT_BYTES, np.uint8)
        start = -room.ctypes.data % SECTION_ALIGNMENT_BYTES
        return cls(kind, rows, columns, room[start : start + size])

    def store_rows(self, first_row: int, raw: NDArray[np.uint8]) -> None:
        """Pack rows from ``first_row`` on: raw is uint8 [n, bytes of a row] as in GGUF.

        ``first_row`` is a multiple of 8; ``n`` is one too, or reaches the last row.
        """
        past = first_row + len(raw)
        if first_row % GROUP_ROWS or first_row < 0 or past > self.rows:
            raise ValueError(f"rows {first_row} to {past} are not whole groups of {self.rows} rows")
        if past % GROUP_ROWS and past != self.rows:
            raise ValueError("only the last group of rows may be incomplete")
        if raw.dtype != np.uint8 or raw.shape[1:] != (row_bytes(self.kind, self.columns),):
            raise ValueError("the rows do not have the matrix's width")
        step = max(1, WEIGHTS_AT_ONCE // (GROUP_ROWS * self.columns)) * GROUP_ROWS
        for start in range(0, len(raw), step):
            self._store_groups((first_row + start) // GROUP_ROWS, raw[start : start + step])

    def _store_groups(self, first: int, raw: NDArray[np.uint8]) -> None:
        count = -(-len(raw) // GROUP_ROWS)
        groups = slice(first, first + count)
        if len(raw) % GROUP_ROWS:
            raw = np.pad(raw, ((0, count * GROUP_ROWS - len(raw)), (0, 0)))
        if not self.kind.quantized:
            rows = np.ascontiguousarray(raw).view(self.elements.dtype)
            self.elements[groups] = rows.reshape(count, GROUP_ROWS, -1).transpose(0, 2, 1)
            return
        blocks = raw.reshape(count, GROUP_ROWS, -1, self.kind.block_bytes)
        scales, minimums, factors = block_scales(self.kind, blocks)
        self.scales[groups] = scales.transpose(0, 2, 1)
        if minimums is not None:
            self.minimums[groups] = minimums.transpose(0, 2, 1)
        if factors is not None:
            self.factors[groups] = factors.transpose(0, 2, 3, 4, 1)
        self.quants[groups] = packed_quants(self.kind, blocks).transpose(0, 2, 3, 1, 4)

    def dequantized_rows(
        self, row_ids: NDArray[np.integer[Any]] | Sequence[int]
    ) -> NDArray[np.float32]:
        """Return the exact values of some rows: float32 [n, columns]; IndexError out of range.

        Scale times factor times quant is exact; a minimum that is added is the one rounding.
        """
        ids = np.asarray(row_ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.rows):
            raise IndexError(f"a row id lies outside the matrix's {self.rows} rows")
        group, lane = ids // GROUP_ROWS, ids % GROUP_ROWS
        if not self.kind.quantized:
            return widened(self.kind, self.elements[group, :, lane])
        weights = unpacked(self.kind, self.quants[group, :, :, lane]).astype(np.float32)
        weights = weights.reshape(len(ids), self.scales.shape[1], -1, HALF_COLUMNS)
        scales = float32_of_halves(self.scales[group, :, lane])[..., None]
        minimums = float32_of_halves(self.minimums[group, :, lane])[..., None]
        if self.factors.size:
            factors = factor_numbers(self.kind, self.factors[group, :, :, :, lane])
            of_scales, of_minimums = (f.reshape(*weights.shape[:3]) for f in factors)
            scales = scales * of_scales.astype(np.float32)
            if minimums.size:
                minimums = minimums * of_minimums.astype(np.float32)
        weights *= scales[..., None]
        if minimums.size:
            weights += minimums[..., None]
        return weights.reshape(len(ids), self.columns)


def factor_pairs(
    matrix: PackedMatrix, groups: slice
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the factors of scales and of minimums of some groups, [blocks, rows, 2 halves]."""
    pairs = matrix.factors[groups].transpose(1, 2, 0, 4, 3)  # [GGUF blocks, 8, groups, 8 rows, 2]
    blocks = pairs.shape[0] * pairs.shape[1]
    return factor_numbers(matrix.kind, pairs.reshape(blocks, -1, 2))


def float32_of_halves(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return fp16 bits as float32, exactly: NumPy's own conversion is several times as slow."""
    wide = halves.astype(np.uint32)
    magnitude = (wide & np.uint32(0x7FFF)) << np.uint32(13)
    numbers: NDArray[np.float32] = magnitude.view(np.float32) * np.float32(2.0**112)
    bits = numbers.view(np.uint32)
    not_finite = magnitude >= np.uint32(0x7C00 << 13)
    if not_finite.any():
        bits[not_finite] = magnitude[not_finite] | np.uint32(0x7F800000)
    bits |= (wide & np.uint32(0x8000)) << np.uint32(16)
    return numbers


def widened(kind: WeightKind, elements: NDArray[Any]) -> NDArray[np.float32]:
    """Return F32, F16 or BF16 elements as float32, exactly."""
    if kind is WeightKind.F32:
        return np.asarray(elements, np.float32)
    if kind is WeightKind.F16:
        return float32_of_halves(elements)
    return (elements.astype(np.uint32) << np.uint32(16)).view(np.float32)


def packed_quants(kind: WeightKind, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the planes [..., blocks, bits, 4] of GGUF blocks, uint8 [..., n, bytes of one]."""
    format_, rows = FORMATS[kind], blocks.shape[:-2]
    if format_.columns == BLOCK_COLUMNS and format_.high is None:  # they lie so in GGUF
        return block_fields(kind, blocks)["low"].reshape(*rows, -1, format_.bits, 4)
    quants = block_quants(kind, blocks).reshape(*rows, -1, BYTE_VECTORS, 4)
    planes = np.empty((*quants.shape[:-2], format_.bits, 4), np.uint8)
    first = 0
    for width in PLANE_BITS[format_.bits]:
        digits = quants >> np.uint8(first) & np.uint8((1 << width) - 1)
        plane = planes[..., first : first + width, :]
        plane[:] = digits[..., :width, :]
        for n in range(1, BYTE_VECTORS // width):
            plane |= digits[..., width * n : width * (n + 1), :] << np.uint8(width * n)
        first += width
    return planes


def unpacked(kind: WeightKind, planes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the integer weights [..., 32] of planes [..., bits, 4], without their factors."""
    format_ = FORMATS[kind]
    quants = np.zeros((*planes.shape[:-2], BYTE_VECTORS, 4), np.uint8)
    first = 0
    for width in PLANE_BITS[format_.bits]:
        plane = planes[..., first : first + width, :]
        for n in range(BYTE_VECTORS // width):
            digits = plane >> np.uint8(width * n) & np.uint8((1 << width) - 1)
            quants[..., width * n : width * (n + 1), :] |= digits << np.uint8(first)
        first += width
    weights = quants.reshape(*planes.shape[:-2], BLOCK_COLUMNS).view(np.int8)
    return weights - np.int8(format_.offset)
