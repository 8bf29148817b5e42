"""All the peers of one socket: handshakes, connections and the events they give.

Sans-IO: after each call that puts something in, take every event with ``next_event`` and call
``datagrams_to_send`` until it gives nothing; then nothing happens before ``next_timer``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from edgellama.link.admission import FloodGuard, Lives
from edgellama.link.connection import Connection
from edgellama.link.events import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    MessageReceived,
)
from edgellama.link.handshake import Dial, HalfOpen, Initiation, half_open, open_initiation
from edgellama.link.identity import Identity
from edgellama.values import NODE_ID_DIGITS, Address, LinkCounters, NodeId
from edgellama.wire.datagram import (
    INDEX_BYTES,
    PROTOCOL_VERSION,
    WINDOW_PACKETS_MIN,
    DatagramType,
    Handshake,
    Header,
    parse_header,
)
from edgellama.wire.frames import MESSAGE_BYTES_MAX, CloseCode, Priority
from edgellama.wire.noise import Opening
from edgellama.wire.sealing import LINK_PROLOGUE, Seal, mesh_psk

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
EVENTS_MAX = 4096
"""Beyond so many events not taken, datagrams are dropped as a full socket would drop them."""

OLD_KEYS_S = 10.0
"""How long packets under the keys before the newest are still taken: longer than any is late."""

CLOSE_COPIES = 3
"""A lost close costs the peer seconds, and the sender may not be there to repeat it."""


@dataclass(frozen=True)
class PeerInfo:
    """What is known of a connected peer."""

    identity: Identity
    address: Address
    round_trip_s: float | None  # smoothed; None before the first measurement
    silent_since: float  # when the last authenticated packet came


class _Keyed(NamedTuple):
    """What stands behind a receiver index of a connection: its seal, of new keys or of old."""

    connection: Connection
    seal: Seal


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
        self._opening = Opening(mesh_psk(mesh_key), LINK_PROLOGUE)
        self._window_packets = window_packets
        self._entropy = entropy
        self._events: deque[Event] = deque()
        self._outbox: deque[tuple[bytes, Address]] = deque()  # handshakes and closes
        self._by_index: dict[int, Dial | HalfOpen | _Keyed] = {}
        self._dials: dict[Address, Dial] = {}
        self._half_open: dict[bytes, HalfOpen] = {}  # by the initiator's ephemeral bytes
        self._connections: dict[NodeId, Connection] = {}
        self._old_keys: deque[tuple[float, int]] = deque()  # when to forget which index
        self._lives = Lives()
        self._guard = FloodGuard(entropy)
        self._handshakes = 0  # begun in this life
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
        self._begin(address, None, now)

    def set_mesh_key(self, mesh_key: bytes) -> None:
        """Make every handshake from now on with another key; connections stay as they are."""
        self._opening = Opening(mesh_psk(mesh_key), LINK_PROLOGUE)
        for dial in list(self._dials.values()):
            self._fail(dial, "the mesh has another key now")
        for half in list(self._half_open.values()):
            self._forget_half_open(half)

    def note_life(self, node: NodeId, incarnation: int) -> None:
        """Take note of a life that is connected by another transport."""
        self._lives.connect(node, incarnation)

    def renew_keys(self, node: NodeId, now: float) -> None:
        """Ask for new keys before their time, on the side that asked for the connection."""
        connection = self._connections[node]
        if connection.initiated and connection.address not in self._dials:
            self._begin(connection.address, connection, now)

    def send(self, node: NodeId, message: bytes, priority: Priority, now: float) -> None:
        """Send a message of at most 64 MiB: unordered, reliable, exactly once.

        Raises KeyError when the node is not connected.
        """
        assert len(message) <= MESSAGE_BYTES_MAX
        connection = self._connections[node]
        connection.send(message, priority, now)
        if connection.ended is not None:
            self._end(connection, connection.ended, CloseCode.OVERLOADED)

    def disconnect(self, node: NodeId, now: float) -> None:
        """End the connection, if there is one, and tell the peer; gives no event here."""
        if node in self._connections:
            self._drop(node, CloseCode.LEAVING)

    def give_up(self, node: NodeId, now: float) -> None:
        """End a connection over which nothing comes any more; gives no event here."""
        if node in self._connections:
            self._drop(node, CloseCode.UNHEARD)

    def peers(self) -> Mapping[NodeId, PeerInfo]:
        """Return the connected peers."""
        return {
            node: PeerInfo(
                connection.identity,
                connection.address,
                connection.recovery.rtt.smoothed if connection.recovery.rtt.measured else None,
                connection.heard_at,
            )
            for node, connection in self._connections.items()
        }

    def counters(self, node: NodeId) -> LinkCounters:
        """Return what has gone over the connection to a node; KeyError without one."""
        return self._connections[node].counters()

    def total_counters(self) -> LinkCounters:
        """Return what has gone over all connections, past ones too; without handshakes."""
        total = self._past
        for connection in self._connections.values():
            total += connection.counters()
        return total

    def unfinished(self) -> int:
        """Return how many messages to all peers are not fully acknowledged."""
        return sum(connection.unfinished for connection in self._connections.values())

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
            self._receive_initiation(datagram, header, address, now)
            return
        receiver = self._by_index.get(header.receiver_index)
        if receiver is None:
            return
        # The table of states: a kind of datagram that is missing here means nothing to its
        # receiver in its present state.
        if isinstance(receiver, _Keyed):
            if header.kind == DatagramType.DATA:
                self._receive_packet(receiver, datagram, header, address, now)
        elif isinstance(receiver, HalfOpen):
            if header.kind == DatagramType.DATA:
                self._receive_confirmation(receiver, datagram, header, address, now)
        elif header.kind == DatagramType.RESPONSE:
            self._receive_response(receiver, datagram, address, now)
        elif header.kind == DatagramType.COOKIE and receiver.take_cookie(datagram, header):
            self._outbox.append((receiver.initiation(now), receiver.address))

    def _receive_packet(
        self, keyed: _Keyed, datagram: bytes, header: Header, address: Address, now: float
    ) -> None:
        connection = keyed.connection
        messages = connection.receive(datagram, header.packet_number, keyed.seal, address, now)
        node = connection.identity.node
        for message in messages:
            self._events.append(MessageReceived(node, message))
        if connection.ended is not None:
            self._end(connection, connection.ended, None)

    def _receive_initiation(
        self, datagram: bytes, header: Header, address: Address, now: float
    ) -> None:
        initiation = open_initiation(self._opening, datagram)
        if initiation is None:
            return
        handshake = initiation.handshake
        if handshake.node == self.identity.node:
            own = self._by_index.get(handshake.receiver_index)
            if isinstance(own, Dial) and own.ephemeral == initiation.question.ephemeral:
                self._fail(own, "that is this device itself")
            return
        half = self._half_open.get(initiation.question.ephemeral)
        if half is None:
            if self._lives.is_old(handshake):
                return
            if not self._guard.admits(address, header.packet_number, now):
                cookie = self._guard.cookie(address, now)
                self._outbox.append((initiation.cookie_reply(cookie, self._entropy), address))
                return
            self._lives.answer(handshake)
            half = self._respond(initiation, now)
        if half is not None:
            self._outbox.append((half.response, address))

    def _respond(self, initiation: Initiation, now: float) -> HalfOpen | None:
        asked = initiation.handshake
        connection = self._connections.get(asked.node)
        established_index, renews = 0, None
        if connection is None:
            if len(self._connections) >= CONNECTIONS_MAX:
                return None
        elif connection.identity.incarnation == asked.incarnation:
            established_index = connection.peer_index
            named = self._by_index.get(asked.established_index)
            if isinstance(named, _Keyed) and named.connection is connection:
                renews = connection
        while len(self._half_open) >= HALF_OPEN_MAX:
            self._forget_half_open(next(iter(self._half_open.values())))
        own = self._handshake(established_index)
        half = half_open(initiation, own, renews, self._entropy, now)
        if half is not None:
            self._half_open[half.peer_ephemeral] = self._by_index[half.receiver_index] = half
        return half

    def _handshake(self, established_index: int) -> Handshake:
        """Return what this side says of itself in a new handshake."""
        self._handshakes += 1
        return Handshake(
            self.identity.node,
            self.identity.incarnation,
            self._handshakes,
            self._new_index(),
            established_index,
            self._window_packets,
            self.identity.guest,
        )

    def _receive_response(self, dial: Dial, datagram: bytes, address: Address, now: float) -> None:
        finished = dial.finish(datagram)
        if finished is None:
            return
        handshake, seal = finished
        if self._lives.is_over(handshake.node, handshake.incarnation):
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
        connection = self._connections.get(handshake.node)
        if connection is not None:
            named = isinstance(established, _Keyed) and established.connection is connection
            if named and dial.renews is connection:
                self._forget_dial(dial)
                self._renew(connection, dial.receiver_index, handshake.receiver_index, seal, now)
                connection.ask_for_life()
                return
            # A peer that was not heard before the dial may have answered before it knew.
            stands = named or connection.confirmed_at >= dial.started_at
            if stands and connection.identity.incarnation == handshake.incarnation:
                self._forget_dial(dial)
                return
        elif handshake.node < self.identity.node and self._awaits(peer):
            return  # both dialled at once: the connection of the lower node id wins
        elif len(self._connections) >= CONNECTIONS_MAX:
            self._fail(dial, "too many connections")
            return
        self._establish_initiator(dial, handshake, seal, address, now)

    def _awaits(self, peer: Identity) -> bool:
        return any(half.peer == peer for half in self._half_open.values())

    def _receive_confirmation(
        self, half: HalfOpen, datagram: bytes, header: Header, address: Address, now: float
    ) -> None:
        if half.seal.open(datagram) is None:
            return
        self._establish_responder(half, address, now)
        keyed = self._by_index.get(half.receiver_index)
        if isinstance(keyed, _Keyed):
            self._receive_packet(keyed, datagram, header, address, now)

    # From handshake to connection and to its end

    def _begin(self, address: Address, renews: Connection | None, now: float) -> None:
        """Send an initiation, for a new connection or for new keys of one."""
        handshake = self._handshake(0 if renews is None else renews.peer_index)
        dial = Dial(self._opening, self._entropy, handshake, address, renews, now)
        self._dials[address] = self._by_index[dial.receiver_index] = dial
        self._outbox.append((dial.initiation(now), address))

    def _establish_initiator(
        self, dial: Dial, handshake: Handshake, seal: Seal, address: Address, now: float
    ) -> None:
        self._forget_dial(dial)
        connection = Connection(
            Identity(handshake.node, handshake.incarnation, handshake.guest),
            address,
            seal,
            handshake.receiver_index,
            handshake.window_packets,
            self._window_packets,
            now,
            initiated=True,
        )
        if dial.attempts == 1:  # of a repeated question it is unknown which one was answered
            connection.recovery.rtt.update(now - dial.started_at, 0.0, now)
        connection.ask_for_life()
        self._establish(connection, dial.receiver_index, seal)

    def _establish_responder(self, half: HalfOpen, address: Address, now: float) -> None:
        self._forget_half_open(half)
        if half.renews is not None:
            if self._connections.get(half.peer.node) is half.renews:
                self._renew(half.renews, half.receiver_index, half.peer_index, half.seal, now)
            return
        connection = Connection(
            half.peer,
            address,
            half.seal,
            half.peer_index,
            half.peer_window_packets,
            self._window_packets,
            now,
            initiated=False,
        )
        self._establish(connection, half.receiver_index, half.seal)

    def _establish(self, connection: Connection, receiver_index: int, seal: Seal) -> None:
        node = connection.identity.node
        old = self._connections.get(node)
        if old is not None:
            anew = old.identity.incarnation < connection.identity.incarnation
            self._end(old, "it started anew" if anew else "it lost the connection", None)
        for half in [half for half in self._half_open.values() if half.peer.node == node]:
            self._forget_half_open(half)
        dial = self._dials.get(connection.address)
        if dial is not None:
            self._forget_dial(dial)
        self._connections[node] = connection
        self._by_index[receiver_index] = _Keyed(connection, seal)
        self._lives.connect(node, connection.identity.incarnation)
        self._events.append(Connected(connection.identity, connection.address))

    def _renew(
        self, connection: Connection, receiver_index: int, peer_index: int, seal: Seal, now: float
    ) -> None:
        """Send under new keys from now on; take what is under way under the old ones."""
        self._old_keys.extend((now + OLD_KEYS_S, index) for index in self._indices(connection))
        self._by_index[receiver_index] = _Keyed(connection, seal)
        connection.renew(seal, peer_index, now)

    def _indices(self, connection: Connection) -> list[int]:
        return [
            index
            for index, receiver in self._by_index.items()
            if isinstance(receiver, _Keyed) and receiver.connection is connection
        ]

    def _end(self, connection: Connection, reason: str, code: CloseCode | None) -> None:
        node = connection.identity.node
        self._drop(node, code)
        self._events.append(Disconnected(node, reason, connection.left))

    def _drop(self, node: NodeId, code: CloseCode | None) -> None:
        """Forget a connection; with a code, tell the peer."""
        connection = self._connections.pop(node)
        for index in self._indices(connection):
            del self._by_index[index]
        if code is not None:
            for _ in range(CLOSE_COPIES):
                self._outbox.append((connection.close_datagram(code), connection.address))
        self._past += connection.counters()

    def _fail(self, dial: Dial, reason: str) -> None:
        self._forget_dial(dial)
        if dial.renews is None:
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
        for connection in self._connections.values():
            datagrams.extend((each, connection.address) for each in connection.datagrams(now))
        return datagrams

    def next_timer(self) -> float | None:
        """Return when to call ``handle_timer``; None when only a call can change anything."""
        timers = [connection.next_timer() for connection in self._connections.values()]
        timers.extend(dial.next_timer() for dial in self._dials.values())
        timers.extend(half.expires_at for half in self._half_open.values())
        if self._old_keys:
            timers.append(self._old_keys[0][0])
        return min(timers, default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        for half in [half for half in self._half_open.values() if half.expires_at <= now]:
            self._forget_half_open(half)
        while self._old_keys and self._old_keys[0][0] <= now:
            self._by_index.pop(self._old_keys.popleft()[1], None)
        for dial in list(self._dials.values()):
            if dial.deadline <= now:
                self._fail(dial, dial.failure)
            elif dial.retry_at <= now:
                self._outbox.append((dial.initiation(now), dial.address))
        for connection in list(self._connections.values()):
            connection.handle_timer(now)
            if connection.take_renewal(now) and connection.address not in self._dials:
                self._begin(connection.address, connection, now)
            if connection.ended is not None:
                self._end(connection, connection.ended, CloseCode.UNHEARD)
