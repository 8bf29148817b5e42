"""One seeded scenario of a mesh: chaos while it answers, then healing, then nothing may be left.

Whatever happens, tokens are those of a single device. After the network has healed, every answer
whose asker is still there ends, the devices agree, no KV slot is held, and a new answer comes.

Kinds: ``mesh`` has four devices that crash, go, are cut off and stall; ``rough`` has a worse
network besides, sleep, jumping clocks and strangers; ``crowd`` has three to nine devices that also
hand over before they go, rest or sleep for a while, and share the layers by memory or by speed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgellama.errors import EXIT_NO_MESH
from edgellama.testing.cluster import (
    Answer,
    ClusterError,
    ClusterGuest,
    ClusterNode,
    Pace,
    SimulatedCluster,
)
from edgellama.testing.fake_model import VOCABULARY, FakeModel
from edgellama.testing.network import Conditions, LivelockError
from edgellama.values import ASSISTANT, SPLITS, USER, Address, SamplingSettings, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.testing.network import Watcher

CHAOS_S: Final = 6.0
ASKS: Final = 5
FAULTS: Final = 3
HEALED_S: Final = 90.0
SLEEP_MAX_S: Final = 8.0
REST_MAX_S: Final = 8.0
LOOK_S: Final = 0.1  # how often it is seen whether a device that hands over has gone

MESH: Final = "mesh"
ROUGH: Final = "rough"
CROWD: Final = "crowd"
KINDS: Final = (MESH, ROUGH, CROWD)


class ScenarioError(AssertionError):
    """The mesh broke a promise; the message names the seed."""


@dataclass(frozen=True)
class Outcome:
    """What a scenario ended with; equal for equal seeds."""

    trace: str
    finished: int
    failed: int
    epochs: int
    ended_at: float
    delivered: int  # datagrams


def conditions_of(seed: int) -> Conditions:
    """Return the network that a seed stands for."""
    dice = random.Random(f"conditions {seed}")  # noqa: S311 - dice, not secrets
    return Conditions(
        delay_s=dice.choice([1e-4, 0.0015, 0.02]),
        jitter_s=dice.choice([0.0, 0.0005, 0.005]),
        loss=dice.choice([0.0, 0.01, 0.05, 0.1, 0.2]),
        duplication=dice.choice([0.0, 0.05]),
        reordering=dice.choice([0.0, 0.1]),
        corruption=dice.choice([0.0, 0.01]),
    )


def rough_conditions_of(seed: int) -> Conditions:
    """Return the same with bursts, cut datagrams, a slow and a narrow path besides."""
    dice = random.Random(f"rough conditions {seed}")  # noqa: S311 - dice, not secrets
    return replace(
        conditions_of(seed),
        burst_enter=dice.choice([0.0, 0.01]),
        burst_leave=0.3,
        truncation=dice.choice([0.0, 0.01]),
        bytes_per_second=dice.choice([1e6, 20e6]),
        queue_packets=dice.choice([20, 200]),
        datagram_bytes_max=dice.choice([1472, 1400, 1200]),
    )


class _Scenario:
    """Devices of which any two hold the model, and what happens to them."""

    def __init__(self, seed: int, kind: str, watch: Watcher | None) -> None:
        rough, self.is_crowd = kind == ROUGH, kind == CROWD
        self.rough = random.Random(f"rough {seed}") if rough else None  # noqa: S311 - dice
        name = CROWD if self.is_crowd else "scenario"
        dice = self.dice = random.Random(f"{name} {seed}")  # noqa: S311 - dice, not secrets
        pace = Pace(dice.choice([(0.001, 0.004), (0.01, 0.04)]), (0.05, 0.5))
        self.cluster = SimulatedCluster(
            seed,
            rough_conditions_of(seed) if rough else conditions_of(seed),
            FakeModel(layers=dice.choice([1, 5, 12])),
            pace,
        )
        if watch is not None:
            watch(self.cluster.network)
        names = "abcdefghi"[: dice.randint(3, 9)] if self.is_crowd else "abcd"
        self.offers = {name: dice.choice([6, 7, 9, 13]) for name in names}
        self.split = dice.choice(SPLITS) if self.is_crowd else ""
        self.owner = dice.choice(list(self.offers))
        self.guests: list[ClusterGuest] = []
        self.leaving: set[str] = set()  # devices that hand over

    def start(self, name: str) -> None:
        if name in self.cluster.nodes and self.cluster.nodes[name].is_up:
            return  # it was to come back from two things
        model = self.cluster.model if name == self.owner else None
        self.cluster.start(name, self.offers[name], model=model, split=self.split)

    def begin(self) -> None:
        late = self.dice.choice([name for name in self.offers if name != self.owner])
        for name in self.offers:
            if name != late:
                self.start(name)
        self.cluster.until_ready(seconds=HEALED_S)
        at = self.cluster.network.at
        at(self.soon(), lambda: self.start(late))
        for number in range(ASKS):
            at(self.soon(), lambda number=number: self.ask(number))  # type: ignore[misc]
        for _ in range(len(self.offers) if self.is_crowd else FAULTS):
            at(self.soon(), self.dice.choice(self.faults()))
        for _ in range(FAULTS if self.rough else 0):
            at(self.soon(), self.sleep_or_jump)
        for _ in range(FAULTS if self.rough else 0):
            at(self.soon(), self.stranger)

    def soon(self) -> float:
        return self.cluster.network.now + self.dice.uniform(0.0, CHAOS_S)

    def ask(self, number: int) -> None:
        node = self.dice.choice(self.cluster.up())
        sampling = SamplingSettings(
            temperature=self.dice.choice([0.0, 0.7, 1.5]),
            top_k=self.dice.choice([0, 8]),
            repeat_penalty=self.dice.choice([1.0, 1.3]),
            repeat_window=self.dice.choice([4, 64]),
            seed=number,
        )
        prompt = "so it goes " * self.dice.choice([0, 1, 12])
        # Two exchanges fit the context, a hundred do not.
        said = (Turn(USER, "how goes it"), Turn(ASSISTANT, "so")) * self.dice.choice([0, 2, 100])
        tokens_max = self.dice.choice([1, 8, 40])
        ask = self.cluster.new_ask(prompt, tokens_max, sampling, history=said)
        if self.dice.random() < 0.2:
            length = self.dice.choice([3, 40, 200])
            text = tuple(self.dice.randrange(VOCABULARY) for _ in range(length))
            ask = replace(ask, tokens=text, tokens_max=0, scored_from=length // 2)
        asker: ClusterNode | ClusterGuest = node
        if self.dice.random() < 0.5:
            asker = self.cluster.guest(node)
            self.guests.append(asker)
        answer = self.cluster.ask(asker, ask)
        if self.dice.random() < 0.2:
            self.cluster.network.at(self.soon(), lambda: self.cancel(asker, answer))

    def cancel(self, asker: ClusterNode | ClusterGuest, answer: Answer) -> None:
        if not answer.ended:
            asker.cancel(answer)

    def faults(self) -> list[Callable[[], None]]:
        faults = [self.crash, self.go, self.part, self.cut, self.guest_goes, self.stall]
        crowd = [self.hand_over, self.hand_over, self.rest, self.sleep]
        return faults + crowd * self.is_crowd

    def victim(self) -> ClusterNode | None:
        """Return a device that others can do without for a while."""
        up = self.cluster.up()
        return self.dice.choice(up) if len(up) > 2 else None

    def crash(self) -> None:
        node = self.victim()
        if node is not None:
            self._note(f"{node.name} crashes")
            node.kill()
            self.again(node.name)

    def go(self) -> None:
        node = self.victim()
        if node is not None:
            self._note(f"{node.name} leaves")
            node.leave()
            self.again(node.name)

    def again(self, name: str) -> None:
        back_at = self.cluster.network.now + self.dice.choice([0.0, 0.1, 2.0, 8.0])
        self.cluster.network.at(back_at, lambda: self.start(name))

    def hand_over(self) -> None:
        """Let a device end as by Ctrl-C, and come back."""
        node = self.victim()
        if node is not None:
            self._note(f"{node.name} hands over")
            node.hand_over()
            self.leaving.add(node.name)
            self._see_whether_gone(node)

    def _see_whether_gone(self, node: ClusterNode) -> None:
        if node.is_up:
            network = self.cluster.network
            network.at(network.now + LOOK_S, lambda: self._see_whether_gone(node))
        else:
            self.leaving.discard(node.name)
            self.again(node.name)

    def rest(self) -> None:
        """Let a device want no layers for a while, as with a low battery."""
        node = self.victim()
        if node is not None:
            self._note(f"{node.name} rests")
            node.rest(resting=True)
            awake_at = self.cluster.network.now + self.dice.uniform(0.0, REST_MAX_S)
            self.cluster.network.at(awake_at, lambda: self._wakes(node))

    def _wakes(self, node: ClusterNode) -> None:
        if node.is_up:
            node.rest(resting=False)

    def part(self) -> None:
        up = self.cluster.up()
        half = self.dice.sample(up, len(up) // 2)
        self._note(f"{', '.join(node.name for node in half)} and the others part")
        self.cluster.partition(half, [node for node in up if node not in half])

    def cut(self) -> None:
        source, to = self.dice.sample(self.cluster.up(), 2)
        self._note(f"{source.name} is no longer heard by {to.name}")
        self.cluster.network.cut(source.address, to.address)

    def guest_goes(self) -> None:
        if self.guests:
            self.guests.pop().vanish()

    def stall(self) -> None:
        """Let a device compute nothing for a while, as a phone does that sleeps."""
        self.dice.choice(self.cluster.up()).stall(self.dice.uniform(0.5, 3.0))

    def sleep(self) -> None:
        """Suspend a device for a while."""
        node = self.dice.choice(self.cluster.up())
        self._sleeps(node, self.dice.uniform(0.0, SLEEP_MAX_S), self.dice)

    def _sleeps(self, node: ClusterNode, seconds: float, dice: random.Random) -> None:
        self._note(f"{node.name} sleeps for {seconds:.3f} s")
        node.host.sleep(seconds, clock_stops=dice.random() < 0.5)

    def sleep_or_jump(self) -> None:
        """Suspend a device for a while, or let its clock jump as if it had been."""
        assert self.rough is not None
        node, seconds = self.rough.choice(self.cluster.up()), self.rough.uniform(0.0, SLEEP_MAX_S)
        if self.rough.random() < 0.5:
            self._sleeps(node, seconds, self.rough)
        else:
            self._note(f"the clock of {node.name} jumps by {seconds:.3f} s")
            node.host.jump(seconds)

    def stranger(self) -> None:
        """Let bytes come from somebody who does not belong here."""
        assert self.rough is not None
        node = self.rough.choice(self.cluster.up())
        junk = self.rough.randbytes(self.rough.randrange(1500))
        self.cluster.network.send(junk, Address("10.0.9.9", 1), node.address)

    def _note(self, text: str) -> None:
        self.cluster.network.note(text)

    def _are_all_back(self) -> bool:
        return not self.leaving and len(self.cluster.up()) == len(self.offers)

    def heal(self) -> None:
        cluster = self.cluster
        cluster.run(CHAOS_S + 8.5)  # the last device is back
        self._note("all is well again")
        cluster.heal()
        cluster.until(self._are_all_back, "all back", HEALED_S)
        cluster.until_ready(seconds=HEALED_S)
        cluster.until_answered(*cluster.answers, seconds=HEALED_S)
        last = [cluster.ask(node) for node in cluster.up()]
        cluster.until_answered(*last, seconds=HEALED_S)
        cluster.until_idle(HEALED_S)
        if any(answer.finished is None for answer in last):
            raise ClusterError("a healed mesh did not answer")
        for answer in cluster.answers:
            if answer.failure and answer.failure.exit_code != EXIT_NO_MESH:
                raise ClusterError(answer.failure.text)


def run_cluster_scenario(seed: int, kind: str = MESH, watch: Watcher | None = None) -> Outcome:
    """Run a seed's scenario; raises ScenarioError when a promise is broken."""
    scenario = _Scenario(seed, kind, watch)
    try:
        scenario.begin()
        scenario.heal()
    except (AssertionError, LivelockError, KeyError, ValueError) as failure:
        raise ScenarioError(f"seed {seed}: {failure!r}") from failure
    cluster = scenario.cluster
    return Outcome(
        cluster.network.trace,
        sum(answer.finished is not None for answer in cluster.answers),
        sum(answer.failure is not None for answer in cluster.answers),
        max(node.core.planning.epoch_seen for node in cluster.up()),
        cluster.network.now,
        cluster.network.delivered,
    )
