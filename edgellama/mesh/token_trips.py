"""How long tokens take round the ring: told by home to those who load weights meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.mesh.effects import Outbox, TokenCame
from edgellama.mesh.transfer_pace import DecodeDelay, LeastOfLate
from edgellama.wire.messages import TokenTook
from edgellama.wire.weight_messages import TRIP_US_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellama.values import NodeId

TELL_S: Final = 0.1  # often enough to see a queue grow, seldom beside all other packets


class TokenTrips:
    """What one node measures and hears of it; its own weights on their way give way as well."""

    def __init__(
        self,
        outbox: Outbox,
        connected: Callable[[], Sequence[NodeId]],
        is_loading: Callable[[], bool],
    ) -> None:
        self._outbox = outbox
        self._connected = connected
        self._is_loading = is_loading
        self._least = LeastOfLate()
        self._told_at = float("-inf")

    def follow(self) -> None:
        """Begin anew: under another plan tokens take another time."""
        self._least = LeastOfLate()

    def took(self, trip_s: float, now: float) -> None:
        """As home: take note of a token's way round the ring."""
        delay = DecodeDelay(trip_s, self._least.take(trip_s, now))
        self._outbox.put(TokenCame(delay))
        if self._is_loading() and now >= self._told_at + TELL_S:
            self._told_at = now
            told = TokenTook(*(min(round(each * 1e6), TRIP_US_MAX) for each in delay))
            for node in self._connected():
                self._outbox.send(node, told)

    def heard(self, message: TokenTook) -> None:
        """Take note of what home says."""
        delay = DecodeDelay(message.trip_us / 1e6, message.least_us / 1e6)
        self._outbox.put(TokenCame(delay))
