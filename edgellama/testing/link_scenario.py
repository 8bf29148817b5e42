"""One seeded scenario of the link: two endpoints talk through chaos, which then heals.

The production endpoints must deliver every message exactly once and byte for byte, over one
connection that never ends, and all of it once the network has healed. No fault lasts longer than
a connection's patience; ``link_lives_scenario`` has those that do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from edgellama.link.endpoint import Connected, Disconnected, Identity, Priority
from edgellama.testing.link_talkers import ScenarioError, Talker, WatchedNetwork
from edgellama.testing.network import Conditions, LivelockError, SimulatedHost
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.testing.network import Watcher

__all__ = ["Outcome", "ScenarioError", "conditions_of", "run_link_scenario"]

SIZES_BYTES = [0, 1, 100, 1155, 1156, 4096, 8192, 20_000, 60_000, 150_000]
MESSAGES = 24
CHAOS_S = 3.0
FAULTS_MAX = 2
FAULT_MAX_S = 0.7
"""All faults together are shorter than a connection's patience: nothing may end."""

HEALED_S = 30.0
STEPS_MAX = 200_000


@dataclass(frozen=True)
class Outcome:
    """What a scenario ended with; equal for equal seeds."""

    trace: str
    delivered: int
    retransmitted: int
    finished_at: float


def conditions_of(seed: int) -> Conditions:
    """Return the network that a seed stands for."""
    dice = random.Random(f"conditions {seed}")  # noqa: S311 - dice, not secrets
    return Conditions(
        delay_s=dice.choice([1e-4, 0.0015, 0.02]),
        jitter_s=dice.choice([0.0, 0.0005, 0.005]),
        loss=dice.choice([0.0, 0.01, 0.05, 0.1, 0.2]),
        burst_enter=dice.choice([0.0, 0.0, 0.01]),
        burst_leave=0.3,
        duplication=dice.choice([0.0, 0.05]),
        reordering=dice.choice([0.0, 0.1]),
        corruption=dice.choice([0.0, 0.02]),
        truncation=dice.choice([0.0, 0.02]),
        bytes_per_second=dice.choice([2e6, 20e6]),
        queue_packets=dice.choice([20, 200]),
        datagram_bytes_max=dice.choice([1472, 1472, 1400, 1200]),
    )


