"""The sending half of reliability: round trips, lost packets and probes (RFC 9002).

Names and section numbers are those of the RFC.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from edgellama.link.acknowledgements import ACK_DELAY_MAX_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.link.outbox import Piece
    from edgellama.wire.frames import Acknowledgement

GRANULARITY_S = 0.001
PACKET_THRESHOLD = 3
TIME_THRESHOLD = 9 / 8
INITIAL_RTT_S = 0.1
PROBE_TIMEOUT_MAX_S = 0.5
"""The doubling stops here, unless the round trip itself is longer."""

PERSISTENT_PROBES = 4
"""After so many unanswered probe timeouts the whole flight counts as lost."""

MIN_RTT_WINDOW_S = 10.0

GIVEN_UP_KEPT_MAX = 64
"""Packets given up that are remembered, so that one that was only late does not count as lost."""


class RoundTrip:
    """The estimate of the round trip (RFC 9002 section 5), all in seconds."""

    def __init__(self) -> None:
        self.measured = False
        self.latest = INITIAL_RTT_S
        self.adjusted = INITIAL_RTT_S  # the latest without the peer's delay
        self.smoothed = INITIAL_RTT_S
        self.variation = INITIAL_RTT_S / 2
        # The minimum over a window: that of the half under way, and that of the half before.
        self._half_began = 0.0
        self._half_minimum = INITIAL_RTT_S
        self._previous_minimum = INITIAL_RTT_S

    @property
    def minimum(self) -> float:
        """The least round trip of the last 5 to 10 seconds."""
        return min(self._half_minimum, self._previous_minimum)

    def update(self, latest: float, ack_delay: float, now: float) -> None:
        """Take a sample (section 5.3)."""
        self.latest = latest
        if not self.measured:
            self.measured = True
            self.smoothed = self.adjusted = latest
            self.variation = latest / 2
            self._half_began = now
            self._half_minimum = self._previous_minimum = latest
            return
        if now >= self._half_began + MIN_RTT_WINDOW_S / 2:
            self._half_began = now
            self._previous_minimum = self._half_minimum
            self._half_minimum = latest
        self._half_minimum = min(self._half_minimum, latest)
        adjusted = latest - ack_delay
        if adjusted < self.minimum:
            adjusted = latest
        self.adjusted = adjusted
        self.variation += (abs(self.smoothed - adjusted) - self.variation) / 4
        self.smoothed += (adjusted - self.smoothed) / 8

    def probe_timeout(self, ack_delay: float = ACK_DELAY_MAX_S) -> float:
        """Return the PTO before any doubling (section 6.2.1)."""
        return self.smoothed + max(4 * self.variation, GRANULARITY_S) + ack_delay

    def loss_delay(self) -> float:
        """Return after how long an overtaken packet is lost (section 6.1.2)."""
        return max(TIME_THRESHOLD * max(self.smoothed, self.latest), GRANULARITY_S)


class SentPacket(NamedTuple):
    """A packet that elicits an acknowledgement and has had none yet."""

    sent_at: float
    pieces: Sequence[Piece]  # none: a ping
    datagram_bytes: int = 0
    is_path_probe: bool = False  # its loss says something of its length, not of the network


class LossRecovery:
    """Keeps the packets in flight and decides which arrived, which are lost and when to probe."""

    def __init__(self) -> None:
        self.rtt = RoundTrip()
        self.in_flight: dict[int, SentPacket] = {}  # by rising packet number
        self.probes = 0  # unanswered probe timeouts in a row
        self.late = 0  # packets that came after they had been given up
        self._given_up: dict[int, None] = {}  # the last ones, to know those that come late
        self._largest_acknowledged = -1
        self._loss_time: float | None = None
        self._probe_from = 0.0  # when the last eliciting packet or probe timeout was
        self._tail_ends_message = False

    def on_sent(
        self, packet_number: int, packet: SentPacket, *, ends_message: bool = False
    ) -> None:
        """Note an eliciting packet; one that ends a message is acknowledged without delay."""
        self.in_flight[packet_number] = packet
        self._probe_from = packet.sent_at
        self._tail_ends_message = ends_message

    def on_acknowledged(
        self, acknowledgement: Acknowledgement, now: float
    ) -> list[tuple[int, SentPacket]]:
        """Return the packets that are newly acknowledged, by rising number (section 6.2)."""
        ranges = acknowledgement.ranges
        largest = ranges[0][1]
        at = len(ranges) - 1
        arrived = []
        for packet_number, packet in self.in_flight.items():
            if packet_number > largest:
                break
            while ranges[at][1] < packet_number:
                at -= 1
            if ranges[at][0] <= packet_number:
                arrived.append((packet_number, packet))
        if self._given_up:
            self._count_late(ranges)
        if not arrived:
            return arrived
        for packet_number, _ in arrived:
            del self.in_flight[packet_number]
        newest, packet = arrived[-1]
        if newest == largest:
            self.rtt.update(now - packet.sent_at, acknowledgement.delay_s, now)
        self._largest_acknowledged = max(self._largest_acknowledged, largest)
        self.probes = 0
        return arrived

    def _count_late(self, ranges: tuple[tuple[int, int], ...]) -> None:
        # An odd place among the edges of the ranges is inside of one.
        edges = [edge for low, high in reversed(ranges) for edge in (low, high + 1)]
        came = [number for number in self._given_up if bisect_right(edges, number) & 1]
        for number in came:
            del self._given_up[number]
        self.late += len(came)

    def lost(self, now: float) -> list[tuple[int, SentPacket]]:
        """Take the lost packets out of flight and return them (section 6.1)."""
        self._loss_time = None
        if not self.in_flight:
            return []
        delay = self.rtt.loss_delay()
        given_up = []
        for packet_number, packet in self.in_flight.items():
            behind = self._largest_acknowledged - packet_number
            if behind <= 0:
                break
            if behind >= PACKET_THRESHOLD or packet.sent_at + delay <= now:
                given_up.append((packet_number, packet))
            elif self._loss_time is None:
                self._loss_time = packet.sent_at + delay
        self._forget(given_up)
        return given_up

    def whole_flight_lost(self) -> list[tuple[int, SentPacket]]:
        """Take everything out of flight and return it (persistent congestion, section 7.6)."""
        given_up = list(self.in_flight.items())
        self._loss_time = None
        self._forget(given_up)
        return given_up

    def _forget(self, given_up: list[tuple[int, SentPacket]]) -> None:
        for packet_number, _ in given_up:
            del self.in_flight[packet_number]
            self._given_up[packet_number] = None
        while len(self._given_up) > GIVEN_UP_KEPT_MAX:
            del self._given_up[next(iter(self._given_up))]

    def loss_timer(self) -> float | None:
        """Return when an overtaken packet will count as lost."""
        return self._loss_time

    def probe_timer(self) -> float | None:
        """Return when to probe; only asked for when no loss timer runs (section 6.2.1).

        The receiver waits with no acknowledgement of a message that is complete, so the sender
        need not wait for one when the newest packet ends a message: a lost tail is found sooner.
        """
        if not self.in_flight:
            return None
        base = self.rtt.probe_timeout(0.0 if self._tail_ends_message else ACK_DELAY_MAX_S)
        timeout = min(base * (1 << self.probes), max(base, PROBE_TIMEOUT_MAX_S))
        return self._probe_from + timeout

    def on_probe_timeout(self, now: float) -> None:
        """Count a probe and start the next, longer timeout."""
        self.probes = min(self.probes + 1, 16)
        self._probe_from = now
