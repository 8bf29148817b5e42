"""Weight matrices as the kernels read them: layout R8, where a lane of a vector is a row.

Rows are stored in groups of eight (the last group is filled up with zero rows). Of a quantised
matrix the quants and the scales lie in two sections, each starting at a multiple of 64 bytes:

    quants  uint8   [groups][blocks][vectors][8 rows][4 bytes]   4 vectors for Q4_0, 8 for Q8_0
    scales  uint16  [groups][blocks][8 rows]                     fp16 bits

so one 32-byte vector holds four neighbouring bytes of each of eight rows, and eight scales are
one load. The bytes of a block keep GGUF's order: byte ``j`` of a Q4_0 block holds weight ``j`` in
its low and weight ``16 + j`` in its high nibble. Unquantised matrices have one section:

    elements  [groups][columns][8 rows]

All numbers are little-endian.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LAYOUT_VERSION = 1
"""Changes whenever the packed bytes of a matrix would; part of a packed file's identity."""

GROUP_ROWS = 8
BLOCK_COLUMNS = 32
SCALE_BYTES = 2
SECTION_ALIGNMENT_BYTES = 64
ROWS_MAX = COLUMNS_MAX = 1 << 24  # no language model comes near; the products below stay in int64


class WeightKind(enum.Enum):
    """How a weight is stored; the value is GGUF's name of the tensor type."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"

    @property
    def block_size(self) -> int:
        """Weights in one GGUF block."""
        return BLOCK_COLUMNS if self.quantized else 1

    @property
    def block_bytes(self) -> int:
        """Bytes of one GGUF block, its scale included."""
        return _BLOCK_BYTES[self]

    @property
    def quantized(self) -> bool:
        """Whether the weights are small integers with a scale a block."""
        return self in (WeightKind.Q8_0, WeightKind.Q4_0)


_BLOCK_BYTES = {
    WeightKind.F32: 4,
    WeightKind.F16: 2,
    WeightKind.BF16: 2,
    WeightKind.Q8_0: SCALE_BYTES + 32,
    WeightKind.Q4_0: SCALE_BYTES + 16,
}


def _aligned(size: int) -> int:
    return -(-size // SECTION_ALIGNMENT_BYTES) * SECTION_ALIGNMENT_BYTES


def _section_bytes(kind: WeightKind, rows: int, columns: int) -> tuple[int, int]:
    """Return the unpadded bytes of the quants (or elements) and of the scales."""
    if not (0 < rows <= ROWS_MAX and 0 < columns <= COLUMNS_MAX):
        raise ValueError(f"a matrix of {rows} rows and {columns} columns cannot be packed")
    if columns % kind.block_size:
        raise ValueError(f"{kind.value} needs a multiple of 32 columns, not {columns}")
    blocks = -(-rows // GROUP_ROWS) * GROUP_ROWS * (columns // kind.block_size)
    if not kind.quantized:
        return blocks * kind.block_bytes, 0
    return blocks * (kind.block_bytes - SCALE_BYTES), blocks * SCALE_BYTES


def packed_bytes(kind: WeightKind, rows: int, columns: int) -> int:
    """Return the size of a packed matrix's flat buffer, padding included."""
    return sum(_aligned(size) for size in _section_bytes(kind, rows, columns))


def row_bytes(kind: WeightKind, columns: int) -> int:
    """Return the size of one row as GGUF stores it."""
    return columns // kind.block_size * kind.block_bytes


