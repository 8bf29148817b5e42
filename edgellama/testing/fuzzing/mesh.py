"""A node of a mesh whose members and guests say whatever they like.

The bytes are msgpack values, one after the other: ``[who, header, body]`` is a message, ``[who]``
a connection that comes or goes, an integer a time in hundredths of a second, nil a job done.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
from edgellama_kernels import HiddenRows

from edgellama.link.endpoint import Connected, Disconnected, Identity, MessageReceived
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import (
    Effect,
    HeadJob,
    Job,
    JobResult,
    LoadPlan,
    PromptTokens,
    Run,
    Send,
    StageJob,
)
from edgellama.mesh.effects import TokenizeJob as _TokenizeJob
from edgellama.model.hidden import check_hidden
from edgellama.testing.fake_model import WIDTH, FakeModel, FakeTokenizer, ram_bytes
from edgellama.testing.fuzzing.examples import example, message_bytes, packed_examples
from edgellama.testing.fuzzing.feed import values
from edgellama.values import (
    Address,
    LinkCounters,
    LinkFacts,
    NodeId,
    Plan,
    Span,
    StagePlacement,
)
from edgellama.wire.activations import ROWS_MAX
from edgellama.wire.membership_messages import MEMBER
from edgellama.wire.messages import (
    ALIVE,
    Gossip,
    MemberRecord,
    Message,
    PlanAnnouncement,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES: Final = tuple(f"{number:032x}" for number in range(1, 6))
VICTIM, FIRST, LAST, GUEST, STRANGER = NODES[1], NODES[0], NODES[2], NODES[3], NODES[4]
MODEL: Final = FakeModel()
EPOCH: Final = (1 << 24) + 7
CONTEXT: Final = 64
EFFECTS_MAX: Final = 20_000  # of one event: more is no answer but a flood


class _Surroundings:
    """A shell that has nothing to tell."""

    def heard_at(self, node: NodeId) -> float | None:
        return None

    def counters(self, node: NodeId | None) -> LinkCounters:
        return LinkCounters()

    def transport(self, node: NodeId) -> str:
        return ""

    def links(self) -> list[LinkFacts]:
        return []

    def clock_ms(self) -> int:
        return 0

    def vocabulary(self) -> FakeTokenizer:
        return FakeTokenizer()


class _HostileMesh:
    """A node under a plan in which it is one stage of three, and its queue of jobs."""

    def __init__(self, offers_model: bool) -> None:
        self.now = 0.0
        self.connected: set[NodeId] = set()
        self.jobs: deque[Job] = deque()
        facts = MODEL.facts if offers_model else None
        me = _record(VICTIM, facts.root if facts else "")
        self.core = MeshNode(me, facts, 2, _Surroundings(), open_mesh=False)
        for node in (FIRST, LAST, GUEST):
            self.toggle(node)
        members = (_record(FIRST, MODEL.facts.root), _record(LAST))
        self.hear(FIRST, encode(Gossip(members, (MODEL.facts,))))
        self.hear(FIRST, encode(_plan()))

    def toggle(self, node: NodeId) -> None:
        """Let a connection come, or go."""
        if node in self.connected:
            self.connected.remove(node)
            self.core.handle_event(Disconnected(node, "gone"), self.now)
        else:
            self.connected.add(node)
            identity = Identity(node, 1, guest=node == GUEST)
            self.core.handle_event(Connected(identity, Address("10.0.0.9", 7711)), self.now)
        self.settle()

    def hear(self, node: NodeId, data: bytes) -> None:
        if node in self.connected:
            self.core.handle_event(MessageReceived(node, data), self.now)
            self.settle()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        timer = self.core.next_timer()
        if timer is not None and timer <= self.now:
            self.core.handle_timer(self.now)
            self.settle()

    def finish_job(self) -> None:
        if self.jobs:
            job = self.jobs.popleft()
            self.core.job_done(job, _result(job), self.now)
            self.settle()

    def settle(self) -> None:
        """Carry out what the node wants, and look whether it may want that."""
        done = 0
        while effects := self.core.effects():
            done += len(effects)
            assert done <= EFFECTS_MAX
            for effect in effects:
                self._do(effect)

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            said = encode(effect.message)
            assert type(decode(said)) is type(effect.message)
        elif isinstance(effect, LoadPlan):
            self.core.plan_loaded(effect.plan.epoch, self.now)
        elif isinstance(effect, Run):
            self.jobs.append(effect.job)
            if isinstance(effect.job, StageJob):
                self._check_stage_job(effect.job)

    def _check_stage_job(self, job: StageJob) -> None:
        plan, facts = self.core.planning.active, self.core.planning.active_facts
        assert plan is not None
        assert facts is not None
        assert 1 <= job.count <= ROWS_MAX
        assert job.position + job.count <= plan.context
        if job.hidden is not None:
            check_hidden(job.hidden, facts.width)
            assert np.isfinite(job.hidden.halves.view(np.float16)).all()


def _record(node: NodeId, root: str = "") -> MemberRecord:
    plain: MemberRecord = MEMBER.unpack(example(MEMBER))
    return plain._replace(
        node=node, incarnation=1, state=ALIVE, ram_bytes=ram_bytes(6), model_root=root
    )


def _plan() -> PlanAnnouncement:
    stages = tuple(
        StagePlacement(node, Span(4 * index, 4 * index + 4))
        for index, node in enumerate((FIRST, VICTIM, LAST))
    )
    plan = Plan(EPOCH, FIRST, MODEL.facts.root, CONTEXT, 2, stages)
    return PlanAnnouncement(plan, MODEL.facts, True, (1, 1, 1))


def _result(job: Job) -> JobResult:
    if isinstance(job, StageJob):
        width = WIDTH if job.hidden is None else job.hidden.halves.shape[1]
        return HiddenRows(np.zeros((job.count, width), np.uint16), np.zeros(job.count, np.uint8))
    if isinstance(job, HeadJob):
        return 1 + job.position % 7
    if isinstance(job, _TokenizeJob):
        return PromptTokens((1, 2, 3), len(job.ask.history), is_templated=True)
    return None


def mesh(data: bytes) -> None:
    """Let everyone say what the bytes say."""
    said = values(data)
    hostile = _HostileMesh(offers_model=bool(said) and said[0] is True)
    for value in said:
        match value:
            case None:
                hostile.finish_job()
            case bool():
                continue
            case int() if 0 <= value <= 10_000:
                hostile.wait(value / 100)
            case [int(who)]:
                hostile.toggle(_others(who))
            case [int(who), list(header), bytes(body)]:
                hostile.hear(_others(who), message_bytes(header, body))


def _others(who: int) -> NodeId:
    return (FIRST, LAST, GUEST, STRANGER)[who % 4]


def mesh_seeds() -> Iterator[bytes]:
    """Yield every message from every side, and a step and an answer that go their way."""
    for who in range(4):
        for packed in packed_examples():
            yield _said(True, [who, packed, b""], None, 100)
    rows = np.zeros((1, WIDTH), np.uint16).tobytes()
    step = [6, EPOCH, 1, 0, 1, 1, 1, 1, 0]
    again = [6, EPOCH, 1, 1, 1, 1, 1, 1, 0]
    yield _said([0, step, b"\0" + rows], [0, again, b"\0" + rows], None, [1], [1], None, 100)
    yield _said([0, step, b"\0" + rows], None, [0, [10, EPOCH, 1], b""], None, 500)
    yield _said(True, 100, 100, [3], [0], 300, [0], None, None)


def _said(*said: Any) -> bytes:
    return b"".join(msgpack.packb(each) for each in said)


def messages_of(data: bytes) -> list[Message]:
    """Return the sound messages of an input, to read what a finding was about."""
    return [
        decode(message_bytes(value[1], value[2]))
        for value in values(data)
        if isinstance(value, list) and len(value) == 3
    ]
