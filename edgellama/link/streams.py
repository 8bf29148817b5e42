"""All the peers that are reached over TCP: handshakes, connections and the events they give.

Sans-IO, as the endpoint is: after each call take every event with ``next_event`` and every wish
with ``next_wish``, write what ``next_data`` gives while the sockets take it, and call
``handle_timer`` at ``next_timer``. The rules of lives are the endpoint's; docs/spec/stream.md.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.errors import WireError
from edgellama.link.admission import Lives
from edgellama.link.events import Connected, DialFailed, Disconnected, Event, MessageReceived
from edgellama.link.handshake import DIAL_TIMEOUT_S, HALF_OPEN_S
from edgellama.link.identity import Identity
from edgellama.link.stream_connection import StreamConnection
from edgellama.values import Address, LinkCounters, NodeId
from edgellama.wire.datagram import (
    WINDOW_PACKETS_MIN,
    DatagramType,
    Handshake,
    pack_handshake,
    parse_handshake,
)
from edgellama.wire.frames import MESSAGE_BYTES_MAX, CloseCode, Priority
from edgellama.wire.noise import EPHEMERAL_BYTES, Opening
from edgellama.wire.sealing import mesh_psk
from edgellama.wire.stream import LENGTH, OPENING_BYTES_MAX, STREAM_GREETING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edgellama.wire.noise import Initiator

STREAMS_MAX: Final = 256
DIALS_MAX: Final = 64
HALF_OPEN_MAX: Final = 64
CLOSING_S: Final = 1.0
"""How long a socket may take to let the last words go."""


class OpenStream(NamedTuple):
    """Connect to this address by TCP, then say ``opened`` or ``broken``."""

    stream: int
    address: Address


class CloseStream(NamedTuple):
    """Close the socket; nothing more is to be said of it."""

    stream: int


@dataclass
class _Stream:
    """What stands behind one socket, by what is known of it."""

    address: Address  # that was dialled, or where it came from, with port 0
    expires_at: float  # until there is a connection
    dialled: Address | None = None  # by whoever asked for it, while it is no connection
    noise: Initiator | None = None  # of the side that asks, until the answer
    incoming: bytearray = field(default_factory=bytearray)  # of the handshake
    outgoing: deque[bytes] = field(default_factory=deque)
    connection: StreamConnection | None = None
    half_open: bool = False  # answered, and not yet heard
    closing: bool = False


class Streams:
    """One node's end of all its links over TCP."""

    def __init__(
        self, identity: Identity, mesh_key: bytes, entropy: Callable[[int], bytes]
    ) -> None:
        self.identity = identity
        self._opening = Opening(mesh_psk(mesh_key), STREAM_GREETING)
        self._entropy = entropy
        self._events: deque[Event] = deque()
        self._wishes: deque[OpenStream | CloseStream] = deque()
        self._streams: dict[int, _Stream] = {}
        self._by_node: dict[NodeId, int] = {}
        self._lives = Lives()
        self._handshakes = 0  # begun in this life
        self._next_stream = 1
        self.now = 0.0  # when something last came, or was done
        self._past = LinkCounters()

    # What the layer above asks for

    def dial(self, address: Address, now: float) -> None:
        """Try to connect; Connected or DialFailed follows, or nothing if there is a connection."""
        dialled = [each for each in self._streams.values() if each.dialled is not None]
        if any(each.dialled == address for each in dialled):
            return
        if len(dialled) >= DIALS_MAX or len(self._streams) >= STREAMS_MAX:
            self._events.append(DialFailed(address, "too many dials at once"))
            return
        stream = self._add(_Stream(address, now + DIAL_TIMEOUT_S, dialled=address))
        self._wishes.append(OpenStream(stream, address))

    def set_mesh_key(self, mesh_key: bytes) -> None:
        """Make every handshake from now on with another key; connections stay as they are."""
        self._opening = Opening(mesh_psk(mesh_key), STREAM_GREETING)
        for stream, each in list(self._streams.items()):
            if each.connection is None or each.half_open:
                self._fail(stream, "the mesh has another key now")

    def note_life(self, node: NodeId, incarnation: int) -> None:
        """Take note of a life that is connected by another transport."""
        self._lives.connect(node, incarnation)

    def send(self, node: NodeId, message: bytes, priority: Priority, now: float) -> None:
        """Send a message of at most 64 MiB: reliable, exactly once. KeyError for no peer."""
        assert len(message) <= MESSAGE_BYTES_MAX
        connection = self._connection(node)
        connection.send(message, priority, now)
        if connection.ended is not None:
            self._end(node, connection.ended, CloseCode.OVERLOADED, now)

    def disconnect(self, node: NodeId, code: CloseCode, now: float) -> None:
        """End the connection, if there is one, and tell the peer; gives no event here."""
        if node in self._by_node:
            self._drop(node, code, now)

    def is_connected(self, node: NodeId) -> bool:
        """Return whether there is a connection to a node."""
        return node in self._by_node

    def peers(self) -> Mapping[NodeId, StreamConnection]:
        """Return the connections that stand."""
        return {node: self._connection(node) for node in self._by_node}

    def total_counters(self) -> LinkCounters:
        """Return what has gone over all connections, past ones too; without handshakes."""
        total = self._past
        for connection in self.peers().values():
            total += connection.counters()
        return total

    def next_event(self) -> Event | None:
        """Return the next event, or None when there is none."""
        return self._events.popleft() if self._events else None

    @property
    def has_events(self) -> bool:
        """Whether ``next_event`` has one."""
        return bool(self._events)

    def next_wish(self) -> OpenStream | CloseStream | None:
        """Return what the sockets shall do next, or None."""
        return self._wishes.popleft() if self._wishes else None

    # What the sockets say

    def accept(self, host: str, now: float) -> int | None:
        """Take a connection whose greeting has been read; None when there are too many."""
        asked = [each for each in self._streams.values() if each.dialled is None]
        half_open = [each for each in asked if each.connection is None or each.half_open]
        if len(self._streams) >= STREAMS_MAX or len(half_open) >= HALF_OPEN_MAX:
            return None
        return self._add(_Stream(Address(host, 0), now + HALF_OPEN_S))

    def opened(self, stream: int, now: float) -> None:
        """Begin the handshake: the socket is connected."""
        each = self._streams.get(stream)
        if each is None or each.dialled is None or each.noise is not None:
            return
        own = pack_handshake(self._handshake(), DatagramType.RESPONSE)
        each.noise = self._opening.ask(self._entropy, own)
        each.outgoing.append(STREAM_GREETING + _prefixed(each.noise.message))

    def broken(self, stream: int, reason: str, now: float) -> None:
        """Take note that a socket could not be connected, or has come to its end."""
        self.now = now
        each = self._streams.get(stream)
        if each is None:
            return
        if each.connection is not None and not each.half_open and not each.closing:
            self._end(each.connection.identity.node, f"its connection broke: {reason}", None, now)
        elif each.noise is not None:
            self._fail(stream, f"{reason} without an answer (another mesh, or another release?)")
        else:
            self._fail(stream, reason)

    def receive(self, stream: int, data: bytes, now: float) -> None:
        """Take bytes that came; whatever is not the peer's ends the connection without a word."""
        self.now = now
        each = self._streams.get(stream)
        if each is None or each.closing:
            return
        if each.connection is None:
            each.incoming += data
            data = self._take_opening(stream, each, now)
        if data and each.connection is not None:
            self._receive_records(stream, each, each.connection, data, now)

    def sending(self) -> Iterator[int]:
        """Return the streams for which ``next_data`` has something."""
        for stream, each in self._streams.items():
            if each.outgoing or (each.connection is not None and each.connection.wants_to_send):
                yield stream

    def next_data(self, stream: int) -> bytes:
        """Return what to write next, a record at most; empty when there is nothing."""
        each = self._streams.get(stream)
        if each is None:
            return b""
        data = b""
        if each.outgoing:
            data = each.outgoing.popleft()
        elif each.connection is not None:
            data = each.connection.next_data()
        if not data and each.closing:
            self._forget(stream)
        return data

    # Handshakes

    def _take_opening(self, stream: int, each: _Stream, now: float) -> bytes:
        """Take a whole message of the handshake; return what stands behind it."""
        if len(each.incoming) < LENGTH.size:
            return b""
        (size,) = LENGTH.unpack_from(each.incoming)
        past = LENGTH.size + size
        if size > OPENING_BYTES_MAX:
            self._fail(stream, "it does not speak as this release does")
            return b""
        if len(each.incoming) < past:
            return b""
        message, rest = bytes(each.incoming[LENGTH.size : past]), bytes(each.incoming[past:])
        each.incoming.clear()
        if each.noise is not None:
            self._take_answer(stream, each, message, now)
        elif each.dialled is None:
            self._answer(stream, each, message, now)
        return rest

    def _answer(self, stream: int, each: _Stream, message: bytes, now: float) -> None:
        question = self._opening.hear(message)
        asked = None if question is None else _parsed(question.payload)
        if question is None or asked is None or asked.node == self.identity.node:
            if asked is not None:
                self._fail_own_dial(question.ephemeral if question else b"")
            self._forget(stream)
            return
        if self._lives.is_old(asked):
            self._forget(stream)
            return
        own = pack_handshake(self._handshake(), DatagramType.RESPONSE)
        answered = question.answer(self._entropy(EPHEMERAL_BYTES), own)
        if answered is None:
            self._forget(stream)
            return
        self._lives.answer(asked)
        each.outgoing.append(_prefixed(answered[0]))
        peer = Identity(asked.node, asked.incarnation, asked.guest)
        each.connection = StreamConnection(peer, each.address, answered[1], now, initiated=False)
        each.half_open = True

    def _fail_own_dial(self, ephemeral: bytes) -> None:
        for stream, each in list(self._streams.items()):
            if each.noise is not None and each.noise.ephemeral == ephemeral:
                self._fail(stream, "that is this device itself")

    def _take_answer(self, stream: int, each: _Stream, message: bytes, now: float) -> None:
        assert each.noise is not None
        finished = each.noise.finish(message)
        answer = None if finished is None else _parsed(finished[0])
        if finished is None or answer is None:
            self._fail(stream, "it belongs to another mesh, or to another release")
            return
        peer = Identity(answer.node, answer.incarnation, answer.guest)
        if peer.node == self.identity.node:
            self._fail(stream, "a device there has the same identity as this one")
            return
        if self._lives.is_over(peer.node, peer.incarnation):
            self._forget(stream)
            return
        # Both dialled at once: the connection of the lower node id wins.
        waits = peer.node < self.identity.node and self._awaits(peer)
        if waits or self._stands(peer):
            self._forget(stream)
            return
        each.connection = StreamConnection(peer, each.address, finished[1], now, initiated=True)
        each.connection.ask_for_life(now)
        self._establish(stream, each, each.connection, now)

    def _awaits(self, peer: Identity) -> bool:
        return any(
            each.half_open and each.connection is not None and each.connection.identity == peer
            for each in self._streams.values()
        )

    def _stands(self, peer: Identity) -> bool:
        stream = self._by_node.get(peer.node)
        connection = None if stream is None else self._streams[stream].connection
        return connection is not None and connection.identity.incarnation == peer.incarnation

    def _establish(
        self, stream: int, each: _Stream, connection: StreamConnection, now: float
    ) -> None:
        node = connection.identity.node
        if node in self._by_node:
            old = self._connection(node).identity.incarnation
            anew = old < connection.identity.incarnation
            reason = "it started anew" if anew else "it lost the connection"
            self._end(node, reason, CloseCode.REPLACED if anew else None, now)
        each.half_open, each.noise, each.dialled = False, None, None
        self._by_node[node] = stream
        self._lives.connect(node, connection.identity.incarnation)
        self._events.append(Connected(connection.identity, connection.address))

    def _handshake(self) -> Handshake:
        self._handshakes += 1
        return Handshake(
            node=self.identity.node,
            incarnation=self.identity.incarnation,
            number=self._handshakes,
            receiver_index=1,  # a stream needs neither this nor the next two
            established_index=0,
            window_packets=WINDOW_PACKETS_MIN,
            guest=self.identity.guest,
        )

    # Connections

    def _receive_records(
        self, stream: int, each: _Stream, connection: StreamConnection, data: bytes, now: float
    ) -> None:
        node = connection.identity.node
        try:
            messages = connection.receive(data, self._opening, self._entropy(EPHEMERAL_BYTES), now)
        except WireError as error:
            self.broken(stream, str(error), now)
            return
        if each.half_open and connection.counters().packets_received:
            if self._lives.is_over(node, connection.identity.incarnation):
                self._forget(stream)
                return
            self._establish(stream, each, connection, now)
        self._events.extend(MessageReceived(node, message) for message in messages)
        if connection.ended is not None and self._by_node.get(node) == stream:
            self._end(node, connection.ended, None, now)

    def _connection(self, node: NodeId) -> StreamConnection:
        connection = self._streams[self._by_node[node]].connection
        assert connection is not None
        return connection

    def _end(self, node: NodeId, reason: str, code: CloseCode | None, now: float) -> None:
        left = self._connection(node).left
        self._drop(node, code, now)
        self._events.append(Disconnected(node, reason, left))

    def _drop(self, node: NodeId, code: CloseCode | None, now: float) -> None:
        """Forget a connection; with a code, tell the peer first."""
        stream = self._by_node.pop(node)
        each = self._streams[stream]
        assert each.connection is not None
        if code is None:
            self._past += each.connection.counters()
            self._forget(stream)
            return
        each.connection.close(code)
        self._past += each.connection.counters()
        each.closing, each.expires_at = True, now + CLOSING_S

    def _add(self, each: _Stream) -> int:
        stream = self._next_stream
        self._next_stream += 1
        self._streams[stream] = each
        return stream

    def _fail(self, stream: int, reason: str) -> None:
        each = self._streams[stream]
        self._forget(stream)
        if each.dialled is not None:
            self._events.append(DialFailed(each.dialled, reason))

    def _forget(self, stream: int) -> None:
        del self._streams[stream]
        self._wishes.append(CloseStream(stream))

    # Time

    def next_timer(self) -> float | None:
        """Return when to call ``handle_timer``; None when only a call can change anything."""
        timers = [
            each.expires_at
            for each in self._streams.values()
            if each.connection is None or each.half_open or each.closing
        ]
        timers.extend(each.next_timer() for each in self.peers().values())
        return min(timers, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        self.now = now
        for stream, each in list(self._streams.items()):
            connecting = each.connection is None or each.half_open
            if (connecting or each.closing) and each.expires_at <= now:
                self._fail(stream, "no answer")
        for node, connection in self.peers().items():
            connection.handle_timer(now)
            if connection.take_renewal(now):
                connection.ask_for_keys(self._opening.ask(self._entropy, b""))
            if connection.ended is not None:
                self._end(node, connection.ended, CloseCode.UNHEARD, now)


def _prefixed(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def _parsed(body: bytes) -> Handshake | None:
    try:
        return parse_handshake(body, DatagramType.RESPONSE)
    except WireError:
        return None
