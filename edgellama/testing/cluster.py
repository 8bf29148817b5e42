"""A mesh of production nodes on a simulated network, computing hashes in virtual time.

Every node is a MeshNode over an Endpoint; what the mesh wants done is carried out as
``edgellama.node.member`` does, with seeded delays for computing and loading. One seed gives one
run, to the last datagram.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.link.links import UDP
from edgellama.testing.cluster_asking import Answer, ClusterError, ClusterGuest
from edgellama.testing.cluster_node import SESSIONS_MAX, ClusterNode
from edgellama.testing.fake_model import (
    ExpectedAnswer,
    FakeModel,
    expected_answer,
    expected_nlls,
    ram_bytes,
)
from edgellama.testing.network import Conditions, SimulatedNetwork
from edgellama.testing.streams import Pipes
from edgellama.values import Address, NodeId, SamplingSettings, Turn
from edgellama.wire.messages import ALIVE, Ask, MemberRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Answer",
    "ClusterError",
    "ClusterGuest",
    "ClusterNode",
    "Pace",
    "SimulatedCluster",
]

EVENTS_MAX: Final = 400_000
"""In one wait: more means that the mesh talks to itself without end."""

SEEK_S: Final = 5.0
"""How often a node that is alone is found again, as announcements on a network do."""


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds: from the first to the second, by chance."""

    compute_s: tuple[float, float] = (0.001, 0.004)
    load_s: tuple[float, float] = (0.05, 0.4)


