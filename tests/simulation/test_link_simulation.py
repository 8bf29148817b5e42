"""Production endpoints on a seeded network: every message arrives exactly once, byte for byte.

A failure prints its seed; ``run_link_scenario(seed)`` is the whole failure again.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from edgellama.link.endpoint import Identity, MessageReceived, Priority
from edgellama.testing.link_lives_scenario import run_link_lives_scenario
from edgellama.testing.link_scenario import conditions_of, run_link_scenario
from edgellama.testing.network import (
    Conditions,
    LivelockError,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.values import Address

PERFECT = Conditions(jitter_s=0.0, bytes_per_second=1e8, queue_packets=10_000)


FOUND_SOMETHING = [268]
"""268: a second question for new keys, before the first ones were used, broke the connection."""


@pytest.mark.parametrize("ten", range(15))
def test_every_message_arrives_exactly_once_whatever_the_network_does(ten: int) -> None:
    for seed in range(10 * ten, 10 * ten + 10):
        run_link_scenario(seed)


@pytest.mark.parametrize("seed", FOUND_SOMETHING)
def test_seeds_that_found_a_fault_once(seed: int) -> None:
    run_link_scenario(seed)


@pytest.mark.parametrize("ten", range(5))
def test_crashes_and_long_silence_double_nothing_and_the_last_lives_talk(ten: int) -> None:
    for seed in range(10 * ten, 10 * ten + 10):
        run_link_lives_scenario(seed)


def test_fresh_seeds() -> None:
    start = int.from_bytes(os.urandom(4), "big")
    for seed in range(start, start + 4):  # what fails names its seed
        run_link_scenario(seed)
        run_link_lives_scenario(seed)


def test_the_fixed_seeds_meet_every_fault() -> None:
    told: list[str] = []

    def watch(network: SimulatedNetwork) -> None:
        network.note = told.append
        network.watch = lambda data, source, to, why_dropped: told.append(why_dropped)

    for seed in range(20):
        run_link_scenario(seed, watch=watch)
        run_link_lives_scenario(seed, watch=watch)
    everything = "\n".join(told)
    for fault in (
        *(
            "no longer heard by",
            "neither hears",
            "sleeps",
            "clock stands",
            "clock goes on",
            "jumps",
        ),
        *("takes no more than 1300", "1 MB/s", "crashes", "begins life 2", "nor is the other"),
        *("lost", "the queue is full", "the path is cut", "too long for the path"),
    ):
        assert fault in everything, fault
    conditions = [conditions_of(seed) for seed in range(150)]
    for name in ("burst_enter", "duplication", "reordering", "corruption", "truncation"):
        assert any(getattr(each, name) for each in conditions), name


def test_a_protocol_that_talks_to_itself_without_end_is_noticed() -> None:
    network = SimulatedNetwork(1)

    def again() -> None:
        network.at(network.now, again)

    again()
    with pytest.raises(LivelockError, match="only 0"):
        network.run(1.0, events_max=1000)


def test_loss_reordering_and_duplication_of_a_tenth_lose_nothing() -> None:
    tenth = Conditions(loss=0.1, reordering=0.1, duplication=0.1)
    assert run_link_scenario(1, tenth).retransmitted > 0


def test_a_perfect_network_repeats_nothing() -> None:
    for seed in range(3):
        assert run_link_scenario(seed, PERFECT, faults=False).retransmitted == 0


def test_the_same_seed_gives_the_same_run_to_the_last_datagram() -> None:
    assert run_link_scenario(3) == run_link_scenario(3)
    assert run_link_scenario(3).trace != run_link_scenario(4).trace
    assert run_link_lives_scenario(3) == run_link_lives_scenario(3)


def test_the_run_does_not_depend_on_the_process() -> None:
    program = "from edgellama.testing.link_scenario import *; print(run_link_scenario(3).trace)"
    for hash_seed in ("1", "2"):
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        trace = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
        assert trace.strip() == run_link_scenario(3).trace


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
def test_a_large_message_crosses_a_lossy_path(loss: float) -> None:
    network = SimulatedNetwork(11, Conditions(loss=loss))
    here = SimulatedHost(network, Identity("1" * 32, 1), Address("10.0.0.1", 1))
    there = SimulatedHost(network, Identity("2" * 32, 1), Address("10.0.0.2", 1))
    there.handler = RecordingHandler()
    while not (here.endpoint.peers() and there.endpoint.peers()):
        here.act(lambda now: here.endpoint.dial(there.address, now))
        network.run(network.now + 4.0)
    body = random.Random(1).randbytes(4 << 20)
    start = network.now
    here.act(lambda now: here.endpoint.send("2" * 32, body, Priority.BULK, now))
    network.run(start + 60.0, lambda: len(there.handler.events) > 1)
    assert there.handler.events[1:] == [MessageReceived("1" * 32, body)]
    # Virtual time: 4 MiB at 6 MB/s take 0.70 s, and each lost packet's share more.
    assert network.now - start < 0.85 / (1 - loss) + 0.5 * (loss > 0)
    repeated = here.endpoint.total_counters().packets_retransmitted
    assert repeated <= 1.5 * loss / (1 - loss) * (len(body) // 1155)
