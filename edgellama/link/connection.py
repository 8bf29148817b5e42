"""One established connection to one peer: messages in, datagrams out, and the other way round.

Sans-IO: time is an argument, nothing here knows a socket. Everything has been authenticated by
the handshake; what a datagram says still takes effect only after its own tag has been verified.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.link.acknowledgements import ReceivedPackets
from edgellama.link.congestion import PACED_PACKETS_MIN, DelayController, Pacer
from edgellama.link.outbox import Outbox, Piece
from edgellama.link.reassembly import Fate, Reassembly
from edgellama.link.recovery import PERSISTENT_PROBES, LossRecovery, SentPacket
from edgellama.link.replay_window import PACKETS, ReplayWindow
from edgellama.values import Address, LinkCounters
from edgellama.wire.datagram import (
    FRAMES_BYTES_MAX,
    WINDOW_PACKETS_MIN,
    DatagramType,
    pack_header,
)
from edgellama.wire.frames import (
    FRAGMENT_HEADER_BYTES,
    PING_FRAME,
    Acknowledgement,
    Close,
    CloseCode,
    Fragment,
    Priority,
    pack_close,
    parse_frames,
)

if TYPE_CHECKING:
    from edgellama.link.identity import Identity
    from edgellama.wire.sealing import Seal

KEEPALIVE_S = 1.0
"""An idle connection asks for a sign of life this often."""

IDLE_DEATH_S = 8.0
"""Without messages under way, a peer silent for so long is gone."""

GIVE_UP_S = 3.0
GIVE_UP_PROBE_TIMEOUTS = 8
"""With messages under way: the greater of 3 s and 8 probe timeouts of silence, 8 s at most.

