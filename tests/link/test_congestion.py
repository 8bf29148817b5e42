"""The window follows queueing delay and heavy loss; the pacer spreads it."""

from __future__ import annotations

import pytest

from edgellama.link.congestion import (
    DECREASE,
    DRAIN_S,
    QUEUEING_DELAY_BESIDE_DECODE_MIN_S,
    QUEUEING_DELAY_MAX_S,
    QUEUEING_DELAY_MIN_S,
    WINDOW_PACKETS_INITIAL,
    WINDOW_PACKETS_MIN,
    DelayController,
    Pacer,
    queueing_target,
)
from edgellama.link.recovery import RoundTrip

MINIMUM_S = 0.004
TARGET_S = queueing_target(MINIMUM_S)


def round_trip(queueing: float) -> RoundTrip:
    rtt = RoundTrip()
    rtt.update(MINIMUM_S, 0.0, 0.0)
    rtt.smoothed = rtt.adjusted = rtt.latest = MINIMUM_S + queueing
    return rtt


QUIET = round_trip(0.0)


class Rounds:
    """A controller whose every call acknowledges one whole round trip."""

    def __init__(self, window_max: int = 1000) -> None:
        self.controller = DelayController(window_max)
        self.number = 0
        self.now = 0.0

    def round(self, queueing: float = 0.0, packets: int = 20, *, full: bool = True) -> float:
        self.number += 1
        self.now += MINIMUM_S
        self.controller.on_acknowledged(
            *(packets, self.number, self.number, round_trip(queueing), self.now), full=full
        )
        return self.controller.window


def test_the_target_is_half_the_path_within_bounds() -> None:
    assert queueing_target(0.004) == 0.002
    assert queueing_target(0.0001) == QUEUEING_DELAY_MIN_S
    assert queueing_target(0.1) == QUEUEING_DELAY_MAX_S
    assert queueing_target(0.0001, beside_decode=True) == QUEUEING_DELAY_BESIDE_DECODE_MIN_S
    assert queueing_target(0.004, beside_decode=True) == 0.002


def test_the_window_doubles_each_round_until_a_queue_is_seen() -> None:
    rounds = Rounds()
    assert rounds.controller.window == WINDOW_PACKETS_INITIAL
    assert rounds.round(packets=32) == 64
    shrunk = rounds.round(2 * TARGET_S, 0)
    assert shrunk == pytest.approx(64 * (MINIMUM_S + TARGET_S) / (MINIMUM_S + 2 * TARGET_S))
    assert rounds.round(packets=64) == pytest.approx(shrunk + 1), "then by one a round"


def test_the_queue_is_held_at_the_target() -> None:
    rounds = Rounds()
    rounds.round(2 * TARGET_S)
    before = rounds.controller.window
    assert before < rounds.round(TARGET_S / 2) < before + 1
    assert rounds.round(TARGET_S) == pytest.approx(rounds.controller.window)
    assert rounds.round(1.2 * TARGET_S) < rounds.controller.window + 0.01 * before
    for _ in range(100):
        rounds.round(1.0)
    assert rounds.controller.window == WINDOW_PACKETS_MIN


def test_it_shrinks_once_a_round_and_by_a_bounded_share() -> None:
    controller = DelayController(1000)
    jam = round_trip(1.0)
    controller.on_acknowledged(1, 10, 20, jam, 0.0, full=True)
    shrunk = controller.window
    assert shrunk >= WINDOW_PACKETS_INITIAL * DECREASE
    for number in range(11, 20):
        controller.on_acknowledged(1, number, 40, jam, 0.0, full=True)
    assert controller.window == shrunk


def test_one_quick_packet_in_a_round_shows_that_the_queue_is_empty() -> None:
    controller = DelayController(1000)
    controller.on_acknowledged(1, 0, 10, round_trip(1.0), 0.0, full=True)
    before = controller.window
    controller.on_acknowledged(1, 5, 10, QUIET, 0.0, full=True)
    controller.on_acknowledged(1, 10, 20, round_trip(1.0), 0.0, full=True)
    assert controller.window > before, "a radio that held the others up is no queue"


def test_a_transfer_lets_the_queue_drain_so_that_the_path_is_seen() -> None:
    rounds = Rounds()
    rounds.round(2 * TARGET_S)
    seen = []
    while rounds.now < 2.5 * DRAIN_S:
        seen.append(rounds.round(TARGET_S))
    drained = [window for window in seen if window < 0.8 * max(seen)]
    assert len(drained) == 2, "one round each time"
    assert seen[-1] == pytest.approx(seen[0]), "and then it goes on as before"


def test_ordinary_loss_changes_nothing_and_heavy_loss_does() -> None:
    rounds = Rounds()
    rounds.controller.on_lost(20)
    assert rounds.round(packets=80, full=False) == WINDOW_PACKETS_INITIAL
    rounds.controller.on_lost(40)
    assert rounds.round(packets=80, full=False) == WINDOW_PACKETS_INITIAL * DECREASE
    assert rounds.round(packets=80, full=False) == WINDOW_PACKETS_INITIAL * DECREASE


def test_half_of_two_packets_lost_says_nothing() -> None:
    rounds = Rounds()
    rounds.controller.on_lost(1)
    assert rounds.round(packets=1, full=False) == WINDOW_PACKETS_INITIAL


def test_a_window_that_is_not_used_does_not_change_and_none_exceeds_the_peers() -> None:
    rounds = Rounds(50)
    assert rounds.round(full=False) == WINDOW_PACKETS_INITIAL
    assert rounds.round(1.0, full=False) == WINDOW_PACKETS_INITIAL, "others fill the queue"
    for _ in range(10):
        rounds.round()
    assert rounds.controller.window == 50
    assert DelayController(8).window == 8


def test_silence_means_starting_over() -> None:
    rounds = Rounds()
    rounds.controller.on_persistent_congestion()
    assert rounds.controller.window == WINDOW_PACKETS_MIN
    assert rounds.round(packets=4) == 2 * WINDOW_PACKETS_MIN


def test_the_pacer_spreads_a_window_over_a_round_trip() -> None:
    pacer, rtt = Pacer(), RoundTrip()
    rtt.update(0.1, 0.0, 0.0)
    now, packets = 100.0, 0
    while now < 100.1:
        if pacer.next_at <= now:
            pacer.on_sent(40.0, rtt, now)
            packets += 1
        else:
            now = pacer.next_at
    assert 50 <= packets <= 53, "a quarter faster than the window, and a small burst at first"
