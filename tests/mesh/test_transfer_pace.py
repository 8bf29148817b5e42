"""How fast weights may go beside answers: tables of delays and rates."""

from __future__ import annotations

import random

import pytest

from edgellama.mesh.transfer_pace import (
    DECIDE_S,
    LEAST_WINDOW_S,
    QUIET_S,
    RATE_LEAST,
    RATE_PAST,
    UNLIMITED,
    DecodeDelay,
    LeastOfLate,
    TransferPace,
    next_rate,
)

MIB = float(1 << 20)
MS = 1e-3


@pytest.mark.parametrize(
    ("rate", "trip_ms", "least_ms", "carried", "expected"),
    [
        # As fast as without a transfer: more is allowed, and in the end everything.
        (4 * MIB, 10, 10, 4 * MIB, 5 * MIB),
        (4 * MIB, 15, 10, 4 * MIB, 5 * MIB),
        (UNLIMITED, 10, 10, 4 * MIB, UNLIMITED),
        (60 * MIB, 10, 10, 4 * MIB, UNLIMITED),
        # More than 5 ms: half of what is allowed, or of what really went where that is less.
        (4 * MIB, 15.1, 10, 4 * MIB, 2 * MIB),
        (UNLIMITED, 15.1, 10, 4 * MIB, 2 * MIB),
        (40 * MIB, 30, 10, 4 * MIB, 2 * MIB),
        (RATE_LEAST + 1, 20, 10, 4 * MIB, RATE_LEAST),
        (RATE_LEAST, 20, 10, 4 * MIB, 0),
        (UNLIMITED, 20, 10, 0, RATE_LEAST),
        # More than 20 ms: nothing, and then little.
        (4 * MIB, 30.1, 10, 4 * MIB, 0),
        (UNLIMITED, 300, 10, 4 * MIB, 0),
        (0, 30.1, 10, 0, 0),
        (0, 20, 10, 0, 0),
        (0, 15, 10, 0, RATE_LEAST),
        (0, 12, 10, 0, RATE_LEAST),
        # Where a token takes long anyhow, a tenth of that, and four tenths.
        (4 * MIB, 540, 500, 4 * MIB, 5 * MIB),
        (4 * MIB, 560, 500, 4 * MIB, 2 * MIB),
        (4 * MIB, 690, 500, 4 * MIB, 2 * MIB),
        (4 * MIB, 710, 500, 4 * MIB, 0),
    ],
)
def test_next_rate(
    rate: float, trip_ms: float, least_ms: float, carried: float, expected: float
) -> None:
    delay = DecodeDelay(trip_ms * MS, least_ms * MS)
    assert next_rate(rate, delay, carried, slowed_at=UNLIMITED) == expected


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (2.0, 2.5),  # well below what was too much
        (3.0, 3.2),  # up to four fifths of it at once
        (3.2, 3.36),
        (4.0, 4.2),  # slowly past it
        (4.7, 4.935),
        (4.8, 6.0),  # half as much again has shown that more is carried now
    ],
)
def test_what_was_too_much_is_met_gently(rate: float, expected: float) -> None:
    delay = DecodeDelay(10 * MS, 10 * MS)
    grown = next_rate(rate * MIB, delay, carried=rate * MIB, slowed_at=4 * MIB)
    assert grown == pytest.approx(expected * MIB)


def test_the_least_of_late_forgets() -> None:
    least = LeastOfLate()
    assert least.take(5.0, 100.0) == 5.0
    assert least.take(9.0, 101.0) == 5.0
    assert least.take(4.0, 102.0) == 4.0
    assert least.take(9.0, 100.0 + LEAST_WINDOW_S / 2) == 4.0
    assert least.take(9.0, 100.0 + LEAST_WINDOW_S - 0.1) == 4.0
    assert least.take(9.0, 100.0 + LEAST_WINDOW_S) == 9.0
    assert least.take(1.0, 200.0) == 1.0
    assert least.take(8.0, 300.0) == 8.0


def came(pace: TransferPace, trips_ms: list[float], now: float, carried: float = 8 * MIB) -> float:
    """Let tokens come, one at each decision; return when the last one came."""
    for trip_ms in trips_ms:
        now += DECIDE_S
        pace.token_came(DecodeDelay(trip_ms * MS, 10 * MS), carried, now)
    return now


