"""The numbers follow RFC 9002, sections 5 and 6."""

from __future__ import annotations

import pytest

from edgellama.link.acknowledgements import ACK_DELAY_MAX_S
from edgellama.link.recovery import (
    GRANULARITY_S,
    INITIAL_RTT_S,
    MIN_RTT_WINDOW_S,
    PACKET_THRESHOLD,
    PROBE_TIMEOUT_MAX_S,
    LossRecovery,
    RoundTrip,
    SentPacket,
)
from edgellama.wire.frames import Acknowledgement


def acknowledgement(*ranges: tuple[int, int], delay_s: float = 0.0) -> Acknowledgement:
    return Acknowledgement(delay_s, 166, ranges)


def numbers(packets: list[tuple[int, object]]) -> list[int]:
    return [number for number, _ in packets]


def sent(count: int, spacing_s: float = 0.0) -> LossRecovery:
    recovery = LossRecovery()
    for number in range(count):
        recovery.on_sent(number, SentPacket(number * spacing_s, ()))
    return recovery


def test_the_first_sample_sets_the_estimate_and_later_ones_move_it() -> None:
    rtt = RoundTrip()
    assert rtt.smoothed == INITIAL_RTT_S
    rtt.update(0.08, 0.0, 0.0)
    assert (rtt.smoothed, rtt.variation, rtt.minimum) == (0.08, 0.04, 0.08)
    rtt.update(0.16, 0.0, 0.0)
    assert rtt.variation == pytest.approx(0.04 * 3 / 4 + 0.08 / 4)
    assert rtt.smoothed == pytest.approx(0.08 * 7 / 8 + 0.16 / 8)
    assert rtt.latest == 0.16


def test_the_peers_delay_is_subtracted_but_never_below_the_minimum() -> None:
    rtt = RoundTrip()
    rtt.update(0.1, 0.0, 0.0)
    rtt.update(0.2, 0.05, 0.0)
    assert rtt.smoothed == pytest.approx(0.1 * 7 / 8 + 0.15 / 8)
    smoothed = rtt.smoothed
    rtt.update(0.12, 0.05, 0.0)
    assert rtt.smoothed == pytest.approx(smoothed * 7 / 8 + 0.12 / 8)


def test_the_minimum_is_forgotten_after_its_window() -> None:
    rtt = RoundTrip()
    rtt.update(0.01, 0.0, 0.0)
    for tenth in range(1, 200):
        rtt.update(0.05, 0.0, tenth * 0.1)
        if tenth * 0.1 < MIN_RTT_WINDOW_S / 2:
            assert rtt.minimum == 0.01
        if tenth * 0.1 > MIN_RTT_WINDOW_S:
            assert rtt.minimum == 0.05


def test_acknowledged_packets_leave_the_flight_once() -> None:
    recovery = sent(10)
    assert numbers(recovery.on_acknowledged(acknowledgement((7, 8), (2, 4)), 1.0)) == [
        2,
        3,
        4,
        7,
        8,
    ]
    assert list(recovery.in_flight) == [0, 1, 5, 6, 9]
    assert recovery.on_acknowledged(acknowledgement((7, 8), (2, 4)), 1.0) == []
    assert recovery.rtt.smoothed == 1.0


def test_no_sample_is_taken_from_an_acknowledgement_whose_newest_packet_is_old_news() -> None:
    recovery = sent(4)
    recovery.on_acknowledged(acknowledgement((3, 3)), 0.5)
    recovery.on_acknowledged(acknowledgement((2, 3)), 9.0)
    assert recovery.rtt.latest == 0.5


def test_three_later_packets_are_the_packet_threshold() -> None:
    recovery = sent(6)
    recovery.on_acknowledged(acknowledgement((3, 3)), 0.1)
    assert numbers(recovery.lost(0.1)) == [0]
    assert PACKET_THRESHOLD == 3
    assert list(recovery.in_flight) == [1, 2, 4, 5], "what was sent later is not lost"


def test_time_makes_an_overtaken_packet_lost() -> None:
    recovery = sent(2)
    recovery.on_acknowledged(acknowledgement((1, 1)), 0.1)
    assert recovery.lost(0.1) == []
    timer = recovery.loss_timer()
    assert timer == 0.1 * 9 / 8
    assert recovery.lost(timer - 1e-6) == []
    assert numbers(recovery.lost(timer)) == [0]
    assert recovery.loss_timer() is None


def test_the_loss_delay_has_the_granularity_as_its_floor() -> None:
    rtt = RoundTrip()
    rtt.update(1e-5, 0.0, 0.0)
    assert rtt.loss_delay() == GRANULARITY_S
    assert rtt.probe_timeout() == 1e-5 + GRANULARITY_S + ACK_DELAY_MAX_S


def test_the_probe_timeout_doubles_to_its_bound_and_starts_over() -> None:
    recovery = sent(2)
    recovery.rtt.update(0.01, 0.0, 0.0)
    base = 0.01 + 4 * 0.005 + ACK_DELAY_MAX_S
    timeouts = []
    now = 0.0
    for _ in range(6):
        timer = recovery.probe_timer()
        assert timer is not None
        timeouts.append(timer - now)
        now = timer
        recovery.on_probe_timeout(now)
    expected = [base, 2 * base, 4 * base, 8 * base] + [PROBE_TIMEOUT_MAX_S] * 2
    assert timeouts == pytest.approx(expected)
    recovery.on_acknowledged(acknowledgement((0, 0)), now)
    assert recovery.probes == 0


def test_a_round_trip_beyond_the_bound_is_still_waited_for() -> None:
    recovery = sent(1)
    recovery.rtt.update(2.0, 0.0, 0.0)
    recovery.on_probe_timeout(0.0)
    assert recovery.probe_timer() == recovery.rtt.probe_timeout() > 2.0


def test_an_empty_flight_has_nothing_to_probe() -> None:
    assert LossRecovery().probe_timer() is None
    recovery = sent(3)
    assert numbers(recovery.whole_flight_lost()) == [0, 1, 2]
    assert recovery.probe_timer() is None
