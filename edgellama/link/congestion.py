"""How much may be in flight, and how evenly it is sent.

The controller looks at queueing delay rather than at single losses: on Wi-Fi a lost packet says
little about congestion, and a transfer that fills the queue until packets are lost would cost a
token beside it a hundred milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellama.link.recovery import RoundTrip

WINDOW_PACKETS_INITIAL = 32
WINDOW_PACKETS_MIN = 4
QUEUEING_DELAY_MAX_S = 0.005
DECREASE = 0.7
LOSS_RATIO_MAX = 0.3
JUDGED_PACKETS_MIN = 64
"""A loss ratio is judged over at least so many packets: of fewer, 20 % random loss takes more
than 30 % too often, and a transfer halves its speed for nothing."""

PACED_PACKETS_MIN = 16
"""Below so many in flight a burst fits any queue on the way."""

PACING_GAIN = 1.25
"""Sends a little faster than the window's share of a round trip, so that it can fill."""

BURST_S = 0.002
"""Sending time that may be saved up, since no timer fires to the microsecond."""


class DelayController:
    """The congestion window of one peer, in packets."""

    def __init__(self, window_packets_max: int) -> None:
        self.window = float(min(WINDOW_PACKETS_INITIAL, window_packets_max))
        self._window_max = float(window_packets_max)
        self._slow_start = True
        self._round_end = 0  # the round ends when this packet number is acknowledged
        self._arrived = 0
        self._lost = 0

    def on_acknowledged(
        self, packets: int, largest: int, next_packet_number: int, rtt: RoundTrip, *, full: bool
    ) -> None:
        """Grow with what arrived; once a round trip, look at delay and loss.

        ``full``: the window was in use before these arrived; one that is not used never grows.
        """
        self._arrived += packets
        if full:
            self.window += packets if self._slow_start else packets / self.window
            self.window = min(self.window, self._window_max)
        if largest < self._round_end:
            return
        self._round_end = next_packet_number
        queueing_delay = rtt.smoothed - rtt.minimum
        judged = self._arrived + self._lost
        heavy_loss = judged >= JUDGED_PACKETS_MIN and self._lost > LOSS_RATIO_MAX * judged
        if queueing_delay > max(QUEUEING_DELAY_MAX_S, rtt.minimum) or heavy_loss:
            self._slow_start = False
            self.window = max(WINDOW_PACKETS_MIN, self.window * DECREASE)
        if judged >= JUDGED_PACKETS_MIN:
            self._arrived = self._lost = 0

    def on_lost(self, packets: int) -> None:
        """Count lost packets for the round's ratio."""
        self._lost += packets

    def on_persistent_congestion(self) -> None:
        """Start over: nothing came back for several probe timeouts (RFC 9002 section 7.6)."""
        self.window = WINDOW_PACKETS_MIN
        self._slow_start = True
        self._arrived = self._lost = 0


class Pacer:
    """Spreads a window over its round trip (RFC 9002 section 7.7)."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def next_at(self) -> float:
        """Return when the next paced packet may go."""
        return self._next_at

    def on_sent(self, window: float, rtt: RoundTrip, now: float) -> None:
        """Account for a paced packet."""
        interval = rtt.smoothed / (PACING_GAIN * window)
        self._next_at = max(self._next_at, now - BURST_S) + interval
