"""All links of a node, whatever carries them: datagrams, or TCP where those do not get through.

To the layer above it is one endpoint: a node is connected or not, in one life, over one link. By
itself it tries datagrams first, and TCP beside them when no answer comes soon. A link
by datagrams takes the place of one over TCP as soon as there is one; then the layer above is told
of a connection again, because what was under way may be lost, and of no end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.link.connection import CLOSE_REASONS
from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    MessageReceived,
    PeerInfo,
    Priority,
)
from edgellama.wire.frames import CloseCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgellama.link.endpoint import Endpoint
    from edgellama.link.streams import Streams
    from edgellama.values import Address, LinkCounters, NodeId

UDP, TCP, AUTO = TRANSPORTS = ("udp", "tcp", "auto")

TCP_AFTER_S: Final = 0.8
"""Three initiations have gone out by then, so a little loss does not lead to TCP."""

DIAL_FORGOTTEN_S: Final = 5.0
"""Longer than either transport tries: a dial that reaches a connected node ends without a word."""

HEARD_S: Final = 2.0
"""A link by datagrams that was heard within this time stands against one over TCP."""

MOVING_S: Final = 2.0
"""How long a link that ends because another one stands is given to show that one here, too."""

BACK_TO_UDP_S: Final = 60.0
"""How often datagrams are tried again to peers that were reached by TCP alone."""


@dataclass
class _Dial:
    """What was asked for, and what has become of it so far."""

    stream_address: Address
    began_at: float
    streaming: bool = False  # TCP has been tried, too
    failures: tuple[str, ...] = ()


class Links:
    """One node's end of all its links: used as its ``endpoint`` is, which it takes over.

    Sockets speak to ``streams`` itself. ``transport`` is one of TRANSPORTS.
    """

    def __init__(self, endpoint: Endpoint, streams: Streams, transport: str = AUTO) -> None:
        assert transport in TRANSPORTS
        assert endpoint.identity == streams.identity
        self.identity = endpoint.identity
        self.transport = transport
        self.endpoint, self.streams = endpoint, streams
        self.receive_datagram = _dropped if transport == TCP else endpoint.receive_datagram
        self.datagrams_to_send = endpoint.datagrams_to_send
        self.explain = endpoint.explain
        self._now = 0.0
        self._events: deque[Event] = deque()
        # What carries each link that was told of, and which life of the node is at its end.
        self._via: dict[NodeId, tuple[str, int]] = {}
        self._moving: dict[NodeId, tuple[float, Disconnected]] = {}  # told of at that time
        self._dials: dict[Address, _Dial] = {}
        self._try_udp_at: dict[NodeId, tuple[float, Address]] = {}

    # What the layer above asks for

    def dial(self, address: Address, now: float, stream_address: Address | None = None) -> None:
        """Try to connect, by TCP at ``stream_address`` where that is another one."""
        stream_address = stream_address or address
        if self.transport == UDP:
            self.endpoint.dial(address, now)
        elif self.transport == TCP:
            self._dials.setdefault(address, _Dial(stream_address, now, True))
            self.streams.dial(stream_address, now)
        elif address not in self._dials:
            self._dials[address] = _Dial(stream_address, now)
            self.endpoint.dial(address, now)

    def set_mesh_key(self, mesh_key: bytes) -> None:
        """Make every handshake from now on with another key; connections stay as they are."""
        self.endpoint.set_mesh_key(mesh_key)
        self.streams.set_mesh_key(mesh_key)

    def send(self, node: NodeId, message: bytes, priority: Priority, now: float) -> None:
        """Send a message of at most 64 MiB: unordered, reliable, exactly once.

        Raises KeyError when the node is not connected.
        """
        if self.streams.is_connected(node):
            self.streams.send(node, message, priority, now)
        else:
            self.endpoint.send(node, message, priority, now)

    def disconnect(self, node: NodeId, now: float) -> None:
        """End the connection, if there is one, and tell the peer; gives no event here."""
        self.streams.disconnect(node, CloseCode.LEAVING, now)
        self.endpoint.disconnect(node, now)
        self._via.pop(node, None)
        self._moving.pop(node, None)

    def give_up(self, node: NodeId, now: float) -> None:
        """End a connection over which nothing comes any more; gives no event here."""
        self.streams.disconnect(node, CloseCode.UNHEARD, now)
        self.endpoint.give_up(node, now)
        self._via.pop(node, None)
        self._moving.pop(node, None)

    def peers(self) -> Mapping[NodeId, PeerInfo]:
        """Return the connected peers."""
        peers = dict(self.endpoint.peers())
        for node, each in self.streams.peers().items():
            round_trip_s = each.rtt.smoothed if each.rtt.measured else None
            peers[node] = PeerInfo(each.identity, each.address, round_trip_s, each.heard_at)
        return peers

    def transport_of(self, node: NodeId) -> str:
        """Return what carries the link to a node, empty without one."""
        if self.streams.is_connected(node):
            return TCP
        return UDP if node in self.endpoint.peers() else ""

    def stream_address(self, node: NodeId) -> Address | None:
        """Return where a node was reached by TCP, if it was and this side dialled."""
        connection = self.streams.peers().get(node)
        return connection.address if connection is not None and connection.initiated else None

    def counters(self, node: NodeId) -> LinkCounters:
        """Return what has gone over the connection to a node; KeyError without one."""
        connection = self.streams.peers().get(node)
        return connection.counters() if connection else self.endpoint.counters(node)

    def total_counters(self) -> LinkCounters:
        """Return what has gone over all connections, past ones too; without handshakes."""
        return self.endpoint.total_counters() + self.streams.total_counters()

    def unfinished(self) -> int:
        """Return how many messages to all peers are not fully acknowledged, or not written."""
        waiting = sum(each.unfinished for each in self.streams.peers().values())
        return self.endpoint.unfinished() + waiting

    # Events

    @property
    def has_events(self) -> bool:
        """Whether ``next_event`` may have one to give."""
        return bool(self._events) or self.endpoint.has_events

    def next_event(self) -> Event | None:
        """Return the next event of either transport, or None when there is none."""
        now = max(self._now, self.streams.now)
        while not self._events:
            event = self.endpoint.next_event()
            if event is not None:
                self._from_endpoint(event, now)
                continue
            event = self.streams.next_event()
            if event is None:
                return None
            self._from_streams(event, now)
        return self._events.popleft()

    def _from_endpoint(self, event: Event, now: float) -> None:
        if isinstance(event, DialFailed):
            self._dial_failed(event.address, event.reason, now)
        elif isinstance(event, Connected):
            self._connected_by_udp(event, now)
        else:
            self._pass_on(event, UDP)

    def _connected_by_udp(self, event: Connected, now: float) -> None:
        node = event.identity.node
        stream = self.streams.peers().get(node)
        asking = event.identity.guest or self.identity.guest
        if stream is not None and asking and event.identity == stream.identity:
            self.endpoint.disconnect(node, now)  # a question is not worth the change
            return
        self.streams.disconnect(node, CloseCode.MOVED, now)
        self.streams.note_life(node, event.identity.incarnation)
        self._try_udp_at.pop(node, None)
        self._dials.pop(event.address, None)
        self._tell(event, UDP)

    def _from_streams(self, event: Event, now: float) -> None:
        if isinstance(event, DialFailed):
            prefix = "by TCP: " if self.transport == AUTO else ""
            for address, dial in list(self._dials.items()):
                if dial.stream_address == event.address and dial.streaming:
                    self._dial_failed(address, f"{prefix}{event.reason}", now)
        elif isinstance(event, Connected):
            self._connected_by_tcp(event, now)
        else:
            self._pass_on(event, TCP)

    def _connected_by_tcp(self, event: Connected, now: float) -> None:
        node, incarnation = event.identity.node, event.identity.incarnation
        connection = self.streams.peers().get(node)
        if connection is None:
            return  # it has ended again meanwhile, and its end is an event, too
        other = self.endpoint.peers().get(node)
        if other is not None:
            alike = other.identity.incarnation == incarnation
            if alike and now - other.silent_since < HEARD_S:
                self.streams.disconnect(node, CloseCode.MOVED, now)
                return
            self.endpoint.disconnect(node, now)
        self.endpoint.note_life(node, incarnation)
        for address, dial in list(self._dials.items()):
            if connection.initiated and dial.stream_address == connection.address:
                del self._dials[address]
                if self.transport == AUTO:
                    self._try_udp_at[node] = now + BACK_TO_UDP_S, address
        self._tell(event, TCP)

    def _tell(self, event: Connected, transport: str) -> None:
        """Tell of a link, and before that of the end of an earlier life's."""
        node, incarnation = event.identity.node, event.identity.incarnation
        if node in self._via and self._via[node][1] != incarnation:
            self._events.append(Disconnected(node, "it started anew"))
        self._via[node] = transport, incarnation
        self._moving.pop(node, None)
        self._events.append(event)

    def _pass_on(self, event: Event, transport: str) -> None:
        """Pass on what concerns a link that stands, not one that another has replaced."""
        assert isinstance(event, MessageReceived | Disconnected)
        if self._via.get(event.node, ("",))[0] != transport:
            return
        if isinstance(event, Disconnected):
            if event.reason == CLOSE_REASONS[CloseCode.MOVED]:
                self._moving[event.node] = self.streams.now + MOVING_S, event
                return
            del self._via[event.node]
        self._events.append(event)

    def _dial_failed(self, address: Address, reason: str, now: float) -> None:
        dial = self._dials.get(address)
        if dial is None:
            if self.transport == UDP:
                self._events.append(DialFailed(address, reason))
            return
        dial.failures = (*dial.failures, reason)
        if not dial.streaming:
            self._stream(dial, now)
        elif len(dial.failures) == 2 or self.transport == TCP:
            del self._dials[address]
            self._events.append(DialFailed(address, "; ".join(dial.failures)))

    def _stream(self, dial: _Dial, now: float) -> None:
        dial.streaming = True
        self.streams.dial(dial.stream_address, now)

    # Time

    def next_timer(self) -> float | None:
        """Return when to call ``handle_timer``; None when only a call can change anything."""
        timers = [
            dial.began_at + (DIAL_FORGOTTEN_S if dial.streaming else TCP_AFTER_S)
            for dial in self._dials.values()
        ]
        timers += [at for at, _ in self._try_udp_at.values()]
        timers += [at for at, _ in self._moving.values()]
        both = (self.endpoint.next_timer(), self.streams.next_timer())
        timers += [timer for timer in both if timer is not None]
        return min(timers, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        self._now = now
        self.endpoint.handle_timer(now)
        self.streams.handle_timer(now)
        connected = {info.address for info in self.endpoint.peers().values()}
        for address, dial in list(self._dials.items()):
            if now >= dial.began_at + DIAL_FORGOTTEN_S:
                del self._dials[address]
            elif not dial.streaming and now >= dial.began_at + TCP_AFTER_S:
                if address in connected:
                    del self._dials[address]
                else:
                    self._stream(dial, now)
        for node, (at, event) in list(self._moving.items()):
            if now >= at:
                del self._moving[node], self._via[node]
                self._events.append(event)
        for node, (at, address) in list(self._try_udp_at.items()):
            if not self.streams.is_connected(node):
                del self._try_udp_at[node]
            elif now >= at:
                self._try_udp_at[node] = now + BACK_TO_UDP_S, address
                self.endpoint.dial(address, now)


def _dropped(_data: bytes | memoryview, _address: Address, _now: float) -> None:
    """Take a datagram on a node that speaks TCP alone."""