Round trips that a stalled radio has stretched would otherwise hide a death for minutes.
"""

URGENT_EXCESS_PACKETS = 32
"""How far control and decode may exceed a full window: a few messages of a few packets."""

PROBE_PIECES_MAX = 8
PROBE_PIECES_LARGE_MAX = 2
"""A probe timeout repeats so many fragments at most, of larger messages only two."""

KEYS_S = 3600.0
KEYS_PACKETS_MAX = 1 << 32
"""Whichever comes first ends the time of a pair of keys: the initiator asks for new ones."""

KEYS_RETRY_S = 30.0
KEYS_S_MAX = 2 * KEYS_S
"""With keys so old the connection ends: what is recorded stays readable with one key no longer."""

BURST_DATAGRAMS_MAX = 32
"""Datagrams given out in one call, so that a driver turns to reading and to other peers."""

CLOSE_REASONS: dict[int, str] = {
    CloseCode.LEAVING: "it left",
    CloseCode.OVERLOADED: "it had more to send than this device takes",
    CloseCode.UNHEARD: "it no longer hears this device",
    CloseCode.MOVED: "it goes on over another transport",
}


class Connection:
    """The state of one connection, from the end of its handshake to ``ended``."""

    def __init__(
        self,
        identity: Identity,
        address: Address,
        seal: Seal,
        peer_index: int,
        peer_window_packets: int,
        window_packets: int,
        now: float,
        *,
        initiated: bool,
    ) -> None:
        self.identity = identity
        self.address = address
        self.peer_index = peer_index
        self.initiated = initiated
        self._keyed_at = now
        self._renew_at = now + KEYS_S
        self._renew_above = KEYS_PACKETS_MAX  # packet numbers, which go on under new keys
        self.confirmed_at = math.inf  # when the first packet came
        self.heard_at = now
        self.ended: str | None = None  # the reason, once the connection is over
        self.left = False  # the peer ended it of its own will
        self.recovery = LossRecovery()
        self._seal = seal
        self._peer_window = peer_window_packets
        self._next_packet_number = 0
        self._received = ReceivedPackets(window_packets)
        self._replay = ReplayWindow(PACKETS)
        self._reassembly = Reassembly()
        self._outbox = Outbox()
        self._congestion = DelayController(peer_window_packets)
        self._pacer = Pacer()
        self._waiting_since = now  # when the messages under way ceased to be none
        self._sent_at = now  # when the last eliciting packet left
        self._ping_due = False
        self._probes_due = 0  # packets that may leave whatever the window
        self._bytes_sent = self._bytes_received = 0
        self._packets_received = self._packets_retransmitted = 0

    # What the layer above asks for

    def send(self, message: bytes, priority: Priority, now: float) -> None:
        """Queue a message; ends the connection when far too many wait already."""
        if not self._outbox.unfinished:
            self._waiting_since = now
        self._outbox.push(message, priority)
        if self._outbox.overfull:
            self.ended = "it takes messages too slowly"

    def ask_for_life(self) -> None:
        """Let a ping go out: the initiator's first packet confirms the connection."""
        self._ping_due = True

    def renew(self, seal: Seal, peer_index: int, now: float) -> None:
        """Send under new keys, with the packet numbers going on: none is ever used twice."""
        self._seal = seal
        self.peer_index = peer_index
        self._keyed_at = now
        self._renew_at = now + KEYS_S
        self._renew_above = self._highest_packet_number + KEYS_PACKETS_MAX

    def take_renewal(self, now: float) -> bool:
        """Return whether it is time to ask for new keys, and put the next time off."""
        old = now >= self._renew_at or self._highest_packet_number >= self._renew_above
        if not self.initiated or not old:
            return False
        self._renew_at = now + KEYS_RETRY_S
        self._renew_above = self._highest_packet_number + KEYS_PACKETS_MAX
        return True

    @property
    def _highest_packet_number(self) -> int:
        return max(self._next_packet_number, self._received.largest)

    @property
    def unfinished(self) -> int:
        """How many messages are not fully acknowledged."""
        return self._outbox.unfinished

    def counters(self) -> LinkCounters:
        """Return what has gone over the connection, in datagrams with header and tag."""
        return LinkCounters(
            self._bytes_sent,
            self._bytes_received,
            self._next_packet_number,
            self._packets_received,
            self._packets_retransmitted,
        )

    # Receiving

    def receive(
        self, datagram: bytes, packet_number: int, seal: Seal, address: Address, now: float
    ) -> list[bytes]:
        """Take a datagram under these keys or older ones; return the messages it completes."""
        if not self._replay.is_fresh(packet_number) or self._received.seen(packet_number):
            return []
        opened = seal.open(datagram)
        if opened is None:
            return []
        self._replay.take(packet_number)
        self.heard_at = now
        self.confirmed_at = min(self.confirmed_at, now)
        self._bytes_received += len(datagram)
        self._packets_received += 1
        if packet_number > self._received.largest:
            self.address = address  # follow a peer that moved, but no late packet back
        try:
            frames = parse_frames(opened)
        except WireError:
            return []  # never acknowledged: the peer's own fault, and it will give up
        messages: list[bytes] = []
        eliciting, refused = False, False
        for frame in frames:
            if isinstance(frame, Acknowledgement):
                self._on_acknowledgement(frame, now)
            elif isinstance(frame, Close):
                self.ended = CLOSE_REASONS.get(frame.code, "it closed the connection")
                self.left = frame.code == CloseCode.LEAVING
            else:
                eliciting = True
                if isinstance(frame, Fragment):
                    refused |= not self._accept(frame, messages)
        if not refused:
            self._received.record(packet_number, now, eliciting=eliciting)
            if messages:
                self._received.acknowledge_at_once()
        return messages

    def _accept(self, fragment: Fragment, messages: list[bytes]) -> bool:
        """Take a fragment; return False when its packet must not be acknowledged."""
        try:
            outcome = self._reassembly.accept(fragment)
        except WireError:
            return False
        if isinstance(outcome, bytes):
            messages.append(outcome)
        return outcome is not Fate.REFUSED

    def _on_acknowledgement(self, frame: Acknowledgement, now: float) -> None:
        if frame.ranges[0][1] >= self._next_packet_number:
            return  # of a packet never sent
        full = 2 * len(self.recovery.in_flight) >= self._window
        arrived = self.recovery.on_acknowledged(frame, now)
        self._peer_window = max(frame.window_packets, WINDOW_PACKETS_MIN)
        if not arrived:
            return
        for _, packet in arrived:
            for piece in packet.pieces:
                self._outbox.arrived(piece)
        self._congestion.on_acknowledged(
            len(arrived), arrived[-1][0], self._next_packet_number, self.recovery.rtt, full=full
        )
        self._on_lost(self.recovery.lost(now))

    def _on_lost(self, given_up: list[tuple[int, SentPacket]]) -> None:
        if not given_up:
            return
        self._congestion.on_lost(len(given_up))
        for packet_number, packet in given_up:
            for piece in packet.pieces:
                self._outbox.lost(piece, packet_number)

    # Sending

    @property
    def _window(self) -> float:
        return min(self._congestion.window, self._peer_window)

    def datagrams(self, now: float) -> list[bytes]:
        """Return the datagrams to send now, at most a burst; empty when there are none."""
        datagrams: list[bytes] = []
        while len(datagrams) < BURST_DATAGRAMS_MAX:
            datagram = self._next_datagram(now)
            if datagram is None:
                break
            datagrams.append(datagram)
        self._probes_due = 0  # several repeated fragments may have shared a packet
        return datagrams

    def _lowest_priority(self, now: float) -> Priority | None:
        """Return down to which priority the windows and the pacer let a packet go."""
        in_flight = len(self.recovery.in_flight)
        window = self._window
        if self._probes_due:
            return Priority.BULK
        if in_flight >= window + URGENT_EXCESS_PACKETS:
            return None
        if in_flight >= window:
            return Priority.DECODE
        if in_flight >= PACED_PACKETS_MIN and self._pacer.next_at() > now:
            return Priority.DECODE
        return Priority.BULK

    def _next_datagram(self, now: float) -> bytes | None:
        lowest = self._lowest_priority(now)
        piece = None if lowest is None else self._outbox.next(lowest)
        ping = self._ping_due and piece is None
        if piece is None and not ping and not self._received.due(now):
            return None
        frames: list[bytes] = []
        room = FRAMES_BYTES_MAX
        if self._received.waiting:
            needed = len(PING_FRAME) if piece is None else piece.frame_bytes
            frames.append(self._received.frame(now, room - needed))
            room -= len(frames[0])
        if ping:
            frames.append(PING_FRAME)
        pieces: list[Piece] = []
        again = False
        while piece is not None and lowest is not None and piece.frame_bytes <= room:
            again |= self._outbox.take(piece, self._next_packet_number)
            frames.append(piece.frame())
            pieces.append(piece)
            room -= len(frames[-1])
            piece = self._outbox.next(lowest) if room > FRAGMENT_HEADER_BYTES else None
        if pieces or ping:
            self._on_eliciting(tuple(pieces), now)
        self._packets_retransmitted += again
        return self._seal_packet(b"".join(frames))

    def _on_eliciting(self, pieces: tuple[Piece, ...], now: float) -> None:
        paced = pieces and pieces[0].message.priority > Priority.DECODE
        if paced and len(self.recovery.in_flight) >= PACED_PACKETS_MIN:
            self._pacer.on_sent(self._window, self.recovery.rtt, now)
        self.recovery.on_sent(self._next_packet_number, pieces, now)
        self._sent_at = now
        self._ping_due = False
        self._probes_due = max(0, self._probes_due - 1)

    def _seal_packet(self, frames: bytes) -> bytes:
        header = pack_header(DatagramType.DATA, self.peer_index, self._next_packet_number)
        self._next_packet_number += 1
        datagram = self._seal.seal(header, frames)
        self._bytes_sent += len(datagram)
        return datagram

    def close_datagram(self, code: CloseCode) -> bytes:
        """Return a datagram that tells the peer that the connection is over."""
        return self._seal_packet(pack_close(code))

    # Time

    def next_timer(self) -> float:
        """Return when ``handle_timer`` or ``datagrams`` has something to do at the latest."""
        timer = min(self._deadline(), self._keepalive_at())
        if self.initiated:
            timer = min(timer, self._renew_at)
        recovery_at = self.recovery.loss_timer()
        if recovery_at is None:
            recovery_at = self.recovery.probe_timer()
        if recovery_at is not None:
            timer = min(timer, recovery_at)
        acknowledge_at = self._received.timer()
        if acknowledge_at is not None:
            timer = min(timer, acknowledge_at)
        if len(self.recovery.in_flight) < self._window and self._outbox.next(Priority.BULK):
            timer = min(timer, self._pacer.next_at())
        return timer

    def _deadline(self) -> float:
        if not self._outbox.unfinished:
            return self.heard_at + IDLE_DEATH_S
        patience = GIVE_UP_PROBE_TIMEOUTS * self.recovery.rtt.probe_timeout()
        silence = min(max(GIVE_UP_S, patience), IDLE_DEATH_S)
        return max(self.heard_at, self._waiting_since) + silence

    def _keepalive_at(self) -> float:
        if self.recovery.in_flight or self._ping_due:
            return self._deadline()  # what is under way asks for life already
        return max(self.heard_at, self._sent_at) + KEEPALIVE_S

    def handle_timer(self, now: float) -> None:
        """Do what has become due: give up, count losses, probe, ask for a sign of life."""
        if now - self._keyed_at >= KEYS_S_MAX:
            self.ended = "its keys could not be renewed"
            return
        if self._deadline() <= now:
            silence = now - self.heard_at
            self.ended = f"nothing came from it for {silence:.1f} s"
            return
        loss_at = self.recovery.loss_timer()
        if loss_at is not None:
            if loss_at <= now:
                self._on_lost(self.recovery.lost(now))
        else:
            probe_at = self.recovery.probe_timer()
            if probe_at is not None and probe_at <= now:
                self._probe(now)
        if self._keepalive_at() <= now:
            self._ping_due = True

    def _probe(self, now: float) -> None:
        """Repeat the oldest fragments in flight whatever the window (RFC 9002 section 6.2.4)."""
        self.recovery.on_probe_timeout(now)
        if self.recovery.probes == PERSISTENT_PROBES:
            self._congestion.on_persistent_congestion()
            self._on_lost(self.recovery.whole_flight_lost())
            self._ping_due = True
            return
        repeated = large = 0
        for packet_number, packet in self.recovery.in_flight.items():
            for piece in packet.pieces:
                if not piece.message.small:
                    if large >= PROBE_PIECES_LARGE_MAX:
                        continue
                    large += 1
                repeated += self._outbox.lost(piece, packet_number)
            if repeated >= PROBE_PIECES_MAX:
                break
        self._probes_due = repeated
        self._ping_due = not repeated
