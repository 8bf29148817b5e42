"""TCP in a simulation: pipes that lose nothing, and hosts that use them beside datagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from edgellama.link.links import AUTO, Links
from edgellama.link.streams import CloseStream, Streams
from edgellama.testing.network import HOST_WINDOW_PACKETS, SimulatedHost
from edgellama.wire.stream import STREAM_GREETING

if TYPE_CHECKING:
    from edgellama.link.endpoint import Endpoint, Identity
    from edgellama.testing.network import SimulatedNetwork
    from edgellama.values import Address

WRITE_BYTES_MAX: Final = 64 << 10
"""On its way in one direction: then a pipe takes no more, as a socket whose buffer is full."""


class _End:
    """One end of a pipe, at a host: its stream there, and what it still has to say."""

    def __init__(self, host: StreamingHost, stream: int) -> None:
        self.host, self.stream = host, stream
        self.other: _End | None = None  # once it is connected
        self.under_way = 0  # bytes


class Pipes:
    """Every TCP connection of a simulated network, and where none can be made."""

    def __init__(self, network: SimulatedNetwork, delay_s: float = 0.002) -> None:
        self.network = network
        self.delay_s = delay_s
        self.hosts: dict[Address, StreamingHost] = {}
        self.blocked: set[Address] = set()  # answers nothing, or with nothing any more
        self.refusing: set[Address] = set()

    def connect(self, end: _End, address: Address) -> None:
        """Do what the network does with a call of connect."""
        if address not in self.blocked and end.host.address not in self.blocked:
            self.network.at(self.network.now + self.delay_s, lambda: self._arrive(end, address))

    def _arrive(self, end: _End, address: Address) -> None:
        host = self.hosts.get(address)
        if host is None or not host.is_up or address in self.refusing:
            self._later(end, lambda: end.host.broken(end, "connection refused"))
            return
        other = _End(host, 0)
        end.other, other.other = other, end
        self._later(end, lambda: end.host.opened(end))

    def write(self, end: _End, data: bytes) -> None:
        """Let bytes arrive, in their order and after the delay, unless something is in the way."""
        end.under_way += len(data)

        def arrive() -> None:
            other = end.other
            if other is None or {end.host.address, other.host.address} & self.blocked:
                return  # they wait, and so does all that follows
            end.under_way -= len(data)
            other.host.receive(other, data)
            if end.host.is_up:
                end.host.act(lambda _: None)  # there is room again

        self.network.at(self.network.now + self.delay_s, arrive)

    def close(self, end: _End) -> None:
        """Let the other end read the end of the stream."""
        other = end.other
        if other is not None and not {end.host.address, other.host.address} & self.blocked:
            self._later(other, lambda: other.host.broken(other, "it was closed"))

    def _later(self, end: _End, call: object) -> None:
        assert callable(call)
        self.network.at(self.network.now + self.delay_s, call)


class StreamingHost(SimulatedHost):
    """A host whose links go over datagrams or over pipes, as ``Links`` chooses."""

    def __init__(
        self,
        network: SimulatedNetwork,
        pipes: Pipes,
        identity: Identity,
        address: Address,
        mesh_key: bytes = b"",
        transport: str = AUTO,
    ) -> None:
        super().__init__(network, identity, address, mesh_key, HOST_WINDOW_PACKETS)
        entropy = network.entropy(f"streams {identity.node} {identity.incarnation}")
        self.streams = Streams(identity, mesh_key, entropy)
        self.links = Links(self.endpoint, self.streams, transport)
        self.endpoint = cast("Endpoint", self.links)  # it is used as an endpoint is
        self._pipes = pipes
        self._ends: dict[int, _End] = {}
        pipes.hosts[address] = self

    @property
    def is_up(self) -> bool:
        """Whether it has not crashed."""
        return self._alive

    def crash(self) -> None:
        """Vanish without a word: pipes stay as they are, and nobody is at their ends."""
        super().crash()

    def opened(self, end: _End) -> None:
        """Take note that a pipe is connected."""
        if self._alive and end.stream in self._ends:
            self.streams.opened(end.stream, self.network.now)
            self._settle()

    def receive(self, end: _End, data: bytes) -> None:
        """Take bytes from a pipe; the first ones of a new pipe are its greeting."""
        if not self._alive:
            return
        now = self.network.now
        if end.stream == 0:
            greeting, data = data[: len(STREAM_GREETING)], data[len(STREAM_GREETING) :]
            assert end.other is not None
            accepted = None
            if greeting == STREAM_GREETING and self.links.transport != "udp":
                accepted = self.streams.accept(end.other.host.address.host, now)
            if accepted is None:
                self._pipes.close(end)
                return
            end.stream = accepted
            self._ends[accepted] = end
        self.streams.receive(end.stream, data, now)
        self._settle()

    def broken(self, end: _End, reason: str) -> None:
        """Take note that a pipe has come to its end."""
        if self._alive and self._ends.pop(end.stream, None) is not None:
            self.streams.broken(end.stream, reason, self.network.now)
            self._settle()

    def _settle(self) -> None:
        """Do what the driver does: events, datagrams, then what the pipes take."""
        while True:
            super()._settle()
            if not self._pump():
                return

    def _pump(self) -> bool:
        """Carry out wishes and write; return whether anything was done."""
        done = False
        while (wish := self.streams.next_wish()) is not None:
            done = True
            if isinstance(wish, CloseStream):
                end = self._ends.pop(wish.stream, None)
                if end is not None:
                    self._pipes.close(end)
            else:
                end = self._ends[wish.stream] = _End(self, wish.stream)
                self._pipes.connect(end, wish.address)
        for stream in list(self.streams.sending()):
            end = self._ends.get(stream)
            while end is not None and end.other is not None and end.under_way < WRITE_BYTES_MAX:
                data = self.streams.next_data(stream)
                if not data:
                    break
                done = True
                self._pipes.write(end, data)
        return done
