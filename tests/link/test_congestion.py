"""The window follows queueing delay and heavy loss; the pacer spreads it."""

from __future__ import annotations

from edgellama.link.congestion import (
    DECREASE,
    QUEUEING_DELAY_MAX_S,
    WINDOW_PACKETS_INITIAL,
    WINDOW_PACKETS_MIN,
    DelayController,
    Pacer,
)
from edgellama.link.recovery import RoundTrip


def round_trip(minimum: float, smoothed: float) -> RoundTrip:
    rtt = RoundTrip()
    rtt.update(minimum, 0.0, 0.0)
    rtt.smoothed = smoothed
    return rtt


QUIET = round_trip(0.003, 0.004)
QUEUED = round_trip(0.003, 0.003 + 2 * QUEUEING_DELAY_MAX_S)


def one_round(controller: DelayController, number: int, rtt: RoundTrip, packets: int = 20) -> None:
    """Acknowledge packets up to a number, and let the next round begin there."""
    controller.on_acknowledged(packets, number, number, rtt, full=True)


def test_the_window_doubles_each_round_until_a_queue_is_seen() -> None:
    controller = DelayController(1000)
    assert controller.window == WINDOW_PACKETS_INITIAL
    one_round(controller, 1, QUIET, 32)
    assert controller.window == 64
    one_round(controller, 2, QUEUED, 0)
    assert controller.window == 64 * DECREASE
    before = controller.window
    one_round(controller, 3, QUIET, int(before))
    assert before < controller.window <= before + 1, "then by one a round"


def test_it_shrinks_once_a_round_and_not_below_a_small_message() -> None:
    controller = DelayController(1000)
    controller.on_acknowledged(1, 10, 20, QUEUED, full=False)
    assert controller.window == WINDOW_PACKETS_INITIAL * DECREASE
    for number in range(11, 20):
        controller.on_acknowledged(1, number, 40, QUEUED, full=False)
    assert controller.window == WINDOW_PACKETS_INITIAL * DECREASE
    for number in range(20, 200):
        controller.on_acknowledged(1, number, number, QUEUED, full=False)
    assert controller.window == WINDOW_PACKETS_MIN


def test_ordinary_loss_changes_nothing_and_heavy_loss_does() -> None:
    controller = DelayController(1000)
    controller.on_lost(20)
    controller.on_acknowledged(80, 1, 2, QUIET, full=False)
    assert controller.window == WINDOW_PACKETS_INITIAL
    controller.on_lost(40)
    controller.on_acknowledged(80, 2, 3, QUIET, full=False)
    assert controller.window == WINDOW_PACKETS_INITIAL * DECREASE
    controller.on_acknowledged(80, 3, 4, QUIET, full=False)
    assert controller.window == WINDOW_PACKETS_INITIAL * DECREASE, "each loss counts once"


def test_half_of_two_packets_lost_says_nothing() -> None:
    controller = DelayController(1000)
    controller.on_lost(1)
    controller.on_acknowledged(1, 1, 2, QUIET, full=False)
    assert controller.window == WINDOW_PACKETS_INITIAL


def test_a_window_that_is_not_used_does_not_grow_and_none_exceeds_the_peers() -> None:
    controller = DelayController(50)
    controller.on_acknowledged(20, 1, 2, QUIET, full=False)
    assert controller.window == WINDOW_PACKETS_INITIAL
    for number in range(2, 10):
        one_round(controller, number, QUIET)
    assert controller.window == 50
    assert DelayController(8).window == 8


def test_silence_means_starting_over() -> None:
    controller = DelayController(1000)
    controller.on_persistent_congestion()
    assert controller.window == WINDOW_PACKETS_MIN
    one_round(controller, 1, QUIET, 4)
    assert controller.window == 2 * WINDOW_PACKETS_MIN


def test_the_pacer_spreads_a_window_over_a_round_trip() -> None:
    pacer, rtt = Pacer(), round_trip(0.1, 0.1)
    now, packets = 100.0, 0
    while now < 100.1:
        if pacer.next_at() <= now:
            pacer.on_sent(40.0, rtt, now)
            packets += 1
        else:
            now = pacer.next_at()
    assert 50 <= packets <= 53, "a quarter faster than the window, and a small burst at first"
