"""The responder's handshakes that wait for the first packet under their keys."""

from __future__ import annotations

import math
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellama.link.handshake import HalfOpen
    from edgellama.link.identity import Identity
    from edgellama.link.receivers import Receivers
    from edgellama.values import NodeId

HALF_OPEN_MAX = 64


class HalfOpens:
    """Half-open connections by the initiator's public key, the oldest first; and by index."""

    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self._by_ephemeral: dict[bytes, HalfOpen] = {}

    def get(self, ephemeral: bytes) -> HalfOpen | None:
        """Return what a copy of an initiation is to be answered with again."""
        return self._by_ephemeral.get(ephemeral)

    def add(self, half: HalfOpen) -> None:
        """Keep one more; the oldest makes room for it."""
        while len(self._by_ephemeral) >= HALF_OPEN_MAX:
            self.forget(next(iter(self._by_ephemeral.values())))
        self._by_ephemeral[half.peer_ephemeral] = self._receivers[half.receiver_index] = half

    def forget(self, half: HalfOpen) -> None:
        """Forget one: it is open now, or nothing came of it."""
        del self._by_ephemeral[half.peer_ephemeral]
        del self._receivers[half.receiver_index]

    def forget_all(self) -> None:
        """Forget every one."""
        self._forget(list(self._by_ephemeral.values()))

    def forget_node(self, node: NodeId) -> None:
        """Forget those of a node: it has a connection now."""
        self._forget([half for half in self._by_ephemeral.values() if half.peer.node == node])

    def forget_renewals_before(self, newest: HalfOpen) -> None:
        """Forget those that would give a connection back older keys than these."""
        older = takewhile(lambda half: half is not newest, self._by_ephemeral.values())
        self._forget([half for half in older if half.renews is newest.renews])

    def forget_expired(self, now: float) -> None:
        """Forget those of which nothing came in time."""
        self._forget([half for half in self._by_ephemeral.values() if half.expires_at <= now])

    def _forget(self, halves: list[HalfOpen]) -> None:
        for half in halves:
            self.forget(half)

    def has(self, peer: Identity) -> bool:
        """Return whether this life of a node may open a connection yet."""
        return any(half.peer == peer for half in self._by_ephemeral.values())

    def next_timer(self) -> float:
        """Return when the next one expires; infinite when there is none."""
        return min((half.expires_at for half in self._by_ephemeral.values()), default=math.inf)
