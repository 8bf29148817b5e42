"""One seeded scenario of the link in which connections end: crashes, new lives, long silence.

A message may be lost with its connection, so less is promised than in ``link_scenario``: none comes
twice, none is anything but what was said, none of a life comes after a later life has connected.
After healing both are connected in their last lives, and from then on every message arrives once.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from edgellama.link.endpoint import Connected, Identity, MessageReceived, Priority
from edgellama.testing.link_scenario import Outcome, conditions_of
from edgellama.testing.link_talkers import ScenarioError, Talker, WatchedNetwork
from edgellama.testing.network import Conditions, LivelockError, SimulatedHost
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.testing.network import Watcher

SIZES_BYTES = [0, 1, 100, 4096, 20_000]
SAY_EVERY_S = 0.15
CHAOS_S = 30.0
FAULTS = 3
FAULT_MAX_S = 12.0
"""Longer than any patience: connections end, on one side or on both."""

HEALED_S = 40.0
LAST_MESSAGES = 8
STEPS_MAX = 400_000


class _Scenario:
    """Two hosts whose lives follow each other, and the dice."""

    def __init__(self, seed: int, watch: Watcher | None) -> None:
        self.seed = seed
        self.dice = random.Random(f"lives {seed}")  # noqa: S311 - dice, not secrets
        self.network = WatchedNetwork(seed, conditions_of(seed))
        self.hosts: list[SimulatedHost] = []
        self.talkers: list[Talker] = []
        self.past: list[Talker] = []  # of lives that are over
        self.retransmitted = 0  # in lives that are over
        self.lives = [0, 0]
        self.number = 0
        self.said: set[bytes] = set()
        if watch is not None:
            watch(self.network)
        for side in range(2):
            self.hosts.append(self._begin_life(side))

    def _begin_life(self, side: int) -> SimulatedHost:
        self.lives[side] += 1
        identity = Identity(f"{side + 1:032x}", self.lives[side])
        host = SimulatedHost(self.network, identity, Address(f"10.0.0.{side + 1}", 7711), b"mesh")
        talker = Talker(redials=True, host=host, peer=Address(f"10.0.0.{2 - side}", 7711))
        talker.redial_at = self.network.now
        host.handler = talker
        self.network.talking.add(host.address)
        self.talkers[side : side + 1] = [talker]
        host.act(lambda _: None)  # from here on its timers run
        return host

    def chaos(self) -> None:
        network, end = self.network, self.network.now + CHAOS_S
        at = network.now
        while at < end:
            at += self.dice.uniform(0.0, 2 * SAY_EVERY_S)
            network.at(at, partial(self.say, self.dice.randrange(2)))
        for _ in range(FAULTS):
            fault = self.dice.choice([self.crash, self.crash, self.cut, self.sleep, self.jump])
            network.at(network.now + self.dice.uniform(0.0, CHAOS_S), fault)
        network.run(end, events_max=STEPS_MAX)

    def say(self, side: int) -> None:
        """Let a host say something, if it has somebody to say it to."""
        host = self.hosts[side]
        peer = f"{2 - side:032x}"
        self.number += 1
        name = f"{side} {self.lives[side]} {self.number} ".encode()
        message = name + self.dice.randbytes(self.dice.choice(SIZES_BYTES))
        priority = Priority(self.dice.randrange(4))

        def send(now: float) -> None:
            if peer in host.endpoint.peers():
                self.said.add(message)
                host.endpoint.send(peer, message, priority, now)

        host.act(send)

    # Faults

    def crash(self) -> None:
        side = self.dice.randrange(2)
        self.network.note(f"10.0.0.{side + 1} crashes")
        self.hosts[side].crash()
        away_s = self.dice.choice([0.0, 0.1, 2.0, FAULT_MAX_S])
        self.network.at(self.network.now + away_s, partial(self._begin_again, side))

    def _begin_again(self, side: int) -> None:
        self.network.note(f"10.0.0.{side + 1} begins life {self.lives[side] + 1}")
        self.hosts[side].crash()  # when two crashes met
        self.past.append(self.talkers[side])
        counters = self.hosts[side].endpoint.total_counters()
        self.retransmitted += counters.packets_retransmitted
        self.hosts[side] = self._begin_life(side)

    def cut(self) -> None:
        pair = self.dice.sample([host.address for host in self.hosts], 2)
        both = self.dice.random() < 0.5
        self.network.note(f"{pair[0].host} is no longer heard" + ", nor is the other" * both)
        self.network.cut(*pair)
        if both:
            self.network.cut(*pair[::-1])
        away_s = self.dice.uniform(0.0, FAULT_MAX_S)
        self.network.at(self.network.now + away_s, self.network.heal)

    def sleep(self) -> None:
        host, seconds = self.dice.choice(self.hosts), self.dice.uniform(0.0, FAULT_MAX_S)
        self.network.note(f"{host.address.host} sleeps for {seconds:.3f} s")
        host.sleep(seconds, clock_stops=self.dice.random() < 0.5)

    def jump(self) -> None:
        host, seconds = self.dice.choice(self.hosts), self.dice.uniform(0.0, FAULT_MAX_S)
        self.network.note(f"the clock of {host.address.host} jumps by {seconds:.3f} s")
        host.jump(seconds)

    # Healing

    def heal(self) -> None:
        network = self.network
        network.run(network.now + FAULT_MAX_S, events_max=STEPS_MAX)  # the last one is back
        network.note("all is well again")
        network.heal()
        network.set_conditions(Conditions())
        network.run(network.now + HEALED_S, self.stands, STEPS_MAX)
        network.run(network.now + 2.0, events_max=STEPS_MAX)  # and nothing old ends it
        network.run(network.now + HEALED_S, self.stands, STEPS_MAX)
        if not self.stands():
            raise ScenarioError("the last lives did not connect after healing")
        before = set(self.said)
        for _ in range(LAST_MESSAGES):
            for side in range(2):
                self.say(side)
        last = self.said - before
        if not network.run(network.now + HEALED_S, lambda: last <= self.heard(), STEPS_MAX):
            raise ScenarioError("not every message arrived after healing")
        network.run(network.now + 1.0, events_max=STEPS_MAX)

    def stands(self) -> bool:
        """Return whether both are connected, each with the other's last life, and idle."""
        for side, host in enumerate(self.hosts):
            peers = host.endpoint.peers()
            peer = peers.get(f"{2 - side:032x}")
            if peer is None or peer.identity.incarnation != self.lives[1 - side]:
                return False
        return not any(host.endpoint.unfinished() for host in self.hosts)

    def heard(self) -> set[bytes]:
        return {message for talker in self.talkers for message in talker.received}

    def check(self) -> None:
        talkers = [*self.past, *self.talkers]
        heard = [message for talker in talkers for message in talker.received]
        if not set(heard) <= self.said:
            raise ScenarioError("something came that nobody said")
        for talker in talkers:
            if len(set(talker.received)) != len(talker.received):
                raise ScenarioError("a message came twice")
            newest = 0
            for event in talker.events:
                if isinstance(event, Connected):
                    newest = max(newest, event.identity.incarnation)
                elif isinstance(event, MessageReceived):
                    _, life, _ = event.message.split(b" ", 3)[:3]
                    if int(life) < newest:
                        raise ScenarioError("a message of a life that is over came after the next")
        for host in self.hosts:
            if host.endpoint.unfinished():
                raise ScenarioError("a message that arrived was never acknowledged")


def run_link_lives_scenario(seed: int, *, watch: Watcher | None = None) -> Outcome:
    """Run a seed's scenario; raises ScenarioError when a promise is broken."""
    scenario = _Scenario(seed, watch)
    steps: list[Callable[[], None]] = [scenario.chaos, scenario.heal, scenario.check]
    try:
        for step in steps:
            step()
    except (AssertionError, LivelockError, KeyError) as failure:
        raise ScenarioError(f"seed {seed}: {failure!r}") from failure
    counters = [host.endpoint.total_counters() for host in scenario.hosts]
    again = scenario.retransmitted + sum(each.packets_retransmitted for each in counters)
    network = scenario.network
    return Outcome(network.trace, network.delivered, again, network.now)
