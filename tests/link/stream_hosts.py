"""Hosts that are reached over TCP, over datagrams or over both, for tests of this folder."""

from __future__ import annotations

from edgellama.link.endpoint import Connected, Disconnected, Identity, MessageReceived, Priority
from edgellama.testing.network import Conditions, RecordingHandler, SimulatedNetwork
from edgellama.testing.streams import Pipes, StreamingHost
from edgellama.values import Address

A, B, GUEST = "a" * 32, "b" * 32, "f" * 32
HERE, THERE, ELSEWHERE = (Address(f"10.0.0.{number}", 7711) for number in (1, 2, 3))
KEY = b"mesh"


class Net:
    """A network without loss or jitter, and its hosts."""

    def __init__(self, conditions: Conditions | None = None) -> None:
        self.network = SimulatedNetwork(3, conditions or Conditions(jitter_s=0.0))
        self.pipes = Pipes(self.network)

    def host(
        self,
        node: str,
        address: Address,
        transport: str = "tcp",
        *,
        incarnation: int = 1,
        key: bytes = KEY,
        guest: bool = False,
    ) -> StreamingHost:
        identity = Identity(node, incarnation, guest)
        host = StreamingHost(self.network, self.pipes, identity, address, key, transport)
        host.handler = RecordingHandler()
        return host

    def pair(self, transport: str = "tcp") -> tuple[StreamingHost, StreamingHost]:
        """Return two hosts that are connected: the first one dialled."""
        here, there = self.host(A, HERE, transport), self.host(B, THERE, transport)
        dial(here, THERE)
        self.run(0.5)
        assert [type(event) for event in events(here)] == [Connected]
        assert [type(event) for event in events(there)] == [Connected]
        return here, there

    def run(self, seconds: float) -> None:
        self.network.run(self.network.now + seconds)


def dial(host: StreamingHost, address: Address) -> None:
    host.act(lambda now: host.links.dial(address, now))


def say(host: StreamingHost, node: str, message: bytes, priority: Priority) -> None:
    host.act(lambda now: host.links.send(node, message, priority, now))


def events(host: StreamingHost) -> list[object]:
    assert isinstance(host.handler, RecordingHandler)
    return list(host.handler.events)


def messages(host: StreamingHost) -> list[bytes]:
    return [event.message for event in events(host) if isinstance(event, MessageReceived)]


def ends(host: StreamingHost) -> list[Disconnected]:
    return [event for event in events(host) if isinstance(event, Disconnected)]
