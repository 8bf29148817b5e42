"""Which chunks of a model are there: one bit each, on the disk and on the wire."""

from __future__ import annotations


class ChunkBitmap:
    """A set of chunk numbers below ``chunks``; chunk ``i`` is bit ``i % 8`` of byte ``i // 8``."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self._bits = bytearray(bitmap_bytes(chunks))

    @classmethod
    def full(cls, chunks: int) -> ChunkBitmap:
        """Return the set of all chunks."""
        bitmap = cls(chunks)
        bitmap._bits[:] = ((1 << chunks) - 1).to_bytes(bitmap_bytes(chunks), "little")
        return bitmap

    @classmethod
    def from_bytes(cls, chunks: int, data: bytes) -> ChunkBitmap | None:
        """Read ``to_bytes``; None for a wrong length or a bit beyond the last chunk."""
        if len(data) != bitmap_bytes(chunks) or int.from_bytes(data, "little") >> chunks:
            return None
        bitmap = cls(chunks)
        bitmap._bits[:] = data
        return bitmap

    def to_bytes(self) -> bytes:
        """Return the bits, ``bitmap_bytes(chunks)`` bytes."""
        return bytes(self._bits)

    def __contains__(self, chunk: int) -> bool:
        return 0 <= chunk < self.chunks and bool(self._bits[chunk >> 3] >> (chunk & 7) & 1)

    def add(self, chunk: int) -> None:
        """Put in one chunk below ``chunks``."""
        assert 0 <= chunk < self.chunks
        self._bits[chunk >> 3] |= 1 << (chunk & 7)

    def remove(self, chunk: int) -> None:
        """Take out one chunk below ``chunks``."""
        assert 0 <= chunk < self.chunks
        self._bits[chunk >> 3] &= ~(1 << (chunk & 7))

    def __len__(self) -> int:
        return int.from_bytes(self._bits, "little").bit_count()


def bitmap_bytes(chunks: int) -> int:
    """Return the length of a bitmap over this many chunks."""
    return -(-chunks // 8)
