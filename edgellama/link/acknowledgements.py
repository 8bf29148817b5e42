"""The receiving half of acknowledgement: which packets came, and when to say so.

RFC 9000 section 13.2, with the timing of a link whose messages are a few packets long.
"""

from __future__ import annotations

from edgellama.link.ranges import Ranges
from edgellama.wire.frames import acknowledgement_ranges_max, pack_acknowledgement

ACK_DELAY_MAX_S = 0.002
"""How long an acknowledgement may wait for data to ride on."""

ACK_DELAY_MIN_S = 0.00025
ACK_ROUND_TRIPS = 0.25
"""It waits for no more of a round trip: a window of a few packets, which is all that a short path
holds without a queue, would stand still meanwhile, and then leave all at once."""

ACK_PACKETS_MAX = 8
"""Acknowledge at the latest after so many packets, so that a long flight keeps its clock."""

RANGES_KEPT_MAX = 64
"""Older gaps are forgotten: their packets were given up by the sender long ago."""


def acknowledgement_delay(round_trip_s: float) -> float:
    """Return how many seconds an acknowledgement may wait, of that least round trip."""
    return min(max(ACK_ROUND_TRIPS * round_trip_s, ACK_DELAY_MIN_S), ACK_DELAY_MAX_S)


class ReceivedPackets:
    """Remembers the packet numbers of one direction and decides when to acknowledge them."""

    def __init__(self, window_packets: int) -> None:
        self._window_packets = window_packets
        self._ranges = Ranges()
        self._floor = 0  # below it every packet counts as seen
        self.largest = -1
        """The highest packet number so far; -1 before the first."""
        self._largest_at = 0.0
        self.waiting = 0
        """How many packets are to be acknowledged, now or later."""
        self._timer: float | None = None
        self._at_once = False

    def seen(self, packet_number: int) -> bool:
        """Return whether a packet is a duplicate, or too old to tell."""
        return packet_number < self._floor or packet_number in self._ranges

    def record(
        self, packet_number: int, now: float, *, eliciting: bool, delay_s: float = ACK_DELAY_MAX_S
    ) -> None:
        """Note a packet that was not seen before and whose frames took effect.

        Its acknowledgement waits for ``delay_s`` at most.
        """
        in_order = packet_number == self.largest + 1
        self._ranges.add(packet_number)
        if len(self._ranges) > RANGES_KEPT_MAX:
            self._floor = self._ranges.drop_lowest() + 1
        if packet_number > self.largest:
            self.largest = packet_number
            self._largest_at = now
        if not eliciting:
            return
        self.waiting += 1
        if not in_order or self.waiting >= ACK_PACKETS_MAX:
            self._at_once = True
        if self._timer is None:
            self._timer = now + delay_s

    def acknowledge_at_once(self) -> None:
        """Let the acknowledgement not wait: a message has become complete."""
        self._at_once = True
        self.waiting = max(1, self.waiting)

    def due(self, now: float) -> bool:
        """Return whether an acknowledgement must go out even with no data to ride on."""
        if not self.waiting:
            return False
        return self._at_once or (self._timer is not None and self._timer <= now)

    def timer(self) -> float | None:
        """Return when an acknowledgement will be due."""
        return self._timer if self.waiting else None

    def frame(self, now: float, room_bytes: int) -> bytes:
        """Return the acknowledgement of everything so far, or nothing when it does not fit."""
        count = acknowledgement_ranges_max(room_bytes)
        if count < 1:
            return b""
        self.waiting = 0
        self._at_once = False
        self._timer = None
        ranges = self._ranges.newest(count)
        return pack_acknowledgement(now - self._largest_at, self._window_packets, ranges)
