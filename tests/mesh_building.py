"""Records, plans and steps for tests of the mesh.

Any test may `import mesh_building`: pytest puts the folder of `tests/conftest.py` on the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from edgellama_kernels import HiddenRows

from edgellama.mesh.effects import Effect, Outbox, Run, Send
from edgellama.testing.fake_model import FakeModel, ram_bytes
from edgellama.values import LinkFacts, NodeId, Plan, SamplingSettings, Span, StagePlacement
from edgellama.wire.activations import ActivationEncoder
from edgellama.wire.messages import ALIVE, Ask, MemberRecord, Message, Step

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH = 8
MODEL = FakeModel("hashes", 12)

E = TypeVar("E", bound=Effect)


class NothingMeasured:
    """What a node's shell says of its links where a test is about something else."""

    def heard_at(self, node: NodeId) -> float | None:
        return None

    def transport(self, node: NodeId) -> str:
        return ""

    def links(self) -> list[LinkFacts]:
        return []

    def clock_ms(self) -> int:
        return 5_000


def node_id(number: int) -> NodeId:
    """Return a node id; they are ordered as their numbers are."""
    return f"{number:032x}"


A, B, C, D = (node_id(number) for number in range(1, 5))


def record(node: NodeId, **changes: object) -> MemberRecord:
    """Return a living member's record that offers memory for six layers."""
    number = int(node, 16)
    plain = MemberRecord(
        *(node, 1, 1, ALIVE, f"n{number}", f"10.0.0.{number % 256}", 7711, 7712, ram_bytes(6)),
        *(0, "numpy", "digest", "", True, "0.1.0"),
    )
    return plain._replace(**changes)  # type: ignore[arg-type]


def plan_of(*nodes: NodeId, epoch: int = 5, context: int = 64, sessions_max: int = 2) -> Plan:
    """Return a plan of two layers a node, home first."""
    stages = tuple(
        StagePlacement(node, Span(2 * index, 2 * index + 2)) for index, node in enumerate(nodes)
    )
    return Plan(epoch, nodes[0], MODEL.facts.root, context, sessions_max, stages)


def rows_of(count: int, first: int = 0) -> HiddenRows:
    """Return rows that differ from each other."""
    halves = np.arange(first, first + count, dtype=np.uint16)[:, None]
    return HiddenRows(
        np.tile(halves, (1, WIDTH)), np.arange(count, dtype=np.uint8) + np.uint8(first)
    )


def step_of(
    position: int,
    count: int = 1,
    *,
    stage: int = 1,
    epoch: int = 5,
    session: int = 1,
    wanted: int = 1,
) -> Step:
    """Return a step with its rows between stages."""
    codec, payload = ActivationEncoder(peer_reads_lz4=False).encode(rows_of(count, position))
    return Step(epoch, session, position, count, stage, wanted, count, codec, payload)


def returned_step(
    position: int, count: int = 1, *, stages: int = 2, wanted: int = 1, session: int = 1
) -> Step:
    """Return what comes back to home: only the rows that it wanted."""
    codec, payload = ActivationEncoder(peer_reads_lz4=False).encode(rows_of(wanted, position))
    return Step(5, session, position, count, stages, wanted, wanted, codec, payload)


def ask_of(prompt: str = "ab", tokens_max: int = 4, **changes: object) -> Ask:
    """Return a greedy request."""
    values: dict[str, object] = {
        "request": 7,
        "sampling": SamplingSettings(),
        "tokens_max": tokens_max,
        "ignore_end": False,
        "raw": True,
        "tokens": (),
        "system": "",
        "today": 0,
        "history": (),
        "scored_from": 0,
        "attempt": 0,
        "wait_s": 0,
        "prompt": prompt,
    }
    return Ask(**(values | changes))  # type: ignore[arg-type]


def sent(outbox: Outbox | Iterable[Effect]) -> list[tuple[NodeId, Message]]:
    """Return what is to be sent to whom, and forget the effects."""
    effects = outbox.drain() if isinstance(outbox, Outbox) else outbox
    return [(each.node, each.message) for each in effects if isinstance(each, Send)]


def jobs(outbox: Outbox) -> list[object]:
    """Return the jobs that are to be run, and forget the effects."""
    return [each.job for each in outbox.drain() if isinstance(each, Run)]


def of_kind(effects: Iterable[Effect], kind: type[E]) -> list[E]:
    """Return the effects of one kind."""
    return [each for each in effects if isinstance(each, kind)]
