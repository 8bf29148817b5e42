"""What a link carries is seen when something great crosses it, and only then."""

from __future__ import annotations

import pytest

from edgellama.link.delivery_rate import WINDOW_S, DeliveryRate
from edgellama.link.endpoint import Identity, Priority
from edgellama.link.recovery import RoundTrip
from edgellama.testing.network import (
    Conditions,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.values import Address

A, B = "a" * 32, "b" * 32
HERE, THERE = Address("10.0.0.1", 7711), Address("10.0.0.2", 7711)
ROUND_TRIP_S = 0.010


def link_after(bytes_per_s: float, message_bytes: int, *, loss: float = 0.0, times: int = 1) -> int:
    """Return the rate seen after messages of so many bytes, half a second apart."""
    conditions = Conditions(jitter_s=0.0003, loss=loss, bytes_per_second=bytes_per_s)
    network = SimulatedNetwork(5, conditions)
    here = SimulatedHost(network, Identity(A, 1), HERE)
    there = SimulatedHost(network, Identity(B, 1), THERE)
    here.handler, there.handler = RecordingHandler(), RecordingHandler()
    here.act(lambda now: here.endpoint.dial(THERE, now))
    network.run(2.0)
    for number in range(times):
        here.act(lambda now: here.endpoint.send(B, bytes(message_bytes), Priority.BULK, now))
        network.run(2.5 + number / 2)
    network.run(12.0)
    assert there.endpoint.peers()[A].bytes_per_s == 0  # nothing great went that way
    return here.endpoint.peers()[B].bytes_per_s


@pytest.mark.parametrize("loss", [0.0, 0.03])
@pytest.mark.parametrize("bytes_per_s", [5e5, 2e6, 6e6])
def test_a_quarter_of_a_megabyte_shows_the_rate_within_a_tenth(
    bytes_per_s: float, loss: float
) -> None:
    assert link_after(bytes_per_s, 256 << 10, loss=loss) == pytest.approx(bytes_per_s, rel=0.1)


def test_of_a_wide_link_a_little_shows_less_than_much() -> None:
    little, much = (link_after(2e7, size) for size in (256 << 10, 8 << 20))
    assert 0.7 * 2e7 < little < much
    assert much == pytest.approx(2e7, rel=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_what_goes_the_other_way_meanwhile_is_not_waited_for(seed: int) -> None:
    """Acknowledgements have packet numbers, too, and are never acknowledged."""
    network = SimulatedNetwork(seed, Conditions(bytes_per_second=6e6))
    here = SimulatedHost(network, Identity(A, 1), HERE)
    there = SimulatedHost(network, Identity(B, 1), THERE)
    here.handler, there.handler = RecordingHandler(), RecordingHandler()
    here.act(lambda now: here.endpoint.dial(THERE, now))
    network.run(2.0)
    here.act(lambda now: here.endpoint.send(B, bytes(256 << 10), Priority.BULK, now))
    for _ in range(60):
        there.act(lambda now: there.endpoint.send(A, bytes(600), Priority.DECODE, now))
        network.run(network.now + 0.002)
    network.run(12.0)
    assert here.endpoint.peers()[B].bytes_per_s == pytest.approx(6e6, rel=0.15)


def test_rows_of_single_tokens_show_nothing() -> None:
    assert link_after(1e6, 4 << 10, times=15) == 0


def round_trip() -> RoundTrip:
    rtt = RoundTrip()
    rtt.update(ROUND_TRIP_S, 0.0, 0.0)
    return rtt


class Acknowledged:
    """A rate that hears of one whole flight at a time."""

    def __init__(self) -> None:
        self.rate = DeliveryRate()
        self.number = 0

    def hear(self, size_bytes: int, last: int, sent_at: float, now: float, *, full: bool) -> None:
        self.rate.on_acknowledged(
            size_bytes, last, sent_at, self.number + 9, round_trip(), now, full=full
        )

    def flight(self, size_bytes: int, began: float, took_s: float, sent_s: float = 0.0) -> int:
        """Let ten packets come that were sent within ``sent_s``; return the rate."""
        self.hear(0, self.number, began - 1.0, began, full=True)
        self.number += 10
        self.hear(size_bytes, self.number, began - 1.0 + sent_s, began + took_s, full=False)
        return self.rate.bytes_per_s


def test_acknowledgements_in_a_bunch_are_no_greater_rate_than_a_round_trip_allows() -> None:
    assert Acknowledged().flight(10_000, 1.0, took_s=0.0001) == 1_000_000
    assert Acknowledged().flight(10_000, 1.0, took_s=0.1) == 100_000


def test_the_greatest_of_the_last_seconds_counts() -> None:
    flights = Acknowledged()
    assert flights.flight(50_000, 1.0, 0.1) == 500_000
    assert flights.flight(20_000, 2.0, 0.1) == 500_000
    assert flights.flight(30_000, 2.0 + WINDOW_S / 2, 0.1) == 500_000
    assert flights.flight(25_000, 2.0 + WINDOW_S, 0.1) == 300_000
    assert flights.flight(10_000, 2.0 + 10 * WINDOW_S, 0.1) == 100_000


def test_what_was_sent_slowly_did_not_arrive_quickly() -> None:
    assert Acknowledged().flight(10_000, 1.0, took_s=0.02, sent_s=0.05) == 200_000


def test_a_sample_ends_with_what_was_in_flight() -> None:
    flight = Acknowledged()
    flight.hear(5_000, 3, 0.9, 1.0, full=True)
    assert flight.rate.is_sampling
    flight.hear(5_000, 8, 0.91, 1.05, full=False)
    assert flight.rate.bytes_per_s == 0
    flight.hear(5_000, 9, 0.92, 1.1, full=False)
    assert flight.rate.bytes_per_s == 100_000  # those of before the beginning do not count
    assert not flight.rate.is_sampling