def test_without_a_token_there_is_no_limit() -> None:
    pace = TransferPace()
    assert pace.rate(0.0) == UNLIMITED
    now = came(pace, [40, 40, 40], 0.0)
    assert pace.rate(now) == 0
    assert pace.rate(now + QUIET_S) == 0
    assert pace.rate(now + QUIET_S + 0.1) == UNLIMITED
    now = came(pace, [10], now + QUIET_S + 0.1)
    assert pace.rate(now) == UNLIMITED


def test_one_late_token_changes_nothing() -> None:
    pace = TransferPace()
    now = came(pace, [10, 10, 90, 10, 10, 90, 10], 0.0)
    assert pace.rate(now) == UNLIMITED


def test_a_queue_is_emptied_and_the_rate_comes_back() -> None:
    pace = TransferPace()
    now = came(pace, [10, 10, 18, 18], 0.0)
    assert pace.rate(now) == 4 * MIB
    now = came(pace, [50, 50], now)
    assert pace.rate(now) == 0
    now = came(pace, [10, 10], now, carried=0)
    assert pace.rate(now) == RATE_LEAST
    rates = []
    for _ in range(100):
        now = came(pace, [10], now)
        rates.append(pace.rate(now))
    assert rates == sorted(rates)
    assert rates[-1] == UNLIMITED
    assert max(rate for rate in rates if rate != UNLIMITED) <= RATE_PAST


def test_what_was_decided_is_seen_before_the_next_decision() -> None:
    """A hundred tokens a second do not halve the rate a hundred times."""
    pace = TransferPace()
    for step in range(100):
        pace.token_came(DecodeDelay(18 * MS, 10 * MS), 8 * MIB, 50.0 + step * DECIDE_S / 100)
    assert pace.rate(50.0 + DECIDE_S) == 4 * MIB


class Queue:
    """A link of 6 MB/s with a queue: what a transfer puts in makes tokens wait."""

    CAPACITY = 6e6  # bytes a second
    BYTES_MAX = 1.4e6  # a thousand packets

    def __init__(self) -> None:
        self.waiting = 0.0
        self.carried = 0.0

    def run(self, rate: float, seconds: float) -> None:
        offered = min(rate, 20e6) * seconds  # TCP fills whatever it is let
        gone = min(self.waiting + offered, self.CAPACITY * seconds)
        self.waiting = min(self.waiting + offered - gone, self.BYTES_MAX)
        self.carried += gone


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_that_is_uneven_by_itself_does_not_hold_a_transfer_up(seed: int) -> None:
    chance = random.Random(seed)
    queue, pace, least = Queue(), TransferPace(), LeastOfLate()
    now, waits, moved_before, windows = 1000.0, [], 0.0, [0.0] * 40
    for _ in range(4000):
        wait = queue.waiting / queue.CAPACITY
        trip = 0.010 + chance.expovariate(1 / 0.012) + wait
        pace.token_came(DecodeDelay(trip, least.take(trip, now)), sum(windows), now)
        queue.run(pace.rate(now), 0.025)
        windows = [*windows[1:], queue.carried - moved_before]  # of the last second
        moved_before = queue.carried
        waits.append(wait)
        now += 0.025
    assert queue.carried / (4000 * 0.025) > 0.1 * Queue.CAPACITY
    late = sorted(waits)
    assert late[len(late) // 2] < 0.006
    assert late[len(late) * 9 // 10] < 0.040


def test_beside_answers_a_transfer_leaves_the_queue_empty_and_still_moves() -> None:
    queue, pace, least = Queue(), TransferPace(), LeastOfLate()
    now, trips, moved_before = 1000.0, [], 0.0
    for step in range(2000):
        trip = 0.010 + queue.waiting / queue.CAPACITY
        delay = DecodeDelay(trip, least.take(trip, now))
        pace.token_came(delay, (queue.carried - moved_before) / 0.025, now)
        moved_before = queue.carried
        queue.run(pace.rate(now), 0.025)
        trips.append(trip)
        now += 0.025
        if step == 200:
            settled = queue.carried
    late = sorted(trips[200:])
    assert late[len(late) // 2] < 0.016
    assert late[len(late) * 98 // 100] < 0.040
    assert (queue.carried - settled) / (1800 * 0.025) > 0.5 * Queue.CAPACITY
    without = Queue()
    for _ in range(40):
        without.run(UNLIMITED, 0.025)
    assert without.waiting / Queue.CAPACITY > 0.2  # what tokens would wait without the pace
