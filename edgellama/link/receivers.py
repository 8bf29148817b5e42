"""Whom a datagram is for: the receiver indices of one endpoint.

An index is a random number, so whoever does not see the datagrams of a connection cannot even
name it. It stands for a dial, for a connection that is half open, or for one pair of keys of a
connection; older keys keep theirs for a while, since packets under them may still be on the way.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from edgellama.wire.datagram import INDEX_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.link.connection import Connection
    from edgellama.link.handshake import Dial, HalfOpen
    from edgellama.wire.sealing import Seal

OLD_KEYS_S = 10.0
"""How long packets under the keys before the newest are still taken: longer than any is late."""


class Keyed(NamedTuple):
    """What stands behind an index of a connection: its seal, of new keys or of old."""

    connection: Connection
    seal: Seal


class Receivers(dict[int, "Dial | HalfOpen | Keyed"]):
    """What is behind each receiver index."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        super().__init__()
        self._entropy = entropy
        self._old_keys: deque[tuple[float, int]] = deque()  # when to forget which index

    def new_index(self) -> int:
        """Return an unpredictable index that is not in use; never 0."""
        while True:
            index = int.from_bytes(self._entropy(INDEX_BYTES), "big")
            if index and index not in self:
                return index

    def renew(self, index: int, connection: Connection, seal: Seal, now: float) -> None:
        """Give a connection new keys; take what is under way under the old ones for a while."""
        self._old_keys.extend((now + OLD_KEYS_S, old) for old in self._of(connection))
        self[index] = Keyed(connection, seal)

    def drop(self, connection: Connection) -> None:
        """Forget a connection under all its keys."""
        for index in self._of(connection):
            del self[index]

    def _of(self, connection: Connection) -> list[int]:
        return [
            index
            for index, receiver in self.items()
            if isinstance(receiver, Keyed) and receiver.connection is connection
        ]

    def next_timer(self) -> float:
        """Return when the next old keys are to be forgotten; infinite when there are none."""
        return self._old_keys[0][0] if self._old_keys else math.inf

    def forget_old_keys(self, now: float) -> None:
        """Forget the keys whose time is over."""
        while self._old_keys and self._old_keys[0][0] <= now:
            self.pop(self._old_keys.popleft()[1], None)
