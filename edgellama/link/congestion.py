"""How much may be in flight, and how evenly it is sent.

The controller looks at queueing delay rather than at single losses: on Wi-Fi a lost packet says
little about congestion, and a transfer that fills the queue until packets are lost would cost a
token beside it a hundred milliseconds. It holds the queue at a small target, as TCP Vegas and
LEDBAT (RFC 6817) do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellama.link.recovery import RoundTrip

WINDOW_PACKETS_INITIAL = 32
WINDOW_PACKETS_MIN = 4

QUEUEING_DELAY_MIN_S = 0.001
QUEUEING_DELAY_MAX_S = 0.005
"""The delay that a transfer may add: half the path's own, so that a reply beside it takes less than
twice its time, within bounds: below the first lies what waking a thread takes."""

QUEUEING_DELAY_BESIDE_DECODE_MIN_S = 0.00025
"""Instead of the first while tokens go the same way, whose round trip on a quick path a queue of
1 ms would double. A transfer alone is spared it: it would take late threads for a queue."""

DECREASE = 0.7
"""The window shrinks by no more in one round trip."""

LOSS_RATIO_MAX = 0.3
JUDGED_PACKETS_MIN = 64
"""A loss ratio is judged over at least so many packets: of fewer, 20 % random loss takes more
than 30 % too often, and a transfer halves its speed for nothing."""

DRAIN_S = 4.0
"""How often a transfer leaves the queue empty for a round trip, so that the least round trip is
seen again before it is forgotten; otherwise the own queue would pass for the path."""

PACED_PACKETS_MIN = 16
"""Below so many in flight a burst fits any queue on the way."""

PACING_GAIN = 1.25
"""Sends a little faster than the window's share of a round trip, so that it can fill."""

BURST_S = 0.002
"""Sending time that may be saved up, since no timer fires to the microsecond."""


def queueing_target(minimum: float, *, beside_decode: bool = False) -> float:
    """Return the queueing delay to hold on a path of that least round trip, in seconds."""
    least = QUEUEING_DELAY_BESIDE_DECODE_MIN_S if beside_decode else QUEUEING_DELAY_MIN_S
    return min(max(minimum / 2, least), QUEUEING_DELAY_MAX_S)


class DelayController:
    """The congestion window of one peer, in packets."""

    def __init__(self, window_packets_max: int) -> None:
        self.window = float(min(WINDOW_PACKETS_INITIAL, window_packets_max))
        self._window_max = float(window_packets_max)
        self._slow_start = True
        self._round_end = 0  # the round ends when this packet number is acknowledged
        self._round_minimum = math.inf  # of the round trips seen in it, in seconds
        self._used = False  # the window was in use in this round
        self._drain_at = 0.0
        self._before_drain = 0.0  # the window to go back to, when one round drains the queue
        self._arrived = 0
        self._lost = 0

    def on_acknowledged(
        self,
        packets: int,
        largest: int,
        next_packet_number: int,
        rtt: RoundTrip,
        now: float,
        *,
        full: bool,
        beside_decode: bool = False,
    ) -> None:
        """Grow with what arrived; once a round trip, look at delay and loss.

        ``full``: the window was in use before these arrived; one that is not used never changes
        but for heavy loss: the delay that is seen then is others' doing. ``beside_decode``: tokens
        go the same way, and wait behind whatever queue there is.
        """
        self._arrived += packets
        self._used |= full
        self._round_minimum = min(self._round_minimum, rtt.adjusted)
        if full and self._slow_start:
            self.window = min(self.window + packets, self._window_max)
        if largest < self._round_end:
            return
        self._round_end = next_packet_number
        if self._before_drain:
            self.window, self._before_drain = self._before_drain, 0.0
        elif self._used:
            target = queueing_target(rtt.minimum, beside_decode=beside_decode)
            self._follow_delay(self._round_minimum - rtt.minimum, rtt.minimum, target, now)
        self._round_minimum = math.inf
        self._used = False
        self._judge_loss()

    def _follow_delay(self, queueing: float, minimum: float, target: float, now: float) -> None:
        if queueing > target:
            self._slow_start = False
            self._shrink(max(DECREASE, (minimum + target) / (minimum + queueing)))
        elif not self._slow_start:
            self.window = min(self.window + 1.0 - queueing / target, self._window_max)
        if now >= self._drain_at:
            if self._drain_at:
                self._before_drain = self.window
                self._shrink(minimum / (minimum + 2 * target))
            self._drain_at = now + DRAIN_S

    def _judge_loss(self) -> None:
        judged = self._arrived + self._lost
        if judged < JUDGED_PACKETS_MIN:
            return
        if self._lost > LOSS_RATIO_MAX * judged:
            self._slow_start = False
            self._shrink(DECREASE)
        self._arrived = self._lost = 0

    def _shrink(self, factor: float) -> None:
        self.window = max(WINDOW_PACKETS_MIN, self.window * factor)

    def on_lost(self, packets: int) -> None:
        """Count lost packets for the round's ratio."""
        self._lost += packets

    def on_persistent_congestion(self) -> None:
        """Start over: nothing came back for several probe timeouts (RFC 9002 section 7.6)."""
        self.window = WINDOW_PACKETS_MIN
        self._slow_start = True
        self._before_drain = 0.0
        self._arrived = self._lost = 0


class Pacer:
    """Spreads a window over its round trip (RFC 9002 section 7.7)."""

    def __init__(self) -> None:
        self.next_at = 0.0
        """When the next paced packet may go."""

    def on_sent(self, window: float, rtt: RoundTrip, now: float) -> None:
        """Account for a paced packet."""
        interval = rtt.smoothed / (PACING_GAIN * window)
        self.next_at = max(self.next_at, now - BURST_S) + interval
