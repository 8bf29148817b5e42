"""Which initiations are worth an answer: not an old one again, and not a flood without addresses.

Whoever sends from an address that is not its own never sees the cookie that is sent there, so a
flood costs little more than reading it. WireGuard does the same (its paper, section 5.3).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from edgellama.link.replay_window import HANDSHAKES, ReplayWindow
from edgellama.wire.datagram import COOKIE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.values import Address, NodeId
    from edgellama.wire.datagram import Handshake

HANDSHAKES_PER_S_MAX = 20
"""A home network makes a handful a minute; each costs about a millisecond of a phone's time."""

COOKIE_SECRET_S = 120.0
_SECRET_BYTES = 32

NODES_KEPT_MAX = 1024


class FloodGuard:
    """Asks for a cookie while handshakes come faster than HANDSHAKES_PER_S_MAX."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._allowance = float(HANDSHAKES_PER_S_MAX)
        self._counted_at = 0.0
        self._secret = self._past_secret = b""
        self._secret_until = 0.0

    def admits(self, address: Address, cookie: int, now: float) -> bool:
        """Return whether to answer a handshake from an address; in a flood its cookie decides."""
        earned = (now - self._counted_at) * HANDSHAKES_PER_S_MAX
        self._allowance = min(self._allowance + earned, float(HANDSHAKES_PER_S_MAX))
        self._counted_at = now
        if self._allowance >= 1.0:
            self._allowance -= 1.0
            return True
        current = self.cookie(address, now)
        return cookie in (current, _cookie(self._past_secret, address))

    def cookie(self, address: Address, now: float) -> int:
        """Return what only a reader of the address's mail can know, for 2 to 4 minutes."""
        if now >= self._secret_until:
            self._past_secret = self._secret or self._entropy(_SECRET_BYTES)
            self._secret = self._entropy(_SECRET_BYTES)
            self._secret_until = now + COOKIE_SECRET_S
        return _cookie(self._secret, address)


def _cookie(secret: bytes, address: Address) -> int:
    digest = blake2b(str(address).encode(), key=secret, digest_size=COOKIE_BYTES).digest()
    return int.from_bytes(digest, "big")


class Lives:
    """The greatest incarnation of each node that was met, and its handshakes that were answered."""

    def __init__(self) -> None:
        self._connected: dict[NodeId, int] = {}  # the greatest incarnation, oldest entry first
        self._answered: dict[NodeId, tuple[int, ReplayWindow]] = {}  # likewise

    def is_over(self, node: NodeId, incarnation: int) -> bool:
        """Return whether a later life of the node has been connected."""
        return incarnation < self._connected.get(node, 0)

    def connect(self, node: NodeId, incarnation: int) -> None:
        """Note the life of a node that is now connected."""
        self._connected.pop(node, None)
        self._connected[node] = incarnation
        _trim(self._connected)

    def is_old(self, handshake: Handshake) -> bool:
        """Return whether an initiation was answered before, or is of a life that is over."""
        if self.is_over(handshake.node, handshake.incarnation):
            return True
        incarnation, window = self._answered.get(handshake.node, (-1, None))
        if window is None or handshake.incarnation > incarnation:
            return False
        return handshake.incarnation < incarnation or not window.is_fresh(handshake.number)

    def answer(self, handshake: Handshake) -> None:
        """Note an initiation that was not old and is answered now."""
        incarnation, window = self._answered.pop(handshake.node, (-1, None))
        if window is None or handshake.incarnation > incarnation:
            window = ReplayWindow(HANDSHAKES)
        window.take(handshake.number)
        self._answered[handshake.node] = (handshake.incarnation, window)
        _trim(self._answered)


def _trim(table: dict[NodeId, int] | dict[NodeId, tuple[int, ReplayWindow]]) -> None:
    while len(table) > NODES_KEPT_MAX:
        del table[next(iter(table))]
