"""Home's part in an answer: prompt to tokens, tokens round the ring, rows to the next token.

Sessions wait until a KV slot is free, then the known tokens (prompt, and what is known of the
answer) go round in chunks, and each further token follows from the row that comes back. A new
epoch starts every session again from its known tokens: the law makes the continuation the same.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgellama.errors import (
    EXIT_FAILED,
    EdgellamaError,
    MisuseError,
    PromptTooLongError,
    WireError,
)
from edgellama.mesh.effects import HeadJob, Outbox, PromptTokens, Run, ScoreJob, TokenizeJob
from edgellama.mesh.home_session import CLOSING, QUEUED, RUNNING, TOKENIZING, Session
from edgellama.mesh.remembered import Ended, Remembered
from edgellama.mesh.stage_role import REMEMBERED_S, steps_under_way_max
from edgellama.model.sampling import validate
from edgellama.values import NodeId, Plan, Route
from edgellama.wire.messages import (
    Ask,
    CloseSession,
    Failure,
    Finished,
    Notice,
    OpenSession,
    Piece,
    SessionClosed,
    Step,
    StepFailed,
    with_turns_kept,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama_kernels import HiddenRows

    from edgellama.mesh.home_session import Vocabulary
    from edgellama.mesh.stage_role import StageRole

PREFILL_CHUNK_TOKENS: Final = 32  # small enough that the stages work at the same time
GATEWAY_WAIT_S: Final = 20.0  # an answer goes on without its gateway: another may ask for it
CLOSE_WAIT_S: Final = 1.0  # for the counters of the other stages, then the answer is told without
REQUESTS_MAX: Final = 256  # running and queued, of all askers together


class Home:
    """The sessions of the node that holds the embedding, the head and the sampler."""

    def __init__(
        self,
        me: NodeId,
        outbox: Outbox,
        stage: StageRole,
        reply: Callable[[NodeId, Piece | Finished | Failure | Notice], None],
        name: Callable[[NodeId], str],
        token_took: Callable[[float], None],
    ) -> None:
        self._me = me
        self._outbox = outbox
        self._stage = stage
        self._reply = reply
        self._name = name
        self._token_took = token_took
        self._plan: Plan | None = None
        self._vocabulary: Vocabulary | None = None
        self._sessions: dict[int, Session] = {}  # by session id, so in the order of asking
        self._ids = itertools.count(1)
        self._remembered = Remembered()

    @property
    def sessions_open(self) -> int:
        """How many sessions are running or waiting."""
        return len(self._sessions)

    @property
    def gateways(self) -> set[NodeId]:
        """The gateways of the answers that are running or waiting."""
        return {session.gateway for session in self._sessions.values()}

    def follow(self, plan: Plan, vocabulary: Vocabulary | None, now: float) -> None:
        """Begin a new epoch: start again what this node is still home to, forget the rest."""
        for session in list(self._sessions.values()):
            if session.state == CLOSING:
                self._report(session)
                del self._sessions[session.id]
        self._plan = plan
        if plan.home != self._me:
            self._sessions.clear()
            return
        assert vocabulary is not None
        self._vocabulary = vocabulary
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            self._begin_again(session)
        self._start_queued(now)

    def ask(self, gateway: NodeId, ask: Ask) -> None:
        """Begin an answer; a request that is known already is told again what it has missed."""
        session = self._session_of(ask.request)
        if session is not None:
            if ask.attempt < session.ask.attempt:
                return  # a gateway that slept: its asker has another one
            session.ask = replace(session.ask, attempt=ask.attempt)
            session.gateway, session.gateway_lost_at = gateway, None
            known = len(ask.tokens)
            if session.generated[known:]:
                self._say_again(session, known)
            return
        if len(self._sessions) >= REQUESTS_MAX:
            text = f"{REQUESTS_MAX} requests are waiting already; ask again later"
            self._reply(gateway, Failure(ask.request, EXIT_FAILED, text))
            return
        try:
            validate(ask.sampling)
        except MisuseError as error:
            self._reply(gateway, Failure(ask.request, error.exit_code, str(error)))
            return
        session = Session(next(self._ids), ask, gateway)
        self._sessions[session.id] = session
        if self._plan is not None and self._plan.home == self._me:
            self._tokenize(session)

    def stage_connected(self, node: NodeId) -> None:
        """Say again of sessions what a stage may not have heard before its connection was away."""
        plan = self._plan
        if plan is None or plan.stage_of(node) is None:
            return
        for session in self._sessions.values():
            if node in session.closing:
                self._outbox.send(node, CloseSession(plan.epoch, session.id, session.keeps))
            elif session.state == RUNNING:
                self._outbox.send(node, self._opening(session))

    def cancel(self, gateway: NodeId, request: int, now: float) -> None:
        """Stop an answer that its gateway does not want any more; another one may want it now."""
        for session in list(self._sessions.values()):
            if session.ask.request == request and session.gateway == gateway:
                self._stop(session, now)

    def gateway_gone(self, gateway: NodeId, now: float) -> None:
        """Let the answers of a gateway that is gone go on for a while: another may ask for them."""
        for session in self._sessions.values():
            if session.gateway == gateway and session.gateway_lost_at is None:
                session.gateway_lost_at = now

    def tokenized(self, session_id: int, prompt: PromptTokens, now: float) -> None:
        """Queue the session, or refuse a prompt that leaves no room for an answer."""
        session = self._sessions.get(session_id)
        if session is None or session.state != TOKENIZING or self._plan is None:
            return
        context, tokens = self._plan.context, prompt.tokens
        if len(tokens) >= context and session.ask.tokens_max:
            error = PromptTooLongError(
                f"the prompt has {len(tokens)} tokens and this mesh keeps a context of {context}: "
                "shorten it, or join with a larger --context"
            )
            self.fail(session_id, error, now)
            return
        assert self._vocabulary is not None
        # Whoever asks again, or begins again, shall leave out the same turns.
        session.ask = with_turns_kept(session.ask, prompt.turns_kept)
        session.is_templated = prompt.is_templated
        session.prompt = tokens
        known = session.ask.tokens
        fitting = known if session.ask.scored_from else known[: max(0, context - len(tokens))]
        session.generated = list(fitting)
        session.stream = self._vocabulary.stream()
        for token in session.generated:
            session.stream.push(token)  # the asker has this text already
        session.state = QUEUED
        self._start_queued(now)

    def row_returned(self, step: Step, now: float) -> None:
        """Take what the last stage sends back: a chunk's end, or the row of the next token."""
        session = self._sessions.get(step.session)
        plan = self._plan
        if session is None or plan is None or step.epoch != plan.epoch:
            return
        if session.state != RUNNING or session.returned.pop(step.position, None) is None:
            return
        if step.wanted and step.count == 1:
            self._token_took(now - session.fed_at)
        try:
            if step.wanted == 0:
                self._feed(session, now)
            elif session.ask.scored_from:
                self._score(session, step, now)
            else:
                self._make_token(session, self._stage.last_rows(step))
        except WireError as error:
            self.fail(session.id, error, now)

    def token_made(self, job: HeadJob, token: int, now: float) -> None:
        """Take the next token: say it, and either end the answer or send it round."""
        session = self._sessions.get(job.session)
        if session is None or session.state != RUNNING or self._plan is None:
            return
        if job.epoch != self._plan.epoch or job.position != session.known:
            return
        assert self._vocabulary is not None
        assert session.stream is not None
        session.first_token_at = session.first_token_at or now
        session.last_token_at = now
        is_end = token in self._vocabulary.end_tokens and not session.ask.ignore_end
        if is_end:
            self._begin_close(session, "stop", now)
            return
        session.generated.append(token)
        self._say(session, len(session.generated) - 1, session.stream.push(token))
        if session.is_full(self._plan.context):
            self._begin_close(session, "length", now)
        else:
            self._feed(session, now)

    def scored(self, job: ScoreJob, nlls: tuple[float, ...], now: float) -> None:
        """Take how well a text is foretold from a position on; the last part ends it."""
        session = self._sessions.get(job.session)
        plan = self._plan
        if session is None or plan is None or session.state != RUNNING or job.epoch != plan.epoch:
            return
        session.nlls[job.position] = nlls
        if sum(map(len, session.nlls.values())) == session.due - session.ask.scored_from:
            self._begin_close(session, "length", now)

    def fail(self, session_id: int, error: EdgellamaError, now: float) -> None:
        """End an answer with an error."""
        session = self._sessions.get(session_id)
        if session is not None and session.state != CLOSING:
            self._reply(session.gateway, Failure(session.ask.request, error.exit_code, str(error)))
            session.keeps = False
            self._stop(session, now)

    def step_failed(self, message: StepFailed, now: float) -> None:
        """End the answer that a stage could not compute."""
        if self._plan is not None and message.epoch == self._plan.epoch:
            self.fail(message.session, EdgellamaError(message.reason), now)

    def session_closed(self, node: NodeId, message: SessionClosed, now: float) -> None:
        """Add a stage's counters; the last one completes the answer."""
        session = self._sessions.get(message.session)
        if session is None or session.state != CLOSING or node not in session.closing:
            return
        session.closing.discard(node)
        session.counters += message.counters
        if not session.closing:
            self._report(session)
            self._free(session, now)

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called."""
        timers = [each.close_by for each in self._untold()]
        timers += [
            each.gateway_lost_at + GATEWAY_WAIT_S
            for each in self._sessions.values()
            if each.gateway_lost_at is not None and each.state != CLOSING
        ]
        return min(timers, default=None)

    def handle_timer(self, now: float) -> None:
        """Tell the end of answers whose stages are slow to; end those that nobody asks for."""
        for session in self._untold():
            if now >= session.close_by:
                self._report(session)
        for session in list(self._sessions.values()):
            lost_at = session.gateway_lost_at
            if lost_at is not None and session.state != CLOSING and now >= lost_at + GATEWAY_WAIT_S:
                self._stop(session, now)

    def _untold(self) -> list[Session]:
        return [each for each in self._sessions.values() if each.state == CLOSING and each.reason]

    def _session_of(self, request: int) -> Session | None:
        """Return the session that makes a request's answer, if one does."""
        for session in self._sessions.values():
            if session.ask.request == request and (session.state != CLOSING or session.reason):
                return session
        return None

    def _tokenize(self, session: Session) -> None:
        assert self._plan is not None
        self._outbox.put(Run(TokenizeJob(session.id, session.ask, self._plan.context)))

    def _begin_again(self, session: Session) -> None:
        """Under a new epoch the session has another number, and steps under way are lost."""
        session.id = next(self._ids)
        self._sessions[session.id] = session
        session.returned.clear()
        session.nlls.clear()
        if session.state == TOKENIZING:
            self._tokenize(session)
        else:
            session.state = QUEUED

    def _start_queued(self, now: float) -> None:
        plan = self._plan
        if plan is None:
            return
        running = sum(each.state in (RUNNING, CLOSING) for each in self._sessions.values())
        for session in list(self._sessions.values()):
            if session.state != QUEUED:
                continue
            if running >= plan.sessions_max:
                self._make_room(now)
                self._tell_to_wait(plan)
                return
            if session.ask.scored_from and session.known > plan.context:
                text = f"{session.known} tokens do not fit this mesh's context of {plan.context}"
                self.fail(session.id, PromptTooLongError(text), now)
                continue
            running += 1
            session.state = RUNNING
            session.started_at = session.started_at or now
            if session.is_full(plan.context) and not session.ask.scored_from:
                self._begin_close(session, "length", now)
            else:
                self._recall(session, plan, now)
                self._remembered.keep(plan.sessions_max - running)
                self._open(session, plan)
                self._feed(session, now)

    def _tell_to_wait(self, plan: Plan) -> None:
        """Say to those who wait for a KV slot what they wait for, once."""
        queued = [each for each in self._sessions.values() if each.state == QUEUED]
        for place, session in enumerate(queued, start=1):
            if not session.has_been_told_to_wait:
                session.has_been_told_to_wait = True
                text = (
                    f"as many answers are being made as there is memory for ({plan.sessions_max}); "
                    f"yours is number {place} to wait"
                )
                self._reply(session.gateway, Notice(session.ask.request, text))

    def _make_room(self, now: float) -> None:
        """End an answer that nobody asks for at the moment: others wait for its KV slot."""
        for session in self._sessions.values():
            if session.gateway_lost_at is not None and session.state == RUNNING:
                self._stop(session, now)
                return

    def _remember(self, session: Session, plan: Plan, now: float) -> None:
        session.keeps &= session.fed > 0 and not session.ask.scored_from
        if session.keeps:
            ended = Ended(session.tokens(0, session.fed), now + REMEMBERED_S)
            self._remembered.add(session.key(plan.model_root), ended, plan.sessions_max)

    def _recall(self, session: Session, plan: Plan, now: float) -> None:
        """Let an answer that begins go on from what an ended one has computed of its tokens."""
        self._remembered.forget(session.key(plan.model_root))
        if session.fed or session.generated or session.continues:
            return  # it has begun under an earlier epoch, or elsewhere
        session.continues, session.shared = self._remembered.take(session.prompt, now)
        session.fed = session.shared

    def _open(self, session: Session, plan: Plan) -> None:
        """Tell every stage of the session, and how far an earlier epoch has brought it.

        The last known position is computed once more: the row that came of it may be lost.
        """
        if session.generated:
            session.fed = 0 if session.ask.scored_from else session.known
        session.fed = session.resumed_at = max(0, min(session.fed, session.known - 1))
        opening = self._opening(session)
        self._stage.open_home(opening, session.tokens(0, session.resumed_at))
        for placement in plan.stages[1:]:
            self._outbox.send(placement.node, opening)

    def _opening(self, session: Session) -> OpenSession:
        assert self._plan is not None
        key = session.key(self._plan.model_root)
        return OpenSession(
            *(self._plan.epoch, session.id, key, session.resumed_at),
            *(session.continues, session.shared),
        )

    def _feed(self, session: Session, now: float) -> None:
        """Send known tokens that the ring has not seen, a few chunks at a time."""
        plan = self._plan
        assert plan is not None
        while session.fed < session.due and len(session.returned) < steps_under_way_max(plan):
            first = session.fed
            past = min(first + PREFILL_CHUNK_TOKENS, session.due)
            session.fed, session.fed_at = past, now
            session.returned[first] = past - first
            wanted = session.wanted(first, past)
            self._stage.run_home(session.id, first, session.tokens(first, past), wanted)

    def _make_token(self, session: Session, hidden: HiddenRows) -> None:
        assert self._plan is not None
        sampling = session.ask.sampling
        past = session.known
        recent = session.tokens(max(0, past - sampling.repeat_window), past)
        job = HeadJob(self._plan.epoch, session.id, past, hidden, sampling, recent)
        self._outbox.put(Run(job))

    def _score(self, session: Session, step: Step, now: float) -> None:
        hidden = self._stage.last_rows(step)
        past = step.position + step.count
        first = past - step.wanted
        targets = session.tokens(first + 1, past + 1)
        self._outbox.put(Run(ScoreJob(step.epoch, session.id, first, hidden, targets)))
        self._feed(session, now)

    def _say(self, session: Session, index: int, text: str) -> None:
        """Say one token of the answer, with the text that it completes."""
        token, kept = session.generated[index], len(session.ask.history)
        piece = Piece(session.ask.request, index, (token,), text, kept, session.is_templated)
        self._reply(session.gateway, piece)

    def _say_again(self, session: Session, known: int) -> None:
        """Repeat the tokens that a gateway has missed, with the text that they complete."""
        assert self._vocabulary is not None
        stream = self._vocabulary.stream()
        for index, token in enumerate(session.generated):
            text = stream.push(token)
            if index >= known:
                self._say(session, index, text)

    def _stop(self, session: Session, now: float) -> None:
        if session.state in (RUNNING, CLOSING):
            self._begin_close(session, "", now)
        else:
            del self._sessions[session.id]

    def _begin_close(self, session: Session, reason: str, now: float) -> None:
        """End the session everywhere; its KV slot is free once every stage has said so."""
        assert self._plan is not None
        session.reason = reason
        if session.state != CLOSING:
            session.state = CLOSING
            session.close_by = now + CLOSE_WAIT_S
            self._remember(session, self._plan, now)
            session.counters += self._stage.end(session.id, now, keep=session.keeps)
            closing = CloseSession(self._plan.epoch, session.id, session.keeps)
            for placement in self._plan.stages[1:]:
                session.closing.add(placement.node)
                self._outbox.send(placement.node, closing)
        if not session.closing:
            self._report(session)
            self._free(session, now)

    def _free(self, session: Session, now: float) -> None:
        del self._sessions[session.id]
        self._start_queued(now)

    def _report(self, session: Session) -> None:
        """Tell how the answer ended, once."""
        if not session.reason:
            return
        assert self._plan is not None
        assert session.stream is not None
        route = tuple(
            Route(each.node, self._name(each.node), each.span) for each in self._plan.stages
        )
        first = session.first_token_at or session.started_at
        finished = Finished(
            session.ask.request,
            session.reason,
            len(session.generated),
            session.stream.finish(),
            session.prompt,
            round((first - session.started_at) * 1e6),
            round(max(session.last_token_at - first, 0.0) * 1e6),
            route,
            session.counters,
            tuple(each for _, nlls in sorted(session.nlls.items()) for each in nlls),
        )
        session.reason = ""
        self._reply(session.gateway, finished)
