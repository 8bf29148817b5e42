"""What a node does with steps: compute each once, in order, and send the rows on.

A step is named by (epoch, session, position), so a repeated one is answered from the outputs
kept, a step from the future waits for the ones before it, and a step of an older epoch is told
the epoch in force. Home's own layers go through here as well, as stage 0.

An answer that was under way when the plan changed goes on: what is still held of its KV cache
serves, and the rest is filled from rows that this stage or the one before has kept, or computes
again. See ``refill``.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from edgellama_kernels import HiddenRows
from edgellama_kernels.row_codec import REFERENCE

from edgellama.errors import WireError
from edgellama.link.endpoint import Priority
from edgellama.mesh.coming_epoch import ComingEpoch
from edgellama.mesh.deadlines import Deadlines
from edgellama.mesh.effects import CloseJob, FillJob, ForgetJob, OpenJob, Outbox, Run, StageJob
from edgellama.mesh.kept_rows import KeptRows
from edgellama.mesh.refill import CHUNK_ROWS, Chunk, Refill, window_rows
from edgellama.mesh.stage_session import Input, StageSession, held_bytes_max
from edgellama.model.hidden import take_rows
from edgellama.values import LinkCounters, NodeId, Plan, Span
from edgellama.wire.activations import ActivationEncoder, decode_hidden
from edgellama.wire.messages import (
    CloseSession,
    OpenSession,
    SessionClosed,
    Step,
    StepFailed,
    StepNeeded,
    StepStale,
)

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS_UNDER_WAY_MAX: Final = 16  # of one session in the whole ring, however many stages
SESSIONS_MAX: Final = 64  # a bound on hostile or forgotten sessions, above any plan's own
CLOSED_KEPT: Final = 1024  # far more sessions than can end while a step is on its way
ABANDONED_S: Final = 20.0  # an answer that nobody has gone on with for so long is forgotten
REMEMBERED_S: Final = 900.0  # an ended one, whose asker may be writing the next question


def steps_under_way_max(plan: Plan) -> int:
    """Return how many steps of a session home lets be on their way: every stage has work."""
    return min(len(plan.stages) + 1, STEPS_UNDER_WAY_MAX)


class StageRole:
    """The steps of one node under the plan in force."""

    def __init__(
        self,
        me: NodeId,
        outbox: Outbox,
        counters: Callable[[], LinkCounters],
        peer_reads_lz4: Callable[[NodeId], bool],
    ) -> None:
        self.row_codec = REFERENCE  # of the kernels in use here; all give the same bytes
        self._me = me
        self._outbox = outbox
        self._counters = counters
        self._peer_reads_lz4 = peer_reads_lz4
        self._plan: Plan | None = None
        self._width = 0
        self._stage = -1
        self._span = Span(0, 0)
        self._sessions: dict[int, StageSession] = {}
        # (epoch, session): a step that comes later must not open it again.
        self._closed: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._encoder = ActivationEncoder(peer_reads_lz4=False)
        self._coming = ComingEpoch()
        self._kept = KeptRows()
        self._abandoned = Deadlines(SESSIONS_MAX)

    @property
    def sessions_open(self) -> int:
        """How many sessions are open."""
        return len(self._sessions)

    def answers_kept(self) -> set[int]:
        """Return the keys of the ended or interrupted answers that are kept for a while."""
        return self._abandoned.keys()

    @property
    def neighbours(self) -> set[NodeId]:
        """The stages before and after this one, while any session is open."""
        if self._stage < 0 or not self._sessions:
            return set()
        return {self._before(), self._next()}

    def follow(self, plan: Plan, width: int, now: float) -> None:
        """Begin a new epoch: of the old one's sessions only what they hold is kept."""
        for session in self._sessions.values():
            self._abandon(session.key, now, ABANDONED_S)
        self._plan, self._width = plan, width
        stage = plan.stage_of(self._me)
        self._stage = -1 if stage is None else stage
        self._span = Span(0, 0) if stage is None else plan.stages[stage].span
        self._sessions.clear()
        if stage is not None:
            self._encoder = ActivationEncoder(
                peer_reads_lz4=self._peer_reads_lz4(self._next()), wire=plan.wire_from(stage)
            )
        for node, message in self._coming.take():
            with contextlib.suppress(WireError):  # as for a step that has just come
                self.receive(node, message)

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called."""
        return self._abandoned.next_timer()

    def handle_timer(self, now: float) -> None:
        """Forget answers that nobody goes on with."""
        for key in self._abandoned.due(now):
            self._kept.forget(key)
            self._outbox.put(Run(ForgetJob(key)))

    def _abandon(self, key: int, now: float, wait_s: float) -> None:
        """Keep what is held of an answer for a while, unless it has no name."""
        if key:
            self._abandoned.add(key, now + wait_s)
            self.handle_timer(now)

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
            if node == self._before():
                session.asked_past = 0
                self._advance(session_id, session)

    def receive(self, node: NodeId, message: Step | OpenSession | StepNeeded) -> None:
        """Take what home or a neighbour says of a session, in this epoch or another."""
        plan = self._plan
        if plan is None or message.epoch > plan.epoch:
            self._coming.keep(node, message)
        elif message.epoch < plan.epoch:
            self._outbox.send(node, StepStale(plan.epoch))
        elif (message.epoch, message.session) in self._closed or self._stage < 0:
            return
        elif isinstance(message, StepNeeded):
            self._needed(node, message)
        elif isinstance(message, OpenSession):
            if node == plan.home and self._stage > 0:
                self._open(plan, message, ())
        elif message.stage == self._stage > 0 and node == self._before():
            self._take(plan, message)

    def _take(self, plan: Plan, step: Step) -> None:
        session = self._session(step.session)
        held_bytes = sum(each.held_bytes for each in self._sessions.values())
        if session is None:
            self._fail(plan, step, f"{SESSIONS_MAX} sessions are open on this device")
        elif held_bytes + len(step.payload) > held_bytes_max(plan, self._width):
            self._fail(plan, step, f"{held_bytes} bytes of steps wait on this device")
        elif step.position < session.target:
            self._take_kept_rows(session, step)
        elif step.position < session.length:
            self._answer_again(session, step.position)
        elif step.position > session.length and len(session.early) >= STEPS_UNDER_WAY_MAX:
            needed = StepNeeded(plan.epoch, step.session, session.length)
            self._outbox.send(self._before(), needed)
        else:
            session.early[step.position] = Input(step)
            self._start_due(session)

    def _fail(self, plan: Plan, step: Step, reason: str) -> None:
        self._outbox.send(plan.home, StepFailed(plan.epoch, step.session, reason))

    # Home

    def open_home(self, opening: OpenSession, tokens: tuple[int, ...]) -> None:
        """As home: go on with an answer whose known positions are of these tokens."""
        assert self._plan is not None
        assert self._stage == 0
        assert len(tokens) == opening.length
        self._open(self._plan, opening, tokens)

    def run_home(
        self, session_id: int, position: int, tokens: tuple[int, ...], wanted: int
    ) -> None:
        """As home: embed these tokens and compute this node's own layers, stage 0."""
        plan = self._plan
        assert plan is not None
        assert self._stage == 0
        session = self._session(session_id)
        assert session is not None
        count = len(tokens)
        step = Step(plan.epoch, session_id, position, count, 0, wanted, 0, 0, b"")
        session.early[position] = Input(step, tokens)
        self._start_due(session)

    # An answer that goes on

    def _open(self, plan: Plan, message: OpenSession, tokens: tuple[int, ...]) -> None:
        session = self._session(message.session)
        if session is None or session.key:
            return  # no room, which a step will say; or told before
        session.key = message.key
        session.target, session.tokens = message.length, tokens
        for key in (message.key, message.continues):
            self._abandoned.remove(key)
        self._kept.forget(message.continues)
        if message.length:
            self._kept.forget_other(message.key, range(self._span.first, self._span.past + 1))
        else:
            self._kept.forget(message.key)
        job = OpenJob(
            *(plan.epoch, message.session, message.key, message.length),
            *(message.continues, message.shared),
        )
        self._outbox.put(Run(job))

    def opened(self, job: OpenJob, lengths: tuple[int, ...]) -> None:
        """Take what this device holds of an answer, and begin to fill in the rest."""
        session = self._session_of(job)
        if session is None or not job.length:
            return
        session.refill = Refill(self._span, lengths, job.length)
        for wanted in session.wanted:
            session.refill.want(*wanted)
        self._advance(job.session, session)

    def _needed(self, node: NodeId, message: StepNeeded) -> None:
        session = self._session(message.session)
        if session is None or node != self._next():
            return
        if not message.past:  # steps that overtook others
            for position, done in session.outputs.items():
                if position >= message.length:
                    self._pass_on(done)
        elif session.refill is None:
            session.wanted.append((message.length, message.past))
        else:
            session.refill.want(message.length, message.past)
            self._advance(message.session, session)

    def _take_kept_rows(self, session: StageSession, step: Step) -> None:
        try:
            rows = self._rows(step, step.count)
        except WireError as error:
            self._refuse(session, step, error)
            return
        if len(session.inputs) < STEPS_UNDER_WAY_MAX:
            session.inputs[step.position] = rows
        self._advance(step.session, session)

    def _advance(self, session_id: int, session: StageSession) -> None:
        """Do the next thing towards a full session: give rows, compute a chunk, or ask for rows."""
        refill = session.refill
        if refill is None or session.is_filling:
            return
        self._give_rows(session_id, session, refill)
        chunk = refill.next_chunk()
        if chunk is not None:
            self._fill(session_id, session, refill, chunk)
        elif session.length < session.target:
            session.length = session.target
            session.forget_inputs()
            self._start_due(session)

    def _fill(self, session_id: int, session: StageSession, refill: Refill, chunk: Chunk) -> None:
        """Compute a chunk from the nearest rows that are at hand, or ask for those it needs."""
        assert self._plan is not None
        epoch, position = self._plan.epoch, chunk.position
        tokens: tuple[int, ...] = ()
        first, hidden = self._kept_rows(session, chunk)
        if hidden is None and self._stage == 0:
            tokens = session.tokens[position : chunk.position_past]
        elif hidden is None:
            hidden = session.take_inputs(position, chunk.position_past)
        if hidden is None and not tokens:
            self._ask_for_rows(session_id, session, position)
            return
        session.is_filling = True
        span = Span(first, chunk.past)
        self._outbox.put(Run(FillJob(epoch, session_id, span, position, tokens, hidden)))
        if self._stage > 0 and position + window_rows(self._width) // 2 >= session.asked_past > 0:
            self._ask_for_rows(session_id, session, session.asked_past)

    def _kept_rows(self, session: StageSession, chunk: Chunk) -> tuple[int, HiddenRows | None]:
        """Return kept rows for a chunk and the layer that they go into, the first one without."""
        for layer in range(chunk.lowest, self._span.first - 1, -1):
            rows = self._kept.get(session.key, layer, chunk.position, chunk.position_past)
            if rows is not None:
                return layer, rows
        return self._span.first, None

    def _ask_for_rows(self, session_id: int, session: StageSession, position: int) -> None:
        if position < session.asked_past or position >= session.target:
            return
        assert self._plan is not None
        session.asked_past = min(position + window_rows(self._width), session.target)
        needed = StepNeeded(self._plan.epoch, session_id, position, session.asked_past)
        self._outbox.send(self._before(), needed)

    def filled(self, job: FillJob, hidden: HiddenRows) -> None:
        """Take the rows of a chunk that was computed."""
        session = self._session_of(job)
        if session is None or session.refill is None:
            return
        session.is_filling = False
        past = job.position + len(hidden.exponents)
        session.refill.filled(job.span, past)
        if job.span.past == self._span.past:
            self._keep_rows(session, job.position, hidden)
            # They may lie before what is kept, and so not be kept themselves.
            first, end = session.refill.wanted
            end = min(end, past)
            if job.position <= first < end:
                rows = take_rows(hidden, first - job.position, end - job.position)
                self._give(job.session, first, rows)
                session.refill.gave(end)
        self._advance(job.session, session)

    def _keep_rows(self, session: StageSession, position: int, hidden: HiddenRows) -> None:
        """Keep rows that went to the next stage for whoever takes over its layers."""
        assert self._plan is not None
        if session.key and self._stage + 1 < len(self._plan.stages):
            self._kept.add(session.key, self._span.past, position, hidden)

    def _give_rows(self, session_id: int, session: StageSession, refill: Refill) -> None:
        """Give the next stage the rows that it has asked for, as far as they are kept."""
        while True:
            first, past = refill.wanted
            rows = self._kept.get(
                session.key, self._span.past, first, min(past, first + CHUNK_ROWS)
            )
            if rows is None:
                return
            self._give(session_id, first, rows)
            refill.gave(first + len(rows.exponents))

    def _give(self, session_id: int, position: int, rows: HiddenRows) -> None:
        assert self._plan is not None
        count, stage = len(rows.exponents), self._stage + 1
        codec, payload = self._encoder.encode(rows)
        epoch = self._plan.epoch
        self._pass_on(Step(epoch, session_id, position, count, stage, 0, count, codec, payload))

    # What was computed

    def computed(self, job: StageJob, hidden: HiddenRows) -> Step | None:
        """Pass computed rows on; return the step where it goes to home and this node is home."""
        plan = self._plan
        session = self._session_of(job)
        if plan is None or session is None:
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
        self._keep_rows(session, job.position, hidden)
        self._pass_on(done)
        return None

    def failed(self, job: StageJob | OpenJob | FillJob, reason: str) -> None:
        """Tell home that a step cannot be computed."""
        session = self._session_of(job)
        if self._plan is not None and session is not None:
            session.failure = reason
            self._outbox.send(self._plan.home, StepFailed(job.epoch, job.session, reason))

    def last_rows(self, step: Step) -> HiddenRows:
        """Return the rows that home wanted; WireError where they are not what the plan says."""
        return self._rows(step, step.wanted)

    def close(self, node: NodeId, message: CloseSession, now: float) -> None:
        """End the session and tell home what this node's links carried while it lived."""
        counters = LinkCounters()
        if self._plan is not None and message.epoch == self._plan.epoch:
            counters = self.end(message.session, now, keep=message.keep)
        self._shut(message.epoch, message.session)
        self._outbox.send(node, SessionClosed(message.epoch, message.session, counters))

    def end(self, session_id: int, now: float, *, keep: bool) -> LinkCounters:
        """Free a session, or keep what it holds; return what links carried while it lived."""
        session = self._sessions.pop(session_id, None)
        if self._plan is None:
            return LinkCounters()
        self._shut(self._plan.epoch, session_id)
        if session is None:
            return LinkCounters()
        if keep:
            self._abandon(session.key, now, REMEMBERED_S)
        else:
            self._kept.forget(session.key)
        self._outbox.put(Run(CloseJob(self._plan.epoch, session_id, keep)))
        return self._counters() - session.counters_at_start

    def _shut(self, epoch: int, session_id: int) -> None:
        """Let nothing that comes late open a session again, at home as well."""
        self._closed[epoch, session_id] = None
        while len(self._closed) > CLOSED_KEPT:
            self._closed.popitem(last=False)

    def _session(self, session_id: int) -> StageSession | None:
        session = self._sessions.get(session_id)
        if session is None and len(self._sessions) < SESSIONS_MAX:
            session = StageSession(counters_at_start=self._counters())
            self._sessions[session_id] = session
        return session

    def _session_of(self, job: StageJob | OpenJob | FillJob) -> StageSession | None:
        """Return the session that a job belongs to, unless its epoch is over."""
        if self._plan is None or job.epoch != self._plan.epoch:
            return None
        return self._sessions.get(job.session)

    def _start_due(self, session: StageSession) -> None:
        if not session.is_ready:
            return
        while (due := session.early.pop(session.length, None)) is not None:
            step = due.step
            try:
                hidden = None if due.tokens else self._rows(step, step.count)
            except WireError as error:
                self._refuse(session, step, error)
                return
            session.jobs[step.position] = step
            session.length += step.count
            job = StageJob(step.epoch, step.session, step.position, due.tokens, hidden)
            self._outbox.put(Run(job))

    def _refuse(self, session: StageSession, step: Step, error: WireError) -> None:
        assert self._plan is not None
        session.failure = f"{error}, to {self._me[:8]}"
        self._fail(self._plan, step, session.failure)

    def _rows(self, step: Step, count: int) -> HiddenRows:
        assert self._plan is not None
        if step.position + step.count > self._plan.context:
            raise WireError("a step beyond the context")
        if step.rows != count:
            raise WireError(f"a step came with {step.rows} rows where {count} belong")
        return decode_hidden(
            *(step.codec, step.rows, self._width, step.payload),
            wire=self._plan.wire_from(step.stage - 1),
            row_codec=self.row_codec,
        )

    def _answer_again(self, session: StageSession, position: int) -> None:
        done = session.outputs.get(position)
        if done is not None and self._next() != self._me:
            self._pass_on(done)

    def _output(self, plan: Plan, step: Step, hidden: HiddenRows) -> Step:
        stage = self._stage + 1
        if stage == len(plan.stages):
            first = step.count - step.wanted
            hidden = HiddenRows(hidden.halves[first:], hidden.exponents[first:])
        rows = len(hidden.exponents)
        codec, payload = self._encoder.encode(hidden, self.row_codec)
        return Step(
            *(step.epoch, step.session, step.position, step.count),
            *(stage, step.wanted, rows, codec),
            payload,
        )

    def _pass_on(self, step: Step) -> None:
        priority = Priority.DECODE if step.count == 1 else Priority.PREFILL
        self._outbox.send(self._next(), step, priority)

    def _next(self) -> NodeId:
        assert self._plan is not None
        stages = self._plan.stages
        return stages[(self._stage + 1) % len(stages)].node

    def _before(self) -> NodeId:
        assert self._plan is not None
        stages = self._plan.stages
        return stages[(self._stage - 1) % len(stages)].node
