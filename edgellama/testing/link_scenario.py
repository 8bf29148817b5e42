"""One seeded scenario of the link: two endpoints talk through chaos, which then heals.

The production endpoints must deliver every message exactly once and byte for byte, over one
connection that never ends, and all of it once the network has healed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.testing.network import (
    Conditions,
    LivelockError,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.values import Address
from edgellama.wire.datagram import HEADER_BYTES, DatagramType

SIZES_BYTES = [0, 1, 100, 1155, 1156, 4096, 8192, 20_000, 60_000, 150_000]
MESSAGES = 24
REDIAL_S = 0.1
CHAOS_S = 3.0
CUT_MAX_S = 1.5
"""Shorter than a connection's patience: nothing may end."""

HEALED_S = 30.0
STEPS_MAX = 200_000


class ScenarioError(AssertionError):
    """The protocol broke a promise; the message names the seed."""


@dataclass(frozen=True)
class Outcome:
    """What a scenario ended with; equal for equal seeds."""

    trace: str
    delivered: int
    retransmitted: int
    finished_at: float


@dataclass
class _Talker(RecordingHandler):
    """Dials until it is connected, and keeps what came."""

    host: SimulatedHost | None = None
    peer: Address | None = None
    redial_at: float | None = None
    received: list[bytes] = field(default_factory=list)

    def handle_event(self, event: Event, now: float) -> None:
        super().handle_event(event, now)
        if isinstance(event, MessageReceived):
            self.received.append(event.message)
        elif isinstance(event, DialFailed):
            self.redial_at = now + REDIAL_S

    def next_timer(self) -> float | None:
        return self.redial_at

    def handle_timer(self, now: float) -> None:
        self.redial_at = None
        assert self.host is not None
        assert self.peer is not None
        if not self.host.endpoint.peers():
            self.host.endpoint.dial(self.peer, now)


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
    )


class _WatchedNetwork(SimulatedNetwork):
    """Also looks for what the two who talk cannot notice: one nonce for two texts."""

    def __init__(self, seed: int, conditions: Conditions) -> None:
        super().__init__(seed, conditions)
        self.talking: set[Address] = set()
        self._sealed: dict[bytes, bytes] = {}  # each header of data with what stood behind it

    def send(self, data: bytes, source: Address, to: Address) -> None:
        header = data[:HEADER_BYTES]
        is_sealed = source in self.talking and header[:1] == bytes([DatagramType.DATA])
        # The receiver's index stands for the key, the packet number is the nonce.
        if is_sealed and self._sealed.setdefault(header, data) != data:
            raise ScenarioError("a nonce was used for two texts under one key")
        super().send(data, source, to)


class _Scenario:
    """Two hosts, what each shall say, and the dice."""

    def __init__(self, seed: int, conditions: Conditions) -> None:
        self.seed = seed
        self.dice = random.Random(f"scenario {seed}")  # noqa: S311
        self.network = _WatchedNetwork(seed, conditions)
        self.talkers = [_Talker(), _Talker()]
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

    def plan(self, *, cuts: bool) -> None:
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
            junk, target = dice.randbytes(dice.randrange(1300)), dice.choice(self.hosts)
            network.at(self.soon(), partial(network.send, junk, stranger, target.address))
        if cuts and dice.random() < 0.5:
            source, to = dice.sample(self.hosts, 2)
            cut_at = self.soon()
            network.at(cut_at, partial(network.cut, source.address, to.address))
            network.at(cut_at + dice.uniform(0.0, CUT_MAX_S), network.heal)

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
            kinds = [type(event) for event in talker.events]
            if Disconnected in kinds or kinds.count(Connected) != 1:
                raise ScenarioError("the hosts did not keep exactly one connection")
            if host.endpoint.unfinished():
                raise ScenarioError("a message that arrived was never acknowledged")


def run_link_scenario(
    seed: int, conditions: Conditions | None = None, *, cuts: bool = True
) -> Outcome:
    """Run a seed's scenario; raises ScenarioError when a promise is broken."""
    scenario = _Scenario(seed, conditions or conditions_of(seed))
    try:
        scenario.connect()
        scenario.plan(cuts=cuts)
        scenario.run(CHAOS_S + CUT_MAX_S)
        scenario.network.set_conditions(Conditions())
        said_all = [
            lambda talker=talker: len(talker.received) >= MESSAGES for talker in scenario.talkers
        ]
        scenario.run(HEALED_S, "not every message arrived after healing", list(said_all))
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