class PackedMatrix:
    """A weight matrix in layout R8 over one flat buffer, which may be read-only.

    ``buffer`` is contiguous uint8 [packed_bytes(kind, rows, columns)] at an address that is a
    multiple of 4. ``quants``, ``scales`` and ``elements`` are views into it, in the shapes of the
    module's docstring; those that the kind does not have are empty. Raises ValueError otherwise.
    """

    def __init__(
        self, kind: WeightKind, rows: int, columns: int, buffer: NDArray[np.uint8]
    ) -> None:
        first_bytes, scale_bytes = _section_bytes(kind, rows, columns)
        if buffer.dtype != np.uint8 or buffer.shape != (packed_bytes(kind, rows, columns),):
            raise ValueError("the buffer does not have the size of the packed matrix")
        if not buffer.flags.c_contiguous or buffer.ctypes.data % 4:
            raise ValueError("a packed matrix needs a contiguous buffer at a multiple of 4 bytes")
        buffer = np.asarray(buffer)  # a memmap's own views are slow to make
        self.kind, self.rows, self.columns, self.buffer = kind, rows, columns, buffer
        self.groups = -(-rows // GROUP_ROWS)
        self.address = int(buffer.ctypes.data)
        self.scales_address = self.address + _aligned(first_bytes)
        first = buffer[:first_bytes]
        second = buffer[_aligned(first_bytes) :][:scale_bytes]
        blocks = columns // kind.block_size
        vectors = (kind.block_bytes - SCALE_BYTES) // 4 if kind.quantized else 0
        self.quants = first[: first_bytes if vectors else 0].reshape(
            self.groups, blocks, vectors, GROUP_ROWS, 4
        )
        self.scales: NDArray[np.uint16] = second.view(np.uint16).reshape(
            self.groups, blocks if vectors else 0, GROUP_ROWS
        )
        element = np.float32 if kind is WeightKind.F32 else np.uint16
        self.elements: NDArray[Any] = (
            first[: 0 if vectors else first_bytes]
            .view(element)
            .reshape(self.groups, 0 if vectors else columns, GROUP_ROWS)
        )

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
        groups = slice(first_row // GROUP_ROWS, -(-past // GROUP_ROWS))
        filled = np.zeros((-(-len(raw) // GROUP_ROWS) * GROUP_ROWS, raw.shape[1]), np.uint8)
        filled[: len(raw)] = raw
        if not self.kind.quantized:
            rows = filled.view(self.elements.dtype).reshape(-1, GROUP_ROWS, self.columns)
            self.elements[groups] = rows.transpose(0, 2, 1)
            return
        blocks = filled.reshape(-1, GROUP_ROWS, self.scales.shape[1], self.kind.block_bytes)
        scales = np.ascontiguousarray(blocks[..., :SCALE_BYTES]).view(np.uint16)[..., 0]
        self.scales[groups] = scales.transpose(0, 2, 1)
        quants = blocks[..., SCALE_BYTES:].reshape(*blocks.shape[:3], -1, 4)
        self.quants[groups] = quants.transpose(0, 2, 3, 1, 4)

    def dequantized_rows(
        self, row_ids: NDArray[np.integer[Any]] | Sequence[int]
    ) -> NDArray[np.float32]:
        """Return the exact values of some rows: float32 [n, columns]; IndexError out of range."""
        ids = np.asarray(row_ids, np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.rows):
            raise IndexError(f"a row id lies outside the matrix's {self.rows} rows")
        group, lane = ids // GROUP_ROWS, ids % GROUP_ROWS
        if not self.kind.quantized:
            return widened(self.kind, self.elements[group, :, lane])
        weights = unpacked(self.kind, self.quants[group, :, :, lane])
        scales = self.scales[group, :, lane].view(np.float16).astype(np.float32)
        values: NDArray[np.float32] = weights.astype(np.float32) * scales[..., None]
        return values.reshape(len(ids), self.columns)


def widened(kind: WeightKind, elements: NDArray[Any]) -> NDArray[np.float32]:
    """Return F32, F16 or BF16 elements as float32, exactly."""
    if kind is WeightKind.F32:
        return np.asarray(elements, np.float32)
    if kind is WeightKind.F16:
        return np.ascontiguousarray(elements).view(np.float16).astype(np.float32)
    return (elements.astype(np.uint32) << np.uint32(16)).view(np.float32)


def unpacked(kind: WeightKind, quants: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the integer weights [..., 32] of blocks given as their bytes [..., vectors, 4]."""
    stored = np.ascontiguousarray(quants).reshape(*quants.shape[:-2], -1)
    if kind is WeightKind.Q8_0:
        return stored.view(np.int8)
    nibbles = np.concatenate([stored & np.uint8(15), stored >> np.uint8(4)], axis=-1)
    return nibbles.view(np.int8) - np.int8(8)