class _Scenario:
    """Two hosts, what each shall say, and the dice."""

    def __init__(self, seed: int, conditions: Conditions, watch: Watcher | None) -> None:
        self.seed = seed
        self.conditions = conditions
        self.dice = random.Random(f"scenario {seed}")  # noqa: S311
        self.network = WatchedNetwork(seed, conditions)
        if watch is not None:
            watch(self.network)
        self.talkers = [Talker(), Talker()]
        self.hosts = []
        for number, talker in enumerate(self.talkers):
            identity = Identity(f"{number + 1:032x}", 1)
            host = SimulatedHost(
                self.network, identity, Address(f"10.0.0.{number + 1}", 7711), b"mesh"
            )
            talker.host, talker.peer = host, Address(f"10.0.0.{2 - number}", 7711)
            host.handler = talker
            self.hosts.append(host)
            self.network.talking.add(host.address)
        self.said: list[list[bytes]] = [[], []]

    def connect(self) -> None:
        both = self.dice.random() < 0.5
        for number in range(1 + both):
            peer = self.hosts[1 - number].address
            self.hosts[number].act(partial(self.hosts[number].endpoint.dial, peer))
        self.run(60.0, "never connected", all_true=[host.endpoint.peers for host in self.hosts])

    def run(self, seconds: float, failure: str = "", all_true: list[object] | None = None) -> None:
        """Let time pass; with conditions, until all are true or else raise."""
        conditions = [condition for condition in all_true or [] if callable(condition)]

        def done() -> bool:
            return bool(conditions) and all(condition() for condition in conditions)

        finished = self.network.run(self.network.now + seconds, done, STEPS_MAX)
        if conditions and not finished:
            raise ScenarioError(failure)

    def soon(self) -> float:
        return self.network.now + self.dice.uniform(0.0, CHAOS_S)

    def say(self, sender: int, message: bytes, priority: Priority) -> None:
        node = self.hosts[1 - sender].endpoint.identity.node
        endpoint = self.hosts[sender].endpoint
        self.hosts[sender].act(lambda now: endpoint.send(node, message, priority, now))

    def renew(self, sender: int) -> None:
        node = self.hosts[1 - sender].endpoint.identity.node
        endpoint = self.hosts[sender].endpoint
        self.hosts[sender].act(lambda now: endpoint.renew_keys(node, now))

    def plan(self, *, faults: bool) -> None:
        dice, network = self.dice, self.network
        for sender in range(2):
            for number in range(MESSAGES):
                name = f"{self.seed} {sender} {number} ".encode()
                message = name + dice.randbytes(dice.choice(SIZES_BYTES))
                self.said[sender].append(message)
                priority = Priority(dice.randrange(4))
                network.at(self.soon(), partial(self.say, sender, message, priority))
        for sender in range(2):
            for _ in range(dice.choice([0, 1, 3])):
                network.at(self.soon(), partial(self.renew, sender))
        stranger = Address("10.0.0.9", 1)
        for _ in range(10):
            junk, target = dice.randbytes(dice.randrange(1500)), dice.choice(self.hosts)
            network.at(self.soon(), partial(network.send, junk, stranger, target.address))
        if faults:
            for _ in range(dice.randrange(FAULTS_MAX + 1)):
                network.at(self.soon(), dice.choice(self.faults()))

    # Faults

    def faults(self) -> list[Callable[[], None]]:
        return [self.cut_one_way, self.cut_both_ways, self.sleep, self.jump, self.narrow, self.jam]

    def _note(self, text: str) -> None:
        self.network.note(text)

    def cut_one_way(self) -> None:
        source, to = self.dice.sample(self.hosts, 2)
        self._note(f"{source.address.host} is no longer heard by {to.address.host}")
        self.network.cut(source.address, to.address)
        self._later(self.network.heal)

    def cut_both_ways(self) -> None:
        here, there = self.hosts
        self._note("neither hears the other")
        self.network.cut(here.address, there.address)
        self.network.cut(there.address, here.address)
        self._later(self.network.heal)

    def sleep(self) -> None:
        host, clock_stops = self.dice.choice(self.hosts), self.dice.random() < 0.5
        seconds = self.dice.uniform(0.0, FAULT_MAX_S)
        clock = "stands" if clock_stops else "goes on"
        self._note(f"{host.address.host} sleeps for {seconds:.3f} s, its clock {clock}")
        host.sleep(seconds, clock_stops=clock_stops)

    def jump(self) -> None:
        host, seconds = self.dice.choice(self.hosts), self.dice.uniform(0.0, FAULT_MAX_S)
        self._note(f"the clock of {host.address.host} jumps by {seconds:.3f} s")
        host.jump(seconds)

    def narrow(self) -> None:
        """Let the path become a black hole for longer datagrams, for good."""
        longest = self.dice.choice([1200, 1300, 1464])
        self._note(f"the path takes no more than {longest} bytes")
        self._change(datagram_bytes_max=longest)

    def jam(self) -> None:
        """Let the path become slow and its queue short, for good."""
        self._note("the path takes no more than 1 MB/s")
        self._change(bytes_per_second=1e6, queue_packets=10)

    def _change(self, **changes: float) -> None:
        self.conditions = replace(self.conditions, **changes)  # type: ignore[arg-type]
        self.network.set_conditions(self.conditions)

    def _later(self, call: Callable[[], None]) -> None:
        self.network.at(self.network.now + self.dice.uniform(0.0, FAULT_MAX_S), call)

    # Healing

    def heal(self) -> None:
        self._note("all is well again")
        narrow = Conditions(datagram_bytes_max=self.conditions.datagram_bytes_max)
        self.network.set_conditions(narrow)
        said_all = [
            lambda talker=talker: len(talker.received) >= MESSAGES for talker in self.talkers
        ]
        self.run(HEALED_S, "not every message arrived after healing", list(said_all))

    def check(self) -> None:
        for sender, receiver in ((0, 1), (1, 0)):
            if sorted(self.talkers[receiver].received) != sorted(self.said[sender]):
                raise ScenarioError("messages did not arrive exactly once, byte for byte")
            sent, taken = (
                self.hosts[each].endpoint.total_counters() for each in (sender, receiver)
            )
            if taken.packets_received > sent.packets_sent:
                raise ScenarioError("a packet was taken twice")
        for host, talker in zip(self.hosts, self.talkers, strict=True):
            if talker.count(Disconnected) or talker.count(Connected) != 1:
                raise ScenarioError("the hosts did not keep exactly one connection")
            if host.endpoint.unfinished():
                raise ScenarioError("a message that arrived was never acknowledged")


def run_link_scenario(
    seed: int,
    conditions: Conditions | None = None,
    *,
    faults: bool = True,
    watch: Watcher | None = None,
) -> Outcome:
    """Run a seed's scenario; raises ScenarioError when a promise is broken.

    ``watch`` is called with the network and the hosts before anything happens.
    """
    scenario = _Scenario(seed, conditions or conditions_of(seed), watch)
    try:
        scenario.connect()
        scenario.plan(faults=faults)
        scenario.run(CHAOS_S + 2 * FAULT_MAX_S)
        scenario.heal()
        finished_at = scenario.network.now
        scenario.run(1.0)
        scenario.check()
    except (AssertionError, LivelockError, KeyError) as failure:
        raise ScenarioError(f"seed {seed}: {failure!r}") from failure
    counters = [host.endpoint.total_counters() for host in scenario.hosts]
    return Outcome(
        scenario.network.trace,
        scenario.network.delivered,
        sum(counter.packets_retransmitted for counter in counters),
        finished_at,
    )
