"""How fast weights may travel beside answers: from how long tokens take to a rate.

A transfer fills the queue of the slowest link on its way, and every token then waits behind it. So
its rate is halved when a token's way round the ring takes longer than the least of the last
seconds, and the transfer stops when it takes much longer. What tokens take longer while nothing is
carried is not the transfer's doing: a device that is busy otherwise computes unevenly by itself.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final, NamedTuple

SLOWER_S: Final = 0.005  # over the least: the rate is halved
STOP_S: Final = 0.020  # over the least: nothing is sent
# Where a token takes longer than 50 ms, devices compute that unevenly by themselves.
SLOWER_SHARE: Final = 0.1  # of the least
STOP_SHARE: Final = 0.4

RATE_LEAST: Final = 256 << 10  # bytes a second: a chunk in 4 s, well within a message's time
RATE_PAST: Final = 64 << 20  # bytes a second; a rate that has grown beyond this is no limit
UNLIMITED: Final = float("inf")
GROWTH: Final = 1.25  # a decision at which tokens take no longer than they must
# Near the rate at which they last took longer it grows slowly, and past that as before: what the
# way carries is met gently, and more is found soon where it has come to carry more.
GROWTH_NEAR: Final = 1.05
NEAR_FROM: Final = 0.8
NEAR_TO: Final = 1.5
DECIDE_S: Final = 0.2  # between two decisions: what the last one changed must be seen first
QUIET_S: Final = 1.0  # without a token: nobody waits for any
LEAST_WINDOW_S: Final = 10.0
TRIPS_KEPT: Final = 3  # the middle one counts: a single late packet is no queue
IDLE_RATE: Final = 32 << 10  # bytes a second; what carries less is no reason for any delay
IDLE_TRIPS_MIN: Final = 8
IDLE_TRIPS_MAX: Final = 32
IDLE_S: Final = 30.0  # then what is known of tokens without a transfer is forgotten


class DecodeDelay(NamedTuple):
    """How long one token's way round the ring took, and the least that it took of late."""

    trip_s: float
    least_s: float


class LeastOfLate:
    """The least value of the last 5 to 10 seconds."""

    def __init__(self) -> None:
        self._half_began = float("-inf")
        self._this_half = self._half_before = UNLIMITED

    def take(self, value: float, now: float) -> float:
        """Add a value; return the least."""
        if now >= self._half_began + LEAST_WINDOW_S / 2:
            is_recent = now < self._half_began + LEAST_WINDOW_S
            self._half_before = self._this_half if is_recent else UNLIMITED
            self._half_began, self._this_half = now, value
        self._this_half = min(self._this_half, value)
        return min(self._this_half, self._half_before)


def next_rate(rate: float, delay: DecodeDelay, carried: float, slowed_at: float) -> float:
    """Return the bytes a second that are allowed from now on, 0 for none.

    ``rate`` was allowed until now, ``carried`` bytes a second have really gone, ``slowed_at`` had
    gone when tokens last took longer (``UNLIMITED`` if they never did).
    """
    over_s = delay.trip_s - delay.least_s
    if over_s > max(STOP_S, STOP_SHARE * delay.least_s):
        return 0.0
    if over_s > max(SLOWER_S, SLOWER_SHARE * delay.least_s):
        # Below the least nothing helps but a pause, which also shows whose doing the delay is.
        return max(RATE_LEAST, min(rate, carried) / 2) if rate > RATE_LEAST else 0.0
    if rate < RATE_LEAST:
        return RATE_LEAST
    grown = rate * GROWTH
    if NEAR_FROM * slowed_at < grown < NEAR_TO * slowed_at:
        grown = max(rate * GROWTH_NEAR, NEAR_FROM * slowed_at)
    return UNLIMITED if grown > RATE_PAST else grown


class TransferPace:
    """The rate that one device allows itself, for all that it sends and fetches together."""

    def __init__(self) -> None:
        self._rate = self._slowed_at = UNLIMITED
        self._seen_at = self._decided_at = float("-inf")
        self._trips: deque[float] = deque(maxlen=TRIPS_KEPT)
        self._idle: deque[float] = deque(maxlen=IDLE_TRIPS_MAX)  # over the least, nothing carried
        self._idle_at = float("-inf")

    def token_came(self, delay: DecodeDelay, carried: float, now: float) -> None:
        """Take what home says of a token; ``carried``: bytes a second of late."""
        if now > self._seen_at + QUIET_S:
            self._rate = self._slowed_at = UNLIMITED
            self._trips.clear()
        self._seen_at = now
        self._trips.append(delay.trip_s)
        if carried < IDLE_RATE:
            self._idle.append(delay.trip_s - delay.least_s)
            self._idle_at = now
        elif now > self._idle_at + IDLE_S:
            self._idle.clear()
        if now >= self._decided_at + DECIDE_S:
            self._decided_at = now
            middle = delay._replace(trip_s=median(self._trips) - self._uneven_s())
            rate = next_rate(self._rate, middle, carried, self._slowed_at)
            if rate < self._rate:
                self._slowed_at = max(RATE_LEAST, min(self._rate, carried))
            self._rate = rate

    def _uneven_s(self) -> float:
        """Return what most tokens take no more over the least without any transfer."""
        if len(self._idle) < IDLE_TRIPS_MIN:
            return 0.0
        return sorted(self._idle)[len(self._idle) * 3 // 4]

    def rate(self, now: float) -> float:
        """Return the bytes a second that are allowed; unlimited while no token flows."""
        return self._rate if now <= self._seen_at + QUIET_S else UNLIMITED
