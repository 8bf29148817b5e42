"""What a node does with steps: compute each once, in order, and send the rows on.

A step is named by (epoch, session, position), so a repeated one is answered from the outputs
kept, a step from the future waits for the ones before it, and a step of an older epoch is told
the epoch in force. Home's own layers go through here as well, as stage 0.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from edgellama_kernels import HiddenRows

from edgellama.errors import WireError
from edgellama.link.endpoint import Priority
from edgellama.mesh.effects import CloseJob, Outbox, Run, StageJob
from edgellama.values import LinkCounters, NodeId, Plan
from edgellama.wire.activations import ActivationEncoder, decode_hidden
from edgellama.wire.messages import (
    CloseSession,
    SessionClosed,
    Step,
    StepFailed,
    StepNeeded,
    StepStale,
)

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS_UNDER_WAY_MAX: Final = 16  # of one session in the whole ring, however many stages
WAITING_STEPS_MAX: Final = 64  # of an epoch that is not in force here yet, of all sessions
SESSIONS_MAX: Final = 64  # a bound on hostile or forgotten sessions, above any plan's own
CLOSED_KEPT: Final = 1024  # far more sessions than can end while a step is on its way


def steps_under_way_max(plan: Plan) -> int:
    """Return how many steps of a session home lets be on their way: every stage has work."""
    return min(len(plan.stages) + 1, STEPS_UNDER_WAY_MAX)


@dataclass
class _Session:
    length: int = 0  # positions computed or being computed
    early: dict[int, Step] = field(default_factory=dict)
    outputs: OrderedDict[int, Step] = field(default_factory=OrderedDict)
    jobs: dict[int, Step] = field(default_factory=dict)  # under way, by position
    failure: str = ""  # why a step could not be computed
    counters_at_start: LinkCounters = field(default_factory=LinkCounters)


class StageRole:
    """The steps of one node under the plan in force."""

    def __init__(
        self,
        me: NodeId,
        outbox: Outbox,
        counters: Callable[[], LinkCounters],
        peer_reads_lz4: Callable[[NodeId], bool],
    ) -> None:
        self._me = me
        self._outbox = outbox
        self._counters = counters
        self._peer_reads_lz4 = peer_reads_lz4
        self._plan: Plan | None = None
        self._width = 0
        self._stage = -1
        self._sessions: dict[int, _Session] = {}
        # (epoch, session): a step that comes later must not open it again.
        self._closed: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._encoder = ActivationEncoder(peer_reads_lz4=False)
        self._waiting: list[tuple[NodeId, Step]] = []  # of an epoch that is not in force here yet

    def follow(self, plan: Plan, width: int) -> None:
        """Begin a new epoch: sessions of the old one are void."""
        self._plan, self._width = plan, width
        stage = plan.stage_of(self._me)
        self._stage = -1 if stage is None else stage
        self._sessions.clear()
        if stage is not None:
            self._encoder = ActivationEncoder(peer_reads_lz4=self._peer_reads_lz4(self._next()))
        waiting, self._waiting = self._waiting, []
        for node, step in waiting:
            with contextlib.suppress(WireError):  # as for a step that has just come
                self.receive(node, step)

    def peer_connected(self, node: NodeId) -> None:
        """Say again what may have been lost with an earlier connection to this node."""
        plan = self._plan
        if plan is None or self._stage < 0:
            return
        for session_id, session in self._sessions.items():
            if session.failure and node == plan.home:
                self._outbox.send(node, StepFailed(plan.epoch, session_id, session.failure))
            if node == self._next():
                for done in session.outputs.values():
                    self._pass_on(done)

    def receive(self, node: NodeId, step: Step) -> None:
        """Compute a step of the stage before, answer it again, or say what is missing."""
        plan = self._plan
        if plan is None or step.epoch > plan.epoch:
            if len(self._waiting) < WAITING_STEPS_MAX:
                self._waiting.append((node, step))
        elif step.epoch < plan.epoch:
            self._outbox.send(node, StepStale(plan.epoch))
        elif step.stage == self._stage > 0 and (step.epoch, step.session) not in self._closed:
            self._take(node, plan, step)

    def _take(self, node: NodeId, plan: Plan, step: Step) -> None:
        session = self._session(step.session)
        if session is None:
            reason = f"{SESSIONS_MAX} sessions are open on this device"
            self._outbox.send(plan.home, StepFailed(plan.epoch, step.session, reason))
        elif step.position < session.length:
            self._answer_again(session, step.position)
        elif step.position > session.length and len(session.early) >= STEPS_UNDER_WAY_MAX:
            self._outbox.send(node, StepNeeded(plan.epoch, step.session, session.length))
        else:
            session.early[step.position] = step
            self._start_due(session)

    def run_home(
        self, session_id: int, position: int, tokens: tuple[int, ...], wanted: int
    ) -> None:
        """As home: embed these tokens and compute this node's own layers, stage 0."""
        plan = self._plan
        assert plan is not None
        assert self._stage == 0
        session = self._session(session_id)
        assert session is not None
        assert position == session.length
        count = len(tokens)
        session.jobs[position] = Step(plan.epoch, session_id, position, count, 0, wanted, 0, 0, b"")
        session.length += count
        self._outbox.put(Run(StageJob(plan.epoch, session_id, position, tokens=tokens)))

    def computed(self, job: StageJob, hidden: HiddenRows) -> Step | None:
        """Pass computed rows on; return the step where it goes to home and this node is home."""
        plan = self._plan
        session = self._sessions.get(job.session)
        if plan is None or job.epoch != plan.epoch or session is None:
            return None
        step = session.jobs.pop(job.position, None)
        if step is None:
            return None
        done = self._output(plan, step, hidden)
        session.outputs[step.position] = done
        while len(session.outputs) > steps_under_way_max(plan):
            session.outputs.popitem(last=False)
        if self._next() == self._me:
            return done
        self._pass_on(done)
        return None

    def failed(self, job: StageJob, reason: str) -> None:
        """Tell home that a step cannot be computed."""
        session = self._sessions.get(job.session)
        if self._plan is not None and job.epoch == self._plan.epoch and session is not None:
            session.failure = reason
            self._outbox.send(self._plan.home, StepFailed(job.epoch, job.session, reason))

    def last_row(self, step: Step) -> HiddenRows:
        """Return the row that came back to home; WireError where it is not what the plan says."""
        return self._rows(step, 1)

    def close(self, node: NodeId, message: CloseSession) -> None:
        """Free the session and tell home what this node's links carried while it lived."""
        counters = LinkCounters()
        if self._plan is not None and message.epoch == self._plan.epoch:
            counters = self.forget(message.session)
        self._closed[message.epoch, message.session] = None
        while len(self._closed) > CLOSED_KEPT:
            self._closed.popitem(last=False)
        self._outbox.send(node, SessionClosed(message.epoch, message.session, counters))

    def forget(self, session_id: int) -> LinkCounters:
        """Free a session; return what this node's links carried while it lived."""
        session = self._sessions.pop(session_id, None)
        if session is None or self._plan is None:
            return LinkCounters()
        self._outbox.put(Run(CloseJob(self._plan.epoch, session_id)))
        return self._counters() - session.counters_at_start

    def _session(self, session_id: int) -> _Session | None:
        session = self._sessions.get(session_id)
        if session is None and len(self._sessions) < SESSIONS_MAX:
            session = self._sessions[session_id] = _Session(counters_at_start=self._counters())
        return session

    def _start_due(self, session: _Session) -> None:
        while (step := session.early.pop(session.length, None)) is not None:
            try:
                hidden = self._rows(step, step.count)
            except WireError as error:
                session.failure = f"{error}, to {self._me[:8]}"
                assert self._plan is not None
                failed = StepFailed(step.epoch, step.session, session.failure)
                self._outbox.send(self._plan.home, failed)
                return
            session.jobs[step.position] = step
            session.length += step.count
            job = StageJob(step.epoch, step.session, step.position, hidden=hidden)
            self._outbox.put(Run(job))

    def _rows(self, step: Step, count: int) -> HiddenRows:
        assert self._plan is not None
        if step.position + step.count > self._plan.context:
            raise WireError("a step beyond the context")
        if step.rows != count:
            raise WireError(f"a step came with {step.rows} rows where {count} belong")
        return decode_hidden(step.codec, step.rows, self._width, step.payload)

    def _answer_again(self, session: _Session, position: int) -> None:
        done = session.outputs.get(position)
        if done is not None and self._next() != self._me:
            self._pass_on(done)

    def _output(self, plan: Plan, step: Step, hidden: HiddenRows) -> Step:
        stage = self._stage + 1
        if stage == len(plan.stages):
            first = step.count - step.wanted
            hidden = HiddenRows(hidden.halves[first:], hidden.exponents[first:])
        rows = len(hidden.exponents)
        codec, payload = self._encoder.encode(hidden)
        return Step(
            step.epoch,
            step.session,
            step.position,
            step.count,
            stage,
            step.wanted,
            rows,
            codec,
            payload,
        )

    def _pass_on(self, step: Step) -> None:
        priority = Priority.DECODE if step.count == 1 else Priority.PREFILL
        self._outbox.send(self._next(), step, priority)

    def _next(self) -> NodeId:
        assert self._plan is not None
        stages = self._plan.stages
        return stages[(self._stage + 1) % len(stages)].node
