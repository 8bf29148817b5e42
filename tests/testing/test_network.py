"""The simulated network does to datagrams what its conditions say, and the same each time."""

from __future__ import annotations

import pytest

from edgellama.testing.network import Conditions, LivelockError, SimulatedNetwork
from edgellama.values import Address

HERE, THERE = Address("10.0.0.1", 1), Address("10.0.0.2", 1)
WIDE = {"bytes_per_second": 1e12, "queue_packets": 10**9}
COUNT = 2000


def delivered(conditions: Conditions, seed: int = 1) -> list[tuple[float, bytes]]:
    network = SimulatedNetwork(seed, conditions)
    arrived: list[tuple[float, bytes]] = []
    network.attach(THERE, lambda data, source: arrived.append((network.now, data)))
    for number in range(COUNT):
        network.at(number * 1e-3, lambda n=number: network.send(b"%05d" % n, HERE, THERE))
    network.run(COUNT * 1e-3 + 1.0)
    return arrived


def test_a_quiet_path_delays_and_keeps_order() -> None:
    arrived = delivered(Conditions(delay_s=0.5, jitter_s=0.0, **WIDE))
    assert [data for _, data in arrived] == [b"%05d" % number for number in range(COUNT)]
    assert arrived[10][0] == pytest.approx(0.51)


@pytest.mark.parametrize(
    ("conditions", "least", "most"),
    [
        (Conditions(loss=0.1, **WIDE), 0.86, 0.94),
        (Conditions(duplication=0.1, **WIDE), 1.06, 1.14),
        (Conditions(burst_enter=0.02, burst_leave=0.5, **WIDE), 0.92, 0.99),
    ],
)
def test_loss_bursts_and_duplication_come_as_often_as_they_should(
    conditions: Conditions, least: float, most: float
) -> None:
    assert least * COUNT < len(delivered(conditions)) < most * COUNT


def test_reordering_damage_and_truncation_happen() -> None:
    numbers = [data for _, data in delivered(Conditions(reordering=0.2, **WIDE))]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == [b"%05d" % number for number in range(COUNT)]
    damaged = [data for _, data in delivered(Conditions(corruption=0.2, **WIDE))]
    differing = [data for n, data in enumerate(damaged) if data != b"%05d" % n]
    assert 0.15 * COUNT < len(differing) < 0.25 * COUNT
    short = [data for _, data in delivered(Conditions(truncation=0.2, **WIDE)) if len(data) < 5]
    assert 0.15 * COUNT < len(short) < 0.25 * COUNT


def test_a_slow_path_has_a_queue_with_an_end() -> None:
    network = SimulatedNetwork(
        1, Conditions(jitter_s=0.0, bytes_per_second=1.1e6, queue_packets=10)
    )
    arrived: list[float] = []
    network.attach(THERE, lambda data, source: arrived.append(network.now))
    for _ in range(100):
        network.send(bytes(1100), HERE, THERE)
    network.run(1.0)
    assert len(arrived) == 11, "until more than ten full ones wait"
    assert arrived[-1] - arrived[0] == pytest.approx(0.01)


def test_a_cut_goes_one_way_until_it_heals() -> None:
    network = SimulatedNetwork(1)
    arrived: list[bytes] = []
    for address in (HERE, THERE):
        network.attach(address, lambda data, source: arrived.append(data))
    network.cut(HERE, THERE)
    network.send(b"lost", HERE, THERE)
    network.send(b"back", THERE, HERE)
    network.run(1.0)
    assert arrived == [b"back"]
    network.heal()
    network.send(b"there", HERE, THERE)
    network.run(2.0)
    network.detach(THERE)
    network.send(b"gone", HERE, THERE)
    network.run(3.0)
    assert arrived == [b"back", b"there"]


def test_the_same_seed_gives_the_same_network() -> None:
    rough = Conditions(loss=0.1, duplication=0.1, reordering=0.1, corruption=0.1)
    assert delivered(rough, seed=5) == delivered(rough, seed=5)
    assert delivered(rough, seed=5) != delivered(rough, seed=6)


def test_time_that_stands_still_is_an_error() -> None:
    network = SimulatedNetwork(1)

    def again() -> None:
        network.at(network.now, again)

    again()
    with pytest.raises(LivelockError):
        network.run(1.0, events_max=1000)
