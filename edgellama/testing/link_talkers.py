"""Two who talk over the production link, and a network that watches them.

What link scenarios share: a talker dials until it is connected and keeps what it hears; the watched
network looks for what those who talk cannot notice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgellama.link.endpoint import Connected, DialFailed, Disconnected, Event, MessageReceived
from edgellama.testing.network import (
    Conditions,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.wire.datagram import HEADER_BYTES, DatagramType

if TYPE_CHECKING:
    from edgellama.values import Address

REDIAL_S = 0.1


class ScenarioError(AssertionError):
    """The protocol broke a promise; the message names the seed."""


@dataclass
class Talker(RecordingHandler):
    """Dials until it is connected, and keeps what came."""

    host: SimulatedHost | None = None
    peer: Address | None = None
    redials: bool = False  # also when a connection has ended
    redial_at: float | None = None
    received: list[bytes] = field(default_factory=list)

    def handle_event(self, event: Event, now: float) -> None:
        """Keep a message; dial again where a dial has failed."""
        super().handle_event(event, now)
        if isinstance(event, MessageReceived):
            self.received.append(event.message)
        elif isinstance(event, DialFailed) or (self.redials and isinstance(event, Disconnected)):
            self.redial_at = now + REDIAL_S

    def next_timer(self) -> float | None:
        """Return when to dial."""
        return self.redial_at

    def handle_timer(self, now: float) -> None:
        """Dial, unless the other side was quicker."""
        self.redial_at = None
        assert self.host is not None
        assert self.peer is not None
        if not self.host.endpoint.peers():
            self.host.endpoint.dial(self.peer, now)

    def count(self, kind: type[Connected | Disconnected]) -> int:
        """Return how many events of a kind there were."""
        return sum(isinstance(event, kind) for event in self.events)


class WatchedNetwork(SimulatedNetwork):
    """Also looks for one nonce that seals two texts under one key."""

    def __init__(self, seed: int, conditions: Conditions) -> None:
        super().__init__(seed, conditions)
        self.talking: set[Address] = set()
        self._sealed: dict[bytes, bytes] = {}  # each header of data with what stood behind it

    def send(self, data: bytes, source: Address, to: Address) -> None:
        """Put a datagram on its way, and look at its nonce."""
        header = data[:HEADER_BYTES]
        is_sealed = source in self.talking and header[:1] == bytes([DatagramType.DATA])
        # The receiver's index stands for the key, the packet number is the nonce.
        if is_sealed and self._sealed.setdefault(header, data) != data:
            raise ScenarioError("a nonce was used for two texts under one key")
        super().send(data, source, to)
