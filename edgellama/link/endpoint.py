"""All the peers of one socket: handshakes, connections and the events they give.

Sans-IO: after each call that puts something in, take every event with ``next_event`` and call
``datagrams_to_send`` until it gives nothing; then nothing happens before ``next_timer``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.link.connection import Connection
from edgellama.link.events import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    MessageReceived,
)
from edgellama.link.handshake import Dial, HalfOpen
from edgellama.link.identity import Identity
from edgellama.values import NODE_ID_DIGITS, Address, LinkCounters, NodeId
from edgellama.wire.datagram import (
    EPHEMERAL_BYTES,
    INDEX_BYTES,
    PROTOCOL_VERSION,
    WINDOW_PACKETS_MIN,
    DatagramType,
    Handshake,
    Header,
    parse_handshake,
    parse_header,
)
from edgellama.wire.frames import MESSAGE_BYTES_MAX, CloseCode, Priority
from edgellama.wire.sealing import MeshKeys, Seal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "Connected",
    "DialFailed",
    "Disconnected",
    "Endpoint",
    "Event",
    "Identity",
    "MessageReceived",
    "PeerInfo",
    "Priority",
]

CONNECTIONS_MAX = 256
DIALS_MAX = 512
"""Enough to try every address of a home network at once."""

HALF_OPEN_MAX = 64
INCARNATIONS_KEPT_MAX = 1024
EVENTS_MAX = 4096
"""Beyond so many events not taken, datagrams are dropped as a full socket would drop them."""

CLOSE_COPIES = 3
"""A lost close costs the peer seconds, and the sender may not be there to repeat it."""


@dataclass(frozen=True)
class PeerInfo:
    """What is known of a connected peer."""

    identity: Identity
    address: Address
    round_trip_s: float | None  # smoothed; None before the first measurement
    silent_since: float  # when the last authenticated packet came


class Endpoint:
    """One node's end of all its links.

    ``mesh_key`` tells meshes apart, empty for the open mesh; ``window_packets`` is how many
    datagrams the socket's receive buffer holds; ``entropy(n)`` gives n unpredictable bytes.
    """

    def __init__(
        self,
        identity: Identity,
        mesh_key: bytes,
        window_packets: int,
        entropy: Callable[[int], bytes],
    ) -> None:
        assert len(identity.node) == NODE_ID_DIGITS
        assert WINDOW_PACKETS_MIN <= window_packets <= 0xFFFF
        self.identity = identity
        self._keys = MeshKeys(mesh_key)
        self._initiation_seal = self._keys.initiation()
        self._window_packets = window_packets
        self._entropy = entropy
        self._events: deque[Event] = deque()
        self._outbox: deque[tuple[bytes, Address]] = deque()  # handshakes and closes
        self._by_index: dict[int, Dial | HalfOpen | Connection] = {}
        self._dials: dict[Address, Dial] = {}
        self._half_open: dict[bytes, HalfOpen] = {}  # by the initiator's ephemeral bytes
        self._connections: dict[NodeId, tuple[int, Connection]] = {}  # with the receiver index
        self._incarnations: dict[NodeId, int] = {}  # the greatest seen, oldest entry first
        self._past = LinkCounters()  # of connections that are over

    # What the layer above asks for

    def dial(self, address: Address, now: float) -> None:
        """Try to connect; Connected or DialFailed follows within ``DIAL_TIMEOUT_S``.

        Dialling an address that is being dialled changes nothing, and a dial that reaches a node
        already connected ends without an event.
        """
        if address in self._dials:
            return
        if len(self._dials) >= DIALS_MAX:
            self._events.append(DialFailed(address, "too many dials at once"))
            return
        index = self._new_index()
        ephemeral = self._entropy(EPHEMERAL_BYTES)
        dial = Dial(self._keys, self.identity, address, ephemeral, index, self._window_packets, now)
        self._dials[address] = self._by_index[index] = dial
        self._outbox.append((dial.initiation(now), address))

    def send(self, node: NodeId, message: bytes, priority: Priority, now: float) -> None:
        """Send a message of at most 64 MiB: unordered, reliable, exactly once.

        Raises KeyError when the node is not connected.
        """
        assert len(message) <= MESSAGE_BYTES_MAX
        _, connection = self._connections[node]
        connection.send(message, priority, now)
        if connection.ended is not None:
            self._end(connection, connection.ended, CloseCode.OVERLOADED)

    def disconnect(self, node: NodeId, now: float) -> None:
        """End the connection, if there is one, and tell the peer; gives no event here."""
        if node in self._connections:
            self._drop(node, CloseCode.LEAVING)

    def peers(self) -> Mapping[NodeId, PeerInfo]:
        """Return the connected peers."""
        return {
            node: PeerInfo(
                connection.identity,
                connection.address,
                connection.recovery.rtt.smoothed if connection.recovery.rtt.measured else None,
                connection.heard_at,
            )
            for node, (_, connection) in self._connections.items()
        }

    def counters(self, node: NodeId) -> LinkCounters:
        """Return what has gone over the connection to a node; KeyError without one."""
        return self._connections[node][1].counters()

    def total_counters(self) -> LinkCounters:
        """Return what has gone over all connections, past ones too; without handshakes."""
        total = self._past
        for _, connection in self._connections.values():
            total += connection.counters()
        return total

    def unfinished(self) -> int:
        """Return how many messages to all peers are not fully acknowledged."""
        return sum(connection.unfinished for _, connection in self._connections.values())

    def next_event(self) -> Event | None:
        """Return the next event, or None when there is none."""
        return self._events.popleft() if self._events else None

    # Receiving

    def receive_datagram(self, data: bytes | memoryview, address: Address, now: float) -> None:
        """Take whatever came from the network; what is not ours is dropped without a trace."""
        datagram = bytes(data)
        header = parse_header(datagram)
        if header is None or len(self._events) >= EVENTS_MAX:
            return
        if header.version != PROTOCOL_VERSION:
            dial = self._dials.get(address)
            if dial is not None:  # a hint for a person, no more: nothing here is authenticated
                dial.failure = "it may run another version of edgellama"
            return
        if header.kind == DatagramType.INITIATION:
            self._receive_initiation(datagram, address, now)
            return
        receiver = self._by_index.get(header.receiver_index)
        if receiver is None:
            return
        # The table of states: a kind of datagram that is missing here means nothing to its
        # receiver in its present state.
        if isinstance(receiver, Connection):
            if header.kind == DatagramType.DATA:
                self._receive_packet(receiver, datagram, header, address, now)
        elif isinstance(receiver, HalfOpen):
            if header.kind == DatagramType.DATA:
                self._receive_confirmation(receiver, datagram, header, address, now)
        elif header.kind == DatagramType.RESPONSE:
            self._receive_response(receiver, datagram, address, now)

    def _receive_packet(
        self,
        connection: Connection,
        datagram: bytes,
        header: Header,
        address: Address,
        now: float,
    ) -> None:
        messages = connection.receive(datagram, header.packet_number, address, now)
        node = connection.identity.node
        for message in messages:
            self._events.append(MessageReceived(node, message))
        if connection.ended is not None:
            self._end(connection, connection.ended, None)

    def _receive_initiation(self, datagram: bytes, address: Address, now: float) -> None:
        handshake = self._open_handshake(self._initiation_seal, datagram, DatagramType.INITIATION)
        if handshake is None:
            return
        if handshake.node == self.identity.node:
            own = self._by_index.get(handshake.receiver_index)
            if isinstance(own, Dial) and own.ephemeral == handshake.ephemeral:
                self._fail(own, "that is this device itself")
            return
        half = self._half_open.get(handshake.ephemeral)
        if half is None:
            half = self._respond(handshake, address, now)
        if half is not None:
            self._outbox.append((half.response, address))

    def _respond(self, handshake: Handshake, address: Address, now: float) -> HalfOpen | None:
        established_index = 0
        if handshake.node in self._connections:
            _, connection = self._connections[handshake.node]
            if connection.identity.incarnation == handshake.incarnation:
                if connection.peer_index == handshake.receiver_index:
                    return None  # a late copy of the initiation that made this connection
                established_index = connection.peer_index
        elif len(self._connections) >= CONNECTIONS_MAX:
            return None
        while len(self._half_open) >= HALF_OPEN_MAX:
            self._forget_half_open(next(iter(self._half_open.values())))
        half = HalfOpen(
            self._keys,
            self.identity,
            handshake,
            address,
            self._entropy(EPHEMERAL_BYTES),
            self._new_index(),
            established_index,
            self._window_packets,
            now,
        )
        self._half_open[handshake.ephemeral] = self._by_index[half.receiver_index] = half
        return half

    def _receive_response(self, dial: Dial, datagram: bytes, address: Address, now: float) -> None:
        handshake = self._open_handshake(dial.response_seal, datagram, DatagramType.RESPONSE)
        if handshake is None:
            return
        if handshake.node == self.identity.node:
            self._fail(dial, "a device there has the same identity as this one")
            return
        peer = Identity(handshake.node, handshake.incarnation, handshake.guest)
        established = self._by_index.get(handshake.established_index)
        if isinstance(established, HalfOpen) and established.peer == peer:
            # The peer dialled at the same time, and its connection stands on its side.
            self._forget_dial(dial)
            self._establish_responder(established, address, now)
            return
        if handshake.node in self._connections:
            _, connection = self._connections[handshake.node]
            stands = established is connection or connection.established_at >= dial.started_at
            if stands and connection.identity.incarnation == handshake.incarnation:
                self._forget_dial(dial)
                return
        elif handshake.node < self.identity.node and self._awaits(peer):
            return  # both dialled at once: the connection of the lower node id wins
        elif len(self._connections) >= CONNECTIONS_MAX:
            self._fail(dial, "too many connections")
            return
        self._establish_initiator(dial, handshake, address, now)

    def _awaits(self, peer: Identity) -> bool:
        return any(half.peer == peer for half in self._half_open.values())

    def _receive_confirmation(
        self, half: HalfOpen, datagram: bytes, header: Header, address: Address, now: float
    ) -> None:
        if half.seal.open(datagram) is None:
            return
        self._establish_responder(half, address, now)
        _, connection = self._connections[half.peer.node]
        self._receive_packet(connection, datagram, header, address, now)

    def _open_handshake(self, seal: Seal, datagram: bytes, kind: DatagramType) -> Handshake | None:
        """Return an authentic handshake of no older life of a node than one already seen."""
        body = seal.open(datagram)
        if body is None:
            return None
        try:
            handshake = parse_handshake(body, kind)
        except WireError:
            return None
        if handshake.incarnation < self._incarnations.get(handshake.node, 0):
            return None
        return handshake

    # From handshake to connection and to its end

    def _establish_initiator(
        self, dial: Dial, handshake: Handshake, address: Address, now: float
    ) -> None:
        self._forget_dial(dial)
        connection = Connection(
            Identity(handshake.node, handshake.incarnation, handshake.guest),
            address,
            self._keys.connection(dial.ephemeral, handshake.ephemeral, initiated=True),
            handshake.receiver_index,
            handshake.window_packets,
            self._window_packets,
            now,
        )
        if dial.attempts == 1:  # of a repeated question it is unknown which one was answered
            connection.recovery.rtt.update(now - dial.started_at, 0.0, now)
        connection.ask_for_life()
        self._establish(connection, dial.receiver_index)

    def _establish_responder(self, half: HalfOpen, address: Address, now: float) -> None:
        self._forget_half_open(half)
        connection = Connection(
            half.peer,
            address,
            half.seal,
            half.peer_index,
            half.peer_window_packets,
            self._window_packets,
            now,
        )
        self._establish(connection, half.receiver_index)

    def _establish(self, connection: Connection, receiver_index: int) -> None:
        node = connection.identity.node
        if node in self._connections:
            _, old = self._connections[node]
            anew = old.identity.incarnation < connection.identity.incarnation
            self._end(old, "it started anew" if anew else "it lost the connection", None)
        for half in [half for half in self._half_open.values() if half.peer.node == node]:
            self._forget_half_open(half)
        dial = self._dials.get(connection.address)
        if dial is not None:
            self._forget_dial(dial)
        self._connections[node] = (receiver_index, connection)
        self._by_index[receiver_index] = connection
        self._incarnations.pop(node, None)
        self._incarnations[node] = connection.identity.incarnation
        while len(self._incarnations) > INCARNATIONS_KEPT_MAX:
            del self._incarnations[next(iter(self._incarnations))]
        self._events.append(Connected(connection.identity, connection.address))

    def _end(self, connection: Connection, reason: str, code: CloseCode | None) -> None:
        node = connection.identity.node
        self._drop(node, code)
        self._events.append(Disconnected(node, reason, connection.left))

    def _drop(self, node: NodeId, code: CloseCode | None) -> None:
        """Forget a connection; with a code, tell the peer."""
        receiver_index, connection = self._connections.pop(node)
        del self._by_index[receiver_index]
        if code is not None:
            for _ in range(CLOSE_COPIES):
                self._outbox.append((connection.close_datagram(code), connection.address))
        self._past += connection.counters()

    def _fail(self, dial: Dial, reason: str) -> None:
        self._forget_dial(dial)
        self._events.append(DialFailed(dial.address, reason))

    def _forget_dial(self, dial: Dial) -> None:
        del self._dials[dial.address]
        del self._by_index[dial.receiver_index]

    def _forget_half_open(self, half: HalfOpen) -> None:
        del self._half_open[half.peer_ephemeral]
        del self._by_index[half.receiver_index]

    def _new_index(self) -> int:
        """Return an unpredictable receiver index that is not in use; never 0."""
        while True:
            index = int.from_bytes(self._entropy(INDEX_BYTES), "big")
            if index and index not in self._by_index:
                return index

    # Sending and time

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Return the datagrams to send now, a burst a peer at most; empty when there are none."""
        datagrams = list(self._outbox)
        self._outbox.clear()
        for _, connection in self._connections.values():
            address = connection.address
            datagrams.extend((datagram, address) for datagram in connection.datagrams(now))
        return datagrams

    def next_timer(self) -> float | None:
        """Return when to call ``handle_timer``; None when only a call can change anything."""
        timers = [connection.next_timer() for _, connection in self._connections.values()]
        timers.extend(dial.next_timer() for dial in self._dials.values())
        timers.extend(half.expires_at for half in self._half_open.values())
        return min(timers, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        for half in [half for half in self._half_open.values() if half.expires_at <= now]:
            self._forget_half_open(half)
        for dial in list(self._dials.values()):
            if dial.deadline <= now:
                self._fail(dial, dial.failure)
            elif dial.retry_at <= now:
                self._outbox.append((dial.initiation(now), dial.address))
        for _, connection in list(self._connections.values()):
            connection.handle_timer(now)
            if connection.ended is not None:
                self._end(connection, connection.ended, CloseCode.UNHEARD)
