"""Where the arrays of a recording lie, and before which of its operations threads must meet.

All lie in one piece of memory, where those whose time is over make room for later ones. Threads
meet where an operation reads what another wrote since they last met, or writes what it read.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from edgellama_kernels import operations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama_kernels.operations import Operation

ALIGNMENT_BYTES = 64


class Storage:
    """Memory for one array of ``token_bytes`` a token; where, is found at the end."""

    __slots__ = ("token_bytes",)

    def __init__(self, token_bytes: int) -> None:
        self.token_bytes = token_bytes


class CacheOperand(NamedTuple):
    """One of the arrays of a layer's cache, or its capacity: known when the program runs."""

    layer: int
    field: str


Place = Storage | CacheOperand


class Arena:
    """The offset of each storage, and for each operation whether threads meet before it."""

    def __init__(
        self,
        recorded: Sequence[Operation],
        given: Sequence[Storage],
        result: Sequence[Storage],
        tokens_max: int,
    ) -> None:
        self.given, self.result, self.tokens_max = tuple(given), tuple(result), tokens_max
        self.offsets: dict[Storage, int] = {}
        self.meets: list[bool] = []
        self.size_bytes = 0
        self._free: dict[int, list[int]] = defaultdict(list)  # offsets by size
        for storage in (*given, *result):
            self._place(storage)
        last = {x: n for n, operation in enumerate(recorded) for x in _places(operation)}
        kept: set[Place] = {*given, *result}
        written: set[Place] = set()
        read: set[Place] = set()
        for number, operation in enumerate(recorded):
            places = _places(operation)
            writes = places & {operation.operands[i] for i in operations.WRITES[operation.code]}
            reads = places - writes
            together = not (reads & written or writes & (read | written))
            self.meets.append(not together)
            if not together:
                ended = {x for x in (read | written) - kept if last[x] < number}
                self._make_free(ended)
                kept |= ended
                written, read = set(), set()
            written |= writes
            read |= reads
            for place in reads | writes:
                self._place(place)

    def _make_free(self, ended: set[Place]) -> None:
        for place in ended:
            if isinstance(place, Storage):
                self._free[self._bytes(place)].append(self.offsets[place])

    def _place(self, place: Place) -> None:
        if place in self.offsets or not isinstance(place, Storage):
            return
        size = self._bytes(place)
        if self._free[size]:
            self.offsets[place] = self._free[size].pop()
        else:
            self.offsets[place] = self.size_bytes
            self.size_bytes += size

    def _bytes(self, storage: Storage) -> int:
        return -(-storage.token_bytes * self.tokens_max // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _places(operation: Operation) -> set[Place]:
    """Return the operands that lie in memory, weights apart."""
    return {x for x in operation.operands if isinstance(x, Storage | CacheOperand)}