class SimulatedCluster:
    """Devices, guests, the network between them and the dice."""

    def __init__(
        self,
        seed: int,
        conditions: Conditions | None = None,
        model: FakeModel | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.dice = random.Random(f"cluster {seed}")  # noqa: S311 - dice, not secrets
        self.network = SimulatedNetwork(seed, conditions)
        self.pipes = Pipes(self.network)
        self.model = model or FakeModel()
        self.pace = pace or Pace()
        self.nodes: dict[str, ClusterNode] = {}  # the latest life of each, by name
        self.answers: list[Answer] = []
        self._identities: dict[str, tuple[NodeId, Address]] = {}
        self._lives = 0
        self._guests = 0
        self._cuts: set[tuple[Address, Address]] = set()
        self._models = {self.model.facts.root: self.model}
        self._disks: dict[NodeId, set[tuple[str, int]]] = {}  # (root, layer): outlives a node

    # Devices

    def start(
        self,
        name: str,
        layers: float,
        *,
        model: FakeModel | None = None,
        context: int = 0,
        node: NodeId = "",
        wire: str = "",
        split: str = "",
        transport: str = UDP,
    ) -> ClusterNode:
        """Start a device that offers memory for so many layers, or start it again.

        ``model`` is the one whose file it offers; ``node`` names its id instead of the dice;
        ``wire`` is what its links shall carry, ``split`` what it asks to split by, ``transport``
        what shall carry its links.
        """
        self._lives += 1
        fresh = Address(f"10.0.0.{len(self._identities) + 1}", 7711)
        node = node or f"{self.dice.getrandbits(128):032x}"
        node, address = self._identities.setdefault(name, (node, fresh))
        disk = self._disks.setdefault(node, set())
        if model is not None:
            root = model.facts.root
            self._models[root] = model
            disk |= {(root, layer) for layer in range(model.layers)}
        me = MemberRecord(
            *(node, 1_000 + self._lives, 1, ALIVE, name, address.host, address.port, 7712),
            *(ram_bytes(layers), context, "hashes", "", model.facts.root if model else ""),
            *(True, "0"),
            wire=wire,
            split=split,
        )
        started = self.nodes[name] = ClusterNode(self, me, model, transport)
        started.host.act(lambda _: None)  # from here on its timers run
        self._seek(started)
        return started

    def up(self) -> list[ClusterNode]:
        """Return the devices that run."""
        return [node for node in self.nodes.values() if node.is_up]

    def guest(self, gateway: ClusterNode) -> ClusterGuest:
        """Return a guest that talks to this device."""
        self._guests += 1
        return ClusterGuest(self.network, self._guests, gateway)

    def _seek(self, node: ClusterNode) -> None:
        """Let a node find the others, and again where a dial has failed."""
        if not node.is_up:
            return
        connected = node.host.endpoint.peers()
        for other in self.up():
            if other is not node and other.node not in connected:
                node.dial(other.address)
        self.network.at(self.network.now + SEEK_S, lambda: self._seek(node))

    # Weights

    def model_of(self, root: str) -> FakeModel:
        """Return the model of that root."""
        return self._models[root]

    def fetch(self, node: ClusterNode, root: str, layers: Iterable[int]) -> bool:
        """Bring layers to a node's disk from the members that it knows; return whether all came."""
        disk = self._disks[node.node]
        living = {record.node for record in node.core.membership.living()}
        reachable = [
            self._disks[other.node]
            for other in self.up()
            if other.node in living and (other.address, node.address) not in self._cuts
        ]
        wanted = {(root, layer) for layer in layers}
        if not all(any(each in other for other in [disk, *reachable]) for each in wanted):
            return False
        disk |= wanted
        return True

    # Faults

    def partition(self, *sides: Iterable[ClusterNode]) -> None:
        """Let no device of one side hear another side's, nor be heard."""
        groups = [[node.address for node in side] for side in sides]
        for number, group in enumerate(groups):
            for other in groups[:number] + groups[number + 1 :]:
                for source in group:
                    for to in other:
                        self._cuts.add((source, to))
                        self.network.cut(source, to)

    def heal(self) -> None:
        """Let everybody hear everybody again, without loss."""
        self._cuts.clear()
        self.network.heal()
        self.network.set_conditions(Conditions())

    # Asking

    def new_ask(
        self,
        prompt: str = "once",
        tokens_max: int = 16,
        sampling: SamplingSettings | None = None,
        *,
        ignore_end: bool = False,
        history: tuple[Turn, ...] = (),
    ) -> Ask:
        """Return a request with an id of its own."""
        sampling = sampling or SamplingSettings()
        request = self.dice.getrandbits(64)
        return Ask(
            request, sampling, tokens_max, ignore_end, False, (), "", 1, history, *(0, 0, 0), prompt
        )

    def ask(self, asker: ClusterNode | ClusterGuest, ask: Ask | None = None) -> Answer:
        """Ask a device, or by a guest, and keep the answer to be checked."""
        answer = asker.ask(ask or self.new_ask())
        self.answers.append(answer)
        return answer

    def expected(self, answer: Answer) -> ExpectedAnswer:
        """Return what a single device would answer."""
        return expected_answer(self.model, answer.ask)

    def check(self, answer: Answer) -> None:
        """Raise ClusterError unless the answer is the single device's, as far as it goes."""
        if answer.ask.scored_from:
            nlls = expected_nlls(self.model, answer.ask)
            if answer.finished is not None and answer.finished.nlls != nlls:
                raise ClusterError(f"{answer.finished.nlls} instead of {nlls}")
            return
        expected = self.expected(answer)
        if answer.tokens != expected.tokens[: len(answer.tokens)]:
            raise ClusterError(f"tokens {answer.tokens} instead of {expected.tokens}")
        if answer.finished is None:
            return
        got = (answer.finished.prompt_tokens, answer.tokens, answer.text, answer.finished.reason)
        if got != (expected.prompt_tokens, expected.tokens, expected.text, expected.reason):
            raise ClusterError(f"{got} instead of {expected}")

    # Time

    def between(self, bounds: tuple[float, float]) -> float:
        """Return a number of seconds between two."""
        return self.dice.uniform(*bounds)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.network.run(self.network.now + seconds, events_max=EVENTS_MAX)

    def until(self, done: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Let time pass until something is so; ClusterError when it is not in time."""
        if not self.network.run(self.network.now + seconds, done, EVENTS_MAX):
            raise ClusterError(f"after {seconds} s: not {what}; {self.described()}")

    def until_ready(self, stages: int | None = None, seconds: float = 60.0) -> None:
        """Wait until every device follows one active plan of so many stages."""
        self.until(lambda: self._is_ready(stages), "ready", seconds)

    def until_answered(self, *answers: Answer, seconds: float = 60.0) -> None:
        """Wait until the answers have ended, and check them."""
        self.until(lambda: all(each.ended for each in answers), "answered", seconds)
        for answer in answers:
            self.check(answer)

    def until_idle(self, seconds: float = 30.0) -> None:
        """Wait until no device works for an answer, or keeps one that nobody may go on with."""
        self.until(lambda: all(map(_is_idle, self.up())), "idle", seconds)

    def described(self) -> str:
        """Return how the devices stand, for a failing test."""
        return "; ".join(
            f"{node.name}: epoch {plan.epoch if plan else 0} of {node.core.planning.epoch_seen}"
            f" {node.core.planning.trouble!r} {_kept(node)}"
            for node in self.up()
            for plan in [node.core.planning.active]
        )

    def _is_ready(self, stages: int | None) -> bool:
        plans = [node.core.planning.active for node in self.up()]
        first = plans[0]
        troubles = [node.core.planning.trouble for node in self.up()]
        if first is None or any(plan != first for plan in plans) or any(troubles):
            return False
        lives = {node.node for node in self.up()}
        if stages is not None and len(first.stages) != stages:
            return False
        return all(placement.node in lives for placement in first.stages) and all(
            set(node.host.endpoint.peers()) >= lives - {node.node} for node in self.up()
        )


def _kept(node: ClusterNode) -> dict[str, int]:
    """Return how much a device keeps for answers, by place."""
    return {
        "gateway": len(node.core.gateway._requests),
        "home": node.core.home.sessions_open,
        "stage": len(node.core.stage._sessions),
        "engine": len(node.engine.sessions_held()),
        "kept for ever": len(node.engine.answers_kept() - node.core.stage.answers_kept()),
        "too many kept": max(0, len(node.engine.answers_kept()) - SESSIONS_MAX),
    }


def _is_idle(node: ClusterNode) -> bool:
    return not any(_kept(node).values())
