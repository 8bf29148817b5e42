"""The matrices of a layer's experts: equal in shape and kind, one after the other in one buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellama_kernels.layout import SECTION_ALIGNMENT_BYTES, PackedMatrix, packed_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellama_kernels.kinds import WeightKind

EXPERTS_MAX = 1024  # no published model comes near


class PackedExperts:
    """``count`` matrices of ``rows`` by ``columns``, each in layout R8.

    ``buffer`` is contiguous uint8 [count * packed_bytes(kind, rows, columns)] at an address that is
    a multiple of 4, and may be read-only. Raises ValueError otherwise.
    """

    def __init__(
        self, kind: WeightKind, count: int, rows: int, columns: int, buffer: NDArray[np.uint8]
    ) -> None:
        if not 1 <= count <= EXPERTS_MAX:
            raise ValueError(f"a layer has 1 to {EXPERTS_MAX} experts, not {count}")
        self.bytes_each = packed_bytes(kind, rows, columns)
        if buffer.shape != (count * self.bytes_each,):
            raise ValueError("the buffer does not have the size of the packed experts")
        self.kind, self.count, self.rows, self.columns = kind, count, rows, columns
        self.buffer = np.asarray(buffer)
        self.first = self.expert(0)

    @classmethod
    def zeros(cls, kind: WeightKind, count: int, rows: int, columns: int) -> PackedExperts:
        """Return matrices of zeros in memory of their own, to be filled expert by expert."""
        size = count * packed_bytes(kind, rows, columns)
        room = np.zeros(size + SECTION_ALIGNMENT_BYTES, np.uint8)
        start = -room.ctypes.data % SECTION_ALIGNMENT_BYTES
        return cls(kind, count, rows, columns, room[start : start + size])

    def expert(self, number: int) -> PackedMatrix:
        """Return the matrix of one expert, a view."""
        start = number * self.bytes_each
        view = self.buffer[start : start + self.bytes_each]
        return PackedMatrix(self.kind, self.rows, self.columns, view)
