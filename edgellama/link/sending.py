"""The sending half of a connection: what goes into the next packet.

And what follows from acknowledgements, and from their absence.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from edgellama.link.congestion import PACED_PACKETS_MIN, DelayController, Pacer
from edgellama.link.delivery_rate import DeliveryRate
from edgellama.link.outbox import Outbox, OutgoingMessage, Piece
from edgellama.link.path_mtu import BLACK_HOLE_TIMEOUTS, PathMtu
from edgellama.link.recovery import PERSISTENT_PROBES, LossRecovery, SentPacket
from edgellama.link.redundancy import LossEstimate, Redundancy
from edgellama.wire.datagram import DATAGRAM_BYTES_BASE, OVERHEAD_BYTES, WINDOW_PACKETS_MIN
from edgellama.wire.frames import FRAGMENT_HEADER_BYTES, PADDING, PING_FRAME, Priority

if TYPE_CHECKING:
    from edgellama.link.acknowledgements import ReceivedPackets
    from edgellama.wire.frames import Acknowledgement

_DECODE, _BULK = int(Priority.DECODE), int(Priority.BULK)  # an enum's members are slow to read

URGENT_EXCESS_PACKETS = 32
"""How far control and decode may exceed a full window: a few messages of a few packets."""

PROBE_PIECES_MAX = 8
PROBE_PIECES_LARGE_MAX = 2
"""A probe timeout repeats so many fragments at most, of larger messages only two."""

SHARED_BYTES_MIN = 128
"""A packet with less room left is full: to look for so short a message costs more than it saves."""

DECODE_REMEMBERED_S = 1.0
"""So long after a message of decode another is expected, and transfers keep the queue shorter."""

COPY_SPACING_S = 0.001
"""How long after a message its duplicate leaves: a burst of loss that took the first is mostly
over, and on a path quicker than that the acknowledgement makes the duplicate needless."""


class Sending:
    """Messages in, frames of packets out."""

    def __init__(self, peer_window_packets: int, now: float) -> None:
        self.recovery = LossRecovery()
        self.outbox = Outbox()
        self.path = PathMtu()
        self.losses = LossEstimate()
        self.rate = DeliveryRate()
        self.next_packet_number = 0
        self.sent_at = now  # when the last eliciting packet left
        self.ping_due = False
        self.packets_retransmitted = 0
        self._decode_until = 0.0  # up to then messages of decode are expected
        self._peer_window = peer_window_packets
        self._congestion = DelayController(peer_window_packets)
        self._pacer = Pacer()
        self._probes_due = 0  # packets that may leave whatever the window
        self._window = self._congestion.window  # packets in flight, as both sides allow
        self._room = self.path.datagram_bytes - OVERHEAD_BYTES  # for the frames of a packet
        self._parity_due: deque[OutgoingMessage] = deque()
        self._parities: dict[int, OutgoingMessage] = {}  # packets that carry one, and no more
        self._copies: deque[tuple[float, OutgoingMessage]] = deque()  # when to send which again

    # What an acknowledgement means

    def on_acknowledgement(self, frame: Acknowledgement, now: float) -> None:
        """Take what the peer says of packets that were sent, all of them below the next number."""
        recovery = self.recovery
        in_flight = len(recovery.in_flight)
        full = 2 * in_flight >= self._window
        arrived = recovery.on_acknowledged(frame, now)
        self._peer_window = max(frame.window_packets, WINDOW_PACKETS_MIN)
        if self._parities:
            self._find_parities(frame)
        if recovery.late:
            self.losses.on_late(recovery.late)
            recovery.late = 0
        if not arrived:
            return
        long = 0
        for _, packet in arrived:
            for piece in packet.pieces:
                self.outbox.arrived(piece)
            if packet.datagram_bytes > DATAGRAM_BYTES_BASE:
                long += 1
                if packet.is_path_probe:
                    self.path.on_probe_arrived(packet.datagram_bytes)
                    self._fit_path()
        if long:
            self.path.on_long_arrived(long, arrived[-1][0])
        self.losses.on_arrived(len(arrived))
        self._congestion.on_acknowledged(
            *(len(arrived), arrived[-1][0], self.next_packet_number, recovery.rtt, now),
            full=full,
            beside_decode=now < self._decode_until,
        )
        # A window of a few packets is in use although the link idles most of the time.
        filled = full and in_flight >= PACED_PACKETS_MIN and bool(recovery.in_flight)
        if filled or self.rate.is_sampling:
            size_bytes = sum(packet.datagram_bytes for _, packet in arrived)
            newest, packet = arrived[-1]
            # A packet that is too long for the path would be waited for in vain.
            flight = reversed(recovery.in_flight.items())
            last = next((number for number, sent in flight if not sent.is_path_probe), newest)
            self.rate.on_acknowledged(
                *(size_bytes, newest, packet.sent_at, last, recovery.rtt, now), full=filled
            )
        lost = recovery.lost(now)
        if lost:
            self._on_lost(lost, now)
        self._window = min(self._congestion.window, self._peer_window)

    def _find_parities(self, frame: Acknowledgement) -> None:
        largest = frame.ranges[0][1]
        for packet_number, message in list(self._parities.items()):
            if any(low <= packet_number <= high for low, high in frame.ranges):
                self.outbox.parity_arrived(message)
            elif message.unacknowledged and packet_number > largest:
                continue
            del self._parities[packet_number]

    def _fit_path(self) -> None:
        self._room = self.path.datagram_bytes - OVERHEAD_BYTES
        self.outbox.fit(self._room - FRAGMENT_HEADER_BYTES)

    def _on_lost(self, given_up: list[tuple[int, SentPacket]], now: float) -> None:
        for packet_number, packet in given_up:
            if packet.is_path_probe:
                self.path.on_probe_lost(now)
                continue
            self._congestion.on_lost(1)
            self.losses.on_lost(packet_number)
            for piece in packet.pieces:
                self.outbox.lost(piece, packet_number)
            is_long = packet.datagram_bytes > DATAGRAM_BYTES_BASE
            if is_long and self.path.on_long_lost(packet_number, now):
                self._fit_path()

    # What goes into a packet

    def next_frames(self, received: ReceivedPackets, now: float) -> list[bytes] | None:
        """Return the frames of the next packet, None when there is nothing to send now."""
        lowest = self._lowest_priority(now)
        piece = None if lowest is None else self.outbox.next(lowest)
        if piece is not None and piece.message.priority <= _DECODE:
            return self._fragment_frames(piece, received, now)
        if self._parity_due:
            return self._parity_frames(received, now)
        if self.ping_due:
            if piece is None:
                self._on_eliciting(SentPacket(now, ()))
                return [*self._acknowledgement(received, len(PING_FRAME), now), PING_FRAME]
        elif self.recovery.rtt.measured:  # the peer is known to be there
            probe_bytes = self.path.next_probe(now)
            if probe_bytes:
                return self._path_probe_frames(probe_bytes, now)
        if piece is not None:
            return self._fragment_frames(piece, received, now)
        return self._acknowledgement(received, 0, now) if received.due(now) else None

    def _lowest_priority(self, now: float) -> int | None:
        """Return down to which priority the windows and the pacer let a packet go."""
        in_flight = len(self.recovery.in_flight)
        if self._probes_due:
            return _BULK
        if in_flight < self._window:
            paced = in_flight >= PACED_PACKETS_MIN and self._pacer.next_at > now
            return _DECODE if paced else _BULK
        return _DECODE if in_flight < self._window + URGENT_EXCESS_PACKETS else None

    def _acknowledgement(
        self, received: ReceivedPackets, others_bytes: int, now: float
    ) -> list[bytes]:
        if not received.waiting:
            return []
        frame = received.frame(now, self._room - others_bytes)
        return [frame] if frame else []

    def _fragment_frames(self, piece: Piece, received: ReceivedPackets, now: float) -> list[bytes]:
        """Fill a packet with fragments of that priority or a more urgent one."""
        outbox, number = self.outbox, self.next_packet_number
        message = piece.message
        if message.priority == _DECODE:
            self._decode_until = now + DECODE_REMEMBERED_S
        lowest = max(message.priority, _DECODE)
        again = outbox.take(piece, number)
        frame = piece.frame()
        frames = [frame]
        room = self._room - len(frame)
        if received.waiting:
            frames = [*self._acknowledgement(received, len(frame), now), frame]
            room = self._room - sum(map(len, frames))
        pieces = [piece]
        last = piece.last
        if last and not again:
            self._protect(message, now)
        while room >= SHARED_BYTES_MIN:
            following = outbox.next(lowest)
            if following is None or following.frame_bytes > room:
                break
            piece = following
            repeats = outbox.take(piece, number)
            frame = piece.frame()
            frames.append(frame)
            pieces.append(piece)
            room -= len(frame)
            last = piece.last
            if last and not repeats:
                self._protect(piece.message, now)
            again |= repeats
        if message.priority > _DECODE and len(self.recovery.in_flight) >= PACED_PACKETS_MIN:
            self._pacer.on_sent(self._window, self.recovery.rtt, now)
        self.packets_retransmitted += again
        size = self._room - room + OVERHEAD_BYTES
        self._on_eliciting(SentPacket(now, pieces, size), ends_message=last)
        return frames

    def _on_eliciting(self, packet: SentPacket, *, ends_message: bool = False) -> None:
        self.recovery.on_sent(self.next_packet_number, packet, ends_message=ends_message)
        self.sent_at = packet.sent_at
        self.ping_due = False
        if self._probes_due:
            self._probes_due -= 1

    # What makes loss good beforehand

    def _protect(self, message: OutgoingMessage, now: float) -> None:
        """Let something go along with a message of a few packets that has just gone out."""
        if message.priority > _DECODE or not message.small:
            return
        redundancy = self.losses.redundancy
        if redundancy is Redundancy.PARITY and len(message.carriers) > 1:
            self._parity_due.append(message)
        elif redundancy is not Redundancy.NONE:
            self._copies.append((now + COPY_SPACING_S, message))

    def _parity_frames(self, received: ReceivedPackets, now: float) -> list[bytes]:
        message = self._parity_due.popleft()
        frames = self._acknowledgement(received, message.parity_frame_bytes, now)
        self._parities[self.next_packet_number] = message
        return [*frames, message.parity_frame()]

    def _repeat_copies(self, now: float) -> None:
        while self._copies and self._copies[0][0] <= now:
            self.outbox.repeat(self._copies.popleft()[1])

    # How long a datagram may be

    def _path_probe_frames(self, datagram_bytes: int, now: float) -> list[bytes]:
        self.path.on_probe_sent()
        self._on_eliciting(SentPacket(now, (), datagram_bytes, is_path_probe=True))
        return [PING_FRAME.ljust(datagram_bytes - OVERHEAD_BYTES, PADDING)]

    # Time

    def next_timer(self) -> float:
        """Return when ``handle_timer`` or ``next_frames`` has something to do; may be infinite."""
        timer = self.recovery.loss_timer()
        if timer is None:
            timer = self.recovery.probe_timer()
        if timer is None:
            timer = math.inf
        if self._copies:
            timer = min(timer, self._copies[0][0])
        if len(self.recovery.in_flight) < self._window and self.outbox.next(_BULK):
            timer = min(timer, self._pacer.next_at)
        return timer

    def handle_timer(self, now: float) -> None:
        """Count losses, probe and repeat, as has become due."""
        loss_at = self.recovery.loss_timer()
        if loss_at is not None:
            if loss_at <= now:
                self._on_lost(self.recovery.lost(now), now)
        else:
            probe_at = self.recovery.probe_timer()
            if probe_at is not None and probe_at <= now:
                self._probe(now)
        self._repeat_copies(now)

    def end_burst(self) -> None:
        """Forget probes that are left over: several repeated fragments may share a packet."""
        self._probes_due = 0

    def _probe(self, now: float) -> None:
        """Repeat the oldest fragments in flight whatever the window (RFC 9002 section 6.2.4)."""
        self.recovery.on_probe_timeout(now)
        suspect = self.recovery.probes == BLACK_HOLE_TIMEOUTS and self._long_in_flight()
        if suspect and self.path.fall_back(now):
            self._fit_path()
        if self.recovery.probes == PERSISTENT_PROBES:
            self._congestion.on_persistent_congestion()
            self._window = self._congestion.window
            self._give_flight_up(now)
            self.ping_due = True
            return
        repeated = large = 0
        for packet_number, packet in self.recovery.in_flight.items():
            for piece in packet.pieces:
                if not piece.message.small:
                    if large >= PROBE_PIECES_LARGE_MAX:
                        continue
                    large += 1
                repeated += self.outbox.lost(piece, packet_number)
            if repeated >= PROBE_PIECES_MAX:
                break
        self._probes_due = repeated
        self.ping_due = not repeated

    def _long_in_flight(self) -> bool:
        return any(
            packet.datagram_bytes > DATAGRAM_BYTES_BASE and not packet.is_path_probe
            for packet in self.recovery.in_flight.values()
        )

    def _give_flight_up(self, now: float) -> None:
        """Take the whole flight for lost: an outage, of which the loss ratio shall not speak."""
        for packet_number, packet in self.recovery.whole_flight_lost():
            if packet.is_path_probe:
                self.path.on_probe_lost(now)
            for piece in packet.pieces:
                self.outbox.lost(piece, packet_number)
