"""How a connection makes loss good, and how long its datagrams are, on a simulated network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgellama.link.endpoint import Connected, Disconnected, Identity, MessageReceived, Priority
from edgellama.link.redundancy import Redundancy
from edgellama.testing.network import (
    Conditions,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.values import Address
from edgellama.wire.datagram import DATAGRAM_BYTES_BASE, DATAGRAM_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

A, B = "a" * 32, "b" * 32
HERE, THERE = Address("10.0.0.1", 7711), Address("10.0.0.2", 7711)
CLEAN = Conditions(jitter_s=0.0)


class Wire(SimulatedNetwork):
    """Loses the data that it is told to, and notes the length of everything."""

    def __init__(self, seed: int, conditions: Conditions) -> None:
        super().__init__(seed, conditions)
        self.lengths: list[int] = []
        self.dropped: set[int] = set()  # by order since ``lengths`` was last cleared
        self.lose: Callable[[int, bytes], bool] = lambda at, data: at in self.dropped

    def send(self, data: bytes, source: Address, to: Address) -> None:
        if source == HERE:
            self.lengths.append(len(data))
            if self.lose(len(self.lengths) - 1, data):
                return
        super().send(data, source, to)


def connected(conditions: Conditions = CLEAN) -> tuple[Wire, SimulatedHost, SimulatedHost]:
    network = Wire(3, conditions)
    here = SimulatedHost(network, Identity(A, 1), HERE)
    there = SimulatedHost(network, Identity(B, 1), THERE)
    here.handler, there.handler = RecordingHandler(), RecordingHandler()
    here.act(lambda now: here.endpoint.dial(THERE, now))
    network.run(2.0)
    assert isinstance(there.handler.events[0], Connected)
    network.lengths.clear()
    return network, here, there


def say(host: SimulatedHost, node: str, message: bytes, priority: Priority) -> None:
    host.act(lambda now: host.endpoint.send(node, message, priority, now))


def messages(host: SimulatedHost) -> list[bytes]:
    return [event.message for event in host.handler.events if isinstance(event, MessageReceived)]


def assume(host: SimulatedHost, redundancy: Redundancy) -> None:
    """Let a host have seen so much loss that it chooses this."""
    losses = host.endpoint._connections[B].sending.losses
    lost = {Redundancy.NONE: 0, Redundancy.PARITY: 10, Redundancy.DUPLICATE: 60}[redundancy]
    losses.on_arrived(600)
    for number in range(lost):
        losses.on_lost(2 * number)
    assert losses.redundancy is redundancy


MESSAGE = bytes(range(256)) * 16  # three fragments at the longest datagrams


def test_without_loss_nothing_goes_along() -> None:
    network, here, _ = connected()
    assume(here, Redundancy.NONE)
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(network.now + 0.2)
    assert len(network.lengths) == 3


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_parity_makes_a_lost_packet_good_before_its_loss_is_known(lost: int) -> None:
    network, here, there = connected()
    assume(here, Redundancy.PARITY)
    network.dropped = {lost}
    start = network.now
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(start + 0.003)  # before any reply is back: one way, and four packets' time
    assert messages(there) == [MESSAGE]
    network.run(start + 0.5)
    assert here.endpoint.unfinished() == 0
    # The gap may be told before the parity has come: then one packet goes out in vain.
    assert len(network.lengths) == 4 + (lost == 0)
    assert here.endpoint.counters(B).packets_retransmitted == (lost == 0)


def test_two_lost_packets_are_more_than_parity_can_do_but_not_lost() -> None:
    network, here, there = connected()
    assume(here, Redundancy.PARITY)
    network.dropped = {0, 2}
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(network.now + 0.5)
    assert messages(there) == [MESSAGE]
    assert here.endpoint.counters(B).packets_retransmitted > 0


@pytest.mark.parametrize("lost", [{0}, {0, 1}, {0, 1, 2}])
def test_a_duplicate_follows_a_little_later_and_makes_a_burst_good(lost: set[int]) -> None:
    network, here, there = connected()
    assume(here, Redundancy.DUPLICATE)
    network.dropped = lost
    start = network.now
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(start + 0.0035)
    assert messages(there) == [MESSAGE]
    network.run(start + 0.5)
    assert len(network.lengths) <= 6 + 3


def test_a_duplicate_is_not_sent_of_what_was_acknowledged_in_the_meantime() -> None:
    network, here, there = connected(Conditions(delay_s=0.0002, jitter_s=0.0, bytes_per_second=1e8))
    assume(here, Redundancy.DUPLICATE)
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(network.now + 0.5)
    assert messages(there) == [MESSAGE]
    assert len(network.lengths) == 3


def test_a_duplicate_is_not_itself_duplicated() -> None:
    network, here, _ = connected(Conditions(delay_s=0.05, jitter_s=0.0))
    assume(here, Redundancy.DUPLICATE)
    start = network.now
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(start + 0.09)
    assert len(network.lengths) == 6


@pytest.mark.parametrize("redundancy", [Redundancy.PARITY, Redundancy.DUPLICATE])
@pytest.mark.parametrize(
    ("priority", "size"),
    [(Priority.PREFILL, 4096), (Priority.BULK, 4096), (Priority.DECODE, 20_000)],
)
def test_prefill_bulk_and_long_messages_never_take_redundancy(
    priority: Priority, size: int, redundancy: Redundancy
) -> None:
    network, here, there = connected()
    assume(here, redundancy)
    say(here, B, bytes(size), priority)
    network.run(network.now + 0.5)
    assert messages(there) == [bytes(size)]
    assert len(network.lengths) == -(-size // 1427)


def test_a_timeout_repeats_all_of_a_small_message() -> None:
    network, here, there = connected()
    network.dropped = {0, 1, 2}
    start = network.now
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(start + 0.015)
    assert messages(there) == [MESSAGE]
    assert len(network.lengths) == 6, "in one go"


def test_a_lost_tail_is_looked_for_without_waiting_for_a_delayed_acknowledgement() -> None:
    network, here, there = connected()
    for _ in range(20):  # the round trip is known well
        say(here, B, MESSAGE, Priority.DECODE)
        network.run(network.now + 0.05)
    network.lengths.clear()
    network.dropped = {2}
    start = network.now
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(start + 0.02)
    assert messages(there)[-1] == MESSAGE
    recovery = here.endpoint._connections[B].sending.recovery
    assert recovery.probes <= 1
    assert recovery.rtt.probe_timeout(0.0) < 0.006
    assert len(messages(there)) == 21


def test_loss_that_is_seen_turns_repair_on_and_its_end_off_again() -> None:
    network, here, _ = connected()
    losses = here.endpoint._connections[B].sending.losses
    dice = network.entropy("loss")

    def talk(count: int) -> None:
        for _ in range(count):
            say(here, B, MESSAGE, Priority.DECODE)
            network.run(network.now + 0.03)

    talk(100)
    assert losses.redundancy is Redundancy.NONE
    network.lose = lambda at, data: dice(1)[0] < 4  # 1.6 %
    talk(300)
    assert losses.redundancy is Redundancy.PARITY
    network.lose = lambda at, data: dice(1)[0] < 26  # 10 %
    talk(200)
    assert losses.redundancy is Redundancy.DUPLICATE
    network.lose = lambda at, data: False
    talk(2000)
    assert losses.redundancy is Redundancy.NONE


def test_datagrams_become_as_long_as_the_path_takes() -> None:
    network = Wire(3, CLEAN)
    here = SimulatedHost(network, Identity(A, 1), HERE)
    there = SimulatedHost(network, Identity(B, 1), THERE)
    there.handler = RecordingHandler()
    here.act(lambda now: here.endpoint.dial(THERE, now))
    network.run(0.5)
    assert network.lengths.count(DATAGRAM_BYTES_MAX) == 1, "the probe"
    assert [length for length in network.lengths if length > 100] == [
        DATAGRAM_BYTES_BASE,
        DATAGRAM_BYTES_MAX,
    ]
    say(here, B, bytes(100_000), Priority.BULK)
    network.run(5.0)
    assert messages(there) == [bytes(100_000)]
    assert sum(length > 1450 for length in network.lengths) == 71


@pytest.mark.parametrize("takes", [1200, 1252, 1300, 1464])
def test_nothing_longer_than_the_path_takes_is_sent_but_probes(takes: int) -> None:
    narrow = Conditions(jitter_s=0.0, datagram_bytes_max=takes)
    network, here, there = connected(narrow)
    say(here, B, bytes(100_000), Priority.BULK)
    network.run(network.now + 30.0)
    assert messages(there) == [bytes(100_000)]
    assert max(network.lengths) <= takes
    assert here.endpoint.counters(B).packets_retransmitted == 0


@pytest.mark.parametrize("priority", [Priority.DECODE, Priority.PREFILL])
def test_a_path_that_becomes_a_black_hole_for_long_datagrams_loses_no_message(
    priority: Priority,
) -> None:
    network, here, there = connected()
    say(here, B, bytes(300_000), Priority.BULK)
    say(here, B, MESSAGE, priority)
    network.run(network.now + 0.01)
    narrow = Conditions(jitter_s=0.0, datagram_bytes_max=1300)
    network.set_conditions(narrow)
    say(here, B, MESSAGE[::-1], priority)
    network.run(network.now + 10.0)
    assert sorted(messages(there)) == sorted([bytes(300_000), MESSAGE, MESSAGE[::-1]])
    for host in (here, there):
        assert not any(isinstance(event, Disconnected) for event in host.handler.events)
    network.lengths.clear()
    say(here, B, bytes(100_000), Priority.BULK)
    network.run(network.now + 10.0)
    assert 1200 < max(network.lengths) <= 1300, "what it does take was found"


def test_a_black_hole_that_only_tokens_meet_is_found_within_a_few_timeouts() -> None:
    network, here, there = connected()
    for _ in range(10):
        say(here, B, MESSAGE, Priority.DECODE)
        network.run(network.now + 0.05)
    network.set_conditions(Conditions(jitter_s=0.0, datagram_bytes_max=1300))
    start = network.now
    say(here, B, MESSAGE, Priority.DECODE)
    network.run(start + 0.1)
    assert len(messages(there)) == 11
