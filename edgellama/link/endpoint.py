"""All the peers of one socket: handshakes, connections and the events they give.

Sans-IO: after each call that puts something in, take every event with ``next_event`` and call
``datagrams_to_send`` until it gives nothing; then nothing happens before ``next_timer``.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from edgellama.link.admission import FloodGuard, Lives
from edgellama.link.connection import BURST_DATAGRAMS_MAX, Connection
from edgellama.link.events import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    MessageReceived,
)
from edgellama.link.half_opens import HalfOpens
from edgellama.link.handshake import Dial, HalfOpen, Initiation, half_open, open_initiation
from edgellama.link.identity import Identity, PeerInfo
from edgellama.link.receivers import Keyed, Receivers
from edgellama.values import NODE_ID_DIGITS, Address, LinkCounters, NodeId
from edgellama.wire.datagram import (
    PROTOCOL_VERSION,
    WINDOW_PACKETS_MIN,
    DatagramType,
    Handshake,
    Header,
    parse_header,
)
from edgellama.wire.frames import MESSAGE_BYTES_MAX, CloseCode, Priority
from edgellama.wire.noise import Opening
from edgellama.wire.sealing import LINK_PROLOGUE, mesh_psk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgellama.wire.sealing import Seal

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

_DATA = int(DatagramType.DATA)  # an enum's members are slow to read

CONNECTIONS_MAX = 256
DIALS_MAX = 512
"""Enough to try every address of a home network at once."""

EVENTS_MAX = 4096
"""Beyond so many events not taken, datagrams are dropped as a full socket would drop them."""

CLOSE_COPIES = 3
"""A lost close costs the peer seconds, and the sender may not be there to repeat it."""


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
        self._by_index = Receivers(entropy)
        self._dials: dict[Address, Dial] = {}
        self._half_open = HalfOpens(self._by_index)
        self._connections: dict[NodeId, Connection] = {}
        self._active: dict[Connection, None] = {}  # those that may have something to send
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

    def explain(self, address: Address, reason: str) -> None:
        """Say why nothing may come of a dial: its failure tells it, if it does fail."""
        dial = self._dials.get(address)
        if dial is not None:
            dial.failure = reason

    def set_mesh_key(self, mesh_key: bytes) -> None:
        """Make every handshake from now on with another key; connections stay as they are."""
        self._opening = Opening(mesh_psk(mesh_key), LINK_PROLOGUE)
        for dial in list(self._dials.values()):
            self._fail(dial, "the mesh has another key now")
        self._half_open.forget_all()

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
        self._active[connection] = None
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
                connection.round_trip_s,
                connection.heard_at,
                connection.bytes_per_s,
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

    @property
    def has_events(self) -> bool:
        """Whether ``next_event`` has one to give."""
        return bool(self._events)

    # Receiving

    def receive_datagram(self, data: bytes | memoryview, address: Address, now: float) -> None:
        """Take whatever came from the network; what is not ours is dropped without a trace."""
        datagram = bytes(data)
        header = parse_header(datagram)
        if header is None or len(self._events) >= EVENTS_MAX:
            return
        if header.version != PROTOCOL_VERSION:
            # A hint for a person, no more: nothing here is authenticated.
            self.explain(address, "it may run another version of edgellama")
            return
        # The table of states: a kind of datagram that is missing here means nothing to its
        # receiver in its present state.
        receiver = self._by_index.get(header.receiver_index)
        if isinstance(receiver, Keyed):
            if header.kind == _DATA:
                self._receive_packet(receiver, datagram, header, address, now)
        elif header.kind == DatagramType.INITIATION:
            self._receive_initiation(datagram, header, address, now)
        elif receiver is None:
            return
        elif isinstance(receiver, HalfOpen):
            if header.kind == _DATA:
                self._receive_confirmation(receiver, datagram, header, address, now)
        elif header.kind == DatagramType.RESPONSE:
            self._receive_response(receiver, datagram, address, now)
        elif header.kind == DatagramType.COOKIE and receiver.take_cookie(datagram, header):
            self._outbox.append((receiver.initiation(now), receiver.address))

    def _receive_packet(
        self, keyed: Keyed, datagram: bytes, header: Header, address: Address, now: float
    ) -> None:
        connection = keyed.connection
        messages = connection.receive(datagram, header.packet_number, keyed.seal, address, now)
        self._active[connection] = None
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
            if asked.established_index:
                if not self._is_of(asked.established_index, connection):
                    return None  # it would go on with a connection that this side has no more
                renews = connection
        own = self._handshake(established_index)
        half = half_open(initiation, own, renews, self._entropy, now)
        if half is not None:
            self._half_open.add(half)
        return half

    def _is_of(self, index: int, connection: Connection) -> bool:
        """Return whether an index is a connection's, be it by keys that no packet has used yet."""
        named = self._by_index.get(index)
        if isinstance(named, HalfOpen):
            return named.renews is connection
        return isinstance(named, Keyed) and named.connection is connection

    def _handshake(self, established_index: int) -> Handshake:
        """Return what this side says of itself in a new handshake."""
        self._handshakes += 1
        return Handshake(
            self.identity.node,
            self.identity.incarnation,
            self._handshakes,
            self._by_index.new_index(),
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
            named = isinstance(established, Keyed) and established.connection is connection
            if named and dial.renews is connection:
                self._forget_dial(dial)
                self._renew(connection, dial.receiver_index, handshake.receiver_index, seal, now)
                connection.ask_for_life()
                self._active[connection] = None
                return
            # A peer that was not heard before the dial may have answered before it knew.
            stands = named or connection.confirmed_at >= dial.started_at
            if stands and connection.identity.incarnation == handshake.incarnation:
                self._forget_dial(dial)
                return
        elif handshake.node < self.identity.node and self._half_open.has(peer):
            return  # both dialled at once: the connection of the lower node id wins
        elif len(self._connections) >= CONNECTIONS_MAX:
            self._fail(dial, "too many connections")
            return
        self._establish_initiator(dial, handshake, seal, address, now)

    def _receive_confirmation(
        self, half: HalfOpen, datagram: bytes, header: Header, address: Address, now: float
    ) -> None:
        if half.seal.open(datagram) is None:
            return
        self._establish_responder(half, address, now)
        keyed = self._by_index.get(half.receiver_index)
        if isinstance(keyed, Keyed):
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
            connection.sending.recovery.rtt.update(now - dial.started_at, 0.0, now)
        connection.ask_for_life()
        self._establish(connection, dial.receiver_index, seal)

    def _establish_responder(self, half: HalfOpen, address: Address, now: float) -> None:
        if half.renews is not None:
            self._half_open.forget_renewals_before(half)
        self._half_open.forget(half)
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
            reason = "it started anew" if anew else "it lost the connection"
            # Of a device that did start anew nobody reads this; of one that was copied it does.
            self._end(old, reason, CloseCode.REPLACED if anew else None)
        self._half_open.forget_node(node)
        dial = self._dials.get(connection.address)
        if dial is not None:
            self._forget_dial(dial)
        self._connections[node] = connection
        self._active[connection] = None
        self._by_index[receiver_index] = Keyed(connection, seal)
        self._lives.connect(node, connection.identity.incarnation)
        self._events.append(Connected(connection.identity, connection.address))

    def _renew(
        self, connection: Connection, receiver_index: int, peer_index: int, seal: Seal, now: float
    ) -> None:
        """Send under new keys from now on; take what is under way under the old ones."""
        self._by_index.renew(receiver_index, connection, seal, now)
        connection.renew(seal, peer_index, now)

    def _end(self, connection: Connection, reason: str, code: CloseCode | None) -> None:
        node = connection.identity.node
        self._drop(node, code)
        self._events.append(Disconnected(node, reason, connection.left))

    def _drop(self, node: NodeId, code: CloseCode | None) -> None:
        """Forget a connection; with a code, tell the peer."""
        connection = self._connections.pop(node)
        self._active.pop(connection, None)
        self._by_index.drop(connection)
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

    # Sending and time

    def datagrams_to_send(
        self, now: float, burst_max: int = BURST_DATAGRAMS_MAX
    ) -> list[tuple[bytes, Address]]:
        """Return the datagrams to send now, a burst a peer at most; empty when there are none."""
        datagrams = list(self._outbox)
        self._outbox.clear()
        for connection in list(self._active):
            address = connection.address
            burst = connection.datagrams(now, burst_max)
            datagrams.extend((datagram, address) for datagram in burst)
            if len(burst) < burst_max:
                del self._active[connection]
                connection.timer = connection.next_timer()
                self._renew_if_due(connection, now)
        return datagrams

    def _renew_if_due(self, connection: Connection, now: float) -> None:
        if connection.take_renewal(now) and connection.address not in self._dials:
            self._begin(connection.address, connection, now)

    def next_timer(self) -> float | None:
        """Return when to call ``handle_timer``; None when only a call can change anything."""
        timers = [connection.timer for connection in self._connections.values()]
        timers.extend(connection.next_timer() for connection in self._active)
        timers.extend(dial.next_timer() for dial in self._dials.values())
        timers += [self._half_open.next_timer(), self._by_index.next_timer()]
        soonest = min(timers)
        return None if soonest == math.inf else soonest

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        self._half_open.forget_expired(now)
        self._by_index.forget_old_keys(now)
        for dial in list(self._dials.values()):
            if dial.deadline <= now:
                self._fail(dial, dial.failure)
            elif dial.retry_at <= now:
                self._outbox.append((dial.initiation(now), dial.address))
        for connection in list(self._connections.values()):
            if connection.timer > now and connection not in self._active:
                continue
            self._active[connection] = None
            connection.handle_timer(now)
            if connection.ended is not None:
                self._end(connection, connection.ended, CloseCode.UNHEARD)
            else:
                self._renew_if_due(connection, now)
