"""A fuzzer's bytes as a row of small decisions."""

from __future__ import annotations

from typing import Any

import msgpack

VALUES_MAX = 64
"""Decisions taken from one input: more would only be slower."""


class Feed:
    """Reads numbers and pieces from the front; at the end everything is 0 or empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, count: int) -> int:
        """Return the integer of the next ``count`` bytes, big-endian."""
        return int.from_bytes(self.take(count), "big")

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def piece(self) -> bytes:
        """Return a piece of 0 to 65535 bytes behind its length."""
        return self.take(self.number(2))


def values(data: bytes) -> list[Any]:
    """Return the msgpack values that stand one after the other, up to the first damaged one.

    A change of one byte in such an input changes one value, and the rest stays what it was.
    """
    size = len(data) or 1
    unpacker = msgpack.Unpacker(raw=False, max_map_len=0, max_ext_len=0, max_buffer_size=size)
    unpacker.feed(data)
    found: list[Any] = []
    try:
        while len(found) < VALUES_MAX:
            found.append(unpacker.unpack())
    except (ValueError, msgpack.UnpackException):
        return found
    return found
