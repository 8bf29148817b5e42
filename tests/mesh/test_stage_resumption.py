"""A stage goes on with an answer under a new plan: what it asks, computes, gives and forgets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mesh_building import WIDTH, A, B, C, jobs, of_kind, plan_of, rows_of, sent, step_of

from edgellama.mesh.effects import CloseJob, FillJob, ForgetJob, OpenJob, Outbox, Run, StageJob
from edgellama.mesh.refill import CHUNK_ROWS, WINDOW_ROWS
from edgellama.mesh.stage_role import ABANDONED_S, REMEMBERED_S, SESSIONS_MAX, StageRole
from edgellama.mesh.stage_session import StageSession
from edgellama.values import LinkCounters, NodeId, Plan, Span, StagePlacement
from edgellama.wire.messages import CloseSession, OpenSession, Step, StepFailed, StepNeeded

KEY = 99
PLAN = replace(plan_of(A, B, C), context=1024)  # two layers each


class Stage:
    """The stage role of one node, driven by hand."""

    def __init__(self, me: NodeId = B, plan: Plan = PLAN) -> None:
        self.outbox = Outbox()
        self.role = StageRole(me, self.outbox, LinkCounters, lambda node: False)
        self.role.follow(plan, WIDTH, 0.0)
        self.epoch = plan.epoch

    def follow(self, plan: Plan, now: float = 1.0) -> None:
        self.role.follow(plan, WIDTH, now)
        self.epoch = plan.epoch

    def open(self, length: int, lengths: tuple[int, ...], session: int = 1) -> None:
        """Be told of a session, and learn what is held of it here."""
        opening = OpenSession(self.epoch, session, KEY, length)
        self.role.receive(A, opening)
        job = OpenJob(self.epoch, session, KEY, length)
        assert jobs(self.outbox) == [job]
        self.role.opened(job, lengths)

    def fills(self) -> list[tuple[Span, int, int]]:
        """Return (layers, position, count) of what is to be filled."""
        return [(each.span, each.position, each.count) for each in self.fill_jobs()]

    def fill_jobs(self) -> list[FillJob]:
        return [each.job for each in self.effects() if isinstance(each.job, FillJob)]

    def effects(self) -> list[Run]:
        effects = self.outbox.drain()
        self.said = sent(effects)
        return of_kind(effects, Run)

    def fill(self) -> FillJob | None:
        """Compute one chunk, if one is to be computed."""
        found = self.fill_jobs()
        if not found:
            return None
        (job,) = found
        self.role.filled(job, rows_of(job.count, job.position))
        return job

    def give(self, position: int, count: int, *, stage: int = 1) -> None:
        """Be given rows by the stage before."""
        step = step_of(position, count, stage=stage, wanted=0, epoch=self.epoch)
        self.role.receive(A, step)

    def compute(self, count: int) -> None:
        """Compute so many positions in the ordinary way, one by one."""
        for position in range(count):
            self.role.receive(A, step_of(position, epoch=self.epoch))
            (job,) = [each for each in jobs(self.outbox) if isinstance(each, StageJob)]
            self.role.computed(job, rows_of(1, 100 + position))
        self.outbox.drain()


def test_who_holds_everything_goes_on_at_once() -> None:
    stage = Stage()
    stage.role.receive(A, step_of(20))
    assert stage.outbox.drain() == []
    stage.open(20, (20, 20))
    (job,) = jobs(stage.outbox)
    assert isinstance(job, StageJob)
    assert (job.position, job.count) == (20, 1)


def test_who_holds_nothing_asks_the_stage_before_and_fills_in_order() -> None:
    stage = Stage()
    stage.open(100, (0, 0))
    assert sent(stage.outbox) == [(A, StepNeeded(5, 1, 0, 100))]
    stage.give(64, 36)  # the link gives them in any order
    assert stage.fills() == []
    stage.give(0, 64)
    assert stage.fill() is not None
    job = stage.fill()
    assert job is not None
    assert (job.span, job.position, job.count) == (Span(2, 4), 64, 36)
    stage.role.receive(A, step_of(100))
    (step,) = jobs(stage.outbox)
    assert isinstance(step, StageJob)
    assert step.position == 100


def test_rows_are_asked_for_a_window_at_a_time() -> None:
    stage = Stage()
    stage.open(1000, (0, 0))
    assert sent(stage.outbox) == [(A, StepNeeded(5, 1, 0, WINDOW_ROWS))]
    asked = []
    for position in range(0, WINDOW_ROWS, CHUNK_ROWS):
        stage.give(position, CHUNK_ROWS)
        assert stage.fill() is not None
        asked += stage.said
    assert asked == [(A, StepNeeded(5, 1, WINDOW_ROWS, 2 * WINDOW_ROWS))]


def test_rows_lost_with_a_connection_are_asked_for_again() -> None:
    stage = Stage()
    stage.open(100, (30, 0))
    assert sent(stage.outbox) == [(A, StepNeeded(5, 1, 0, 100))]
    stage.give(0, 30)
    assert stage.fill() is not None
    stage.role.peer_connected(C)
    assert sent(stage.outbox) == []
    stage.role.peer_connected(A)
    assert sent(stage.outbox) == [(A, StepNeeded(5, 1, 30, 100))]


def test_what_this_stage_passed_on_before_fills_the_layers_that_it_takes_over() -> None:
    """It had layers 2 and 3 and now has 4 and 5 as well: nothing is asked of anybody."""
    stage = Stage()
    stage.role.receive(A, OpenSession(5, 1, KEY, 0))
    stage.compute(10)
    spans = (StagePlacement(A, Span(0, 2)), StagePlacement(B, Span(2, 6)))
    stage.follow(replace(PLAN, epoch=6, stages=spans))
    stage.open(9, (9, 9, 0, 0))
    assert stage.fills() == [(Span(4, 6), 0, 9)]
    assert stage.said == []


def test_the_stage_before_gives_what_it_kept_and_computes_what_it_did_not() -> None:
    stage = Stage()
    stage.open(30, (30, 30))
    stage.outbox.drain()
    stage.role.receive(C, StepNeeded(5, 1, 0, 30))
    assert sent(stage.outbox) == [(A, StepNeeded(5, 1, 0, 30))]
    stage.give(0, 30)
    job = stage.fill()
    assert job is not None
    assert (job.span, job.position, job.count) == (Span(2, 4), 0, 30)
    ((node, given),) = sent(stage.outbox)
    assert node == C
    assert isinstance(given, Step)
    assert (given.position, given.count, given.stage, given.rows) == (0, 30, 2, 30)
    stage.role.receive(C, StepNeeded(5, 1, 10, 30))  # the connection was away
    ((_, again),) = sent(stage.outbox)
    assert isinstance(again, Step)
    assert (again.position, again.count) == (10, 20)


def test_what_lies_before_the_rows_that_are_kept_is_given_as_it_is_computed() -> None:
    stage = Stage()
    stage.open(30, (30, 30))
    for position in (30, 31):
        stage.role.receive(A, step_of(position))
        (job,) = [each for each in jobs(stage.outbox) if isinstance(each, StageJob)]
        stage.role.computed(job, rows_of(1))
    stage.outbox.drain()
    stage.role.receive(C, StepNeeded(5, 1, 0, 30))
    stage.give(0, 30)
    assert stage.fill() is not None
    assert [(node, step.position) for node, step in sent(stage.outbox)] == [(C, 0)]  # type: ignore[union-attr]
    assert stage.fills() == []


def test_what_was_forgotten_when_this_stage_was_full_is_asked_for_again() -> None:
    """A simulated answer once waited for rows that had come, and had been thrown away."""
    stage = Stage()
    stage.role.receive(C, StepNeeded(stage.epoch, 1, 0, 6))
    stage.open(10, (10, 10))
    stage.effects()
    assert stage.said == [(A, StepNeeded(stage.epoch, 1, 0, 10))]
    stage.give(0, 10)
    assert stage.fill() is not None
    stage.effects()
    stage.role.receive(C, StepNeeded(stage.epoch, 1, 6, 10))
    stage.effects()
    assert stage.said == [(A, StepNeeded(stage.epoch, 1, 6, 10))]


def test_rows_of_which_the_first_are_not_needed_serve_from_there_on() -> None:
    """Kept rows were at hand for the first four; an answer once waited for the last two."""
    given = rows_of(6, 7)
    session = StageSession(inputs={4: given}, inputs_past=4, asked_past=10)
    taken = session.take_inputs(8, 10)
    assert taken is not None
    assert np.array_equal(taken.halves, given.halves[4:])
    assert np.array_equal(taken.exponents, given.exponents[4:])
    assert session.inputs == {}


def test_home_has_its_rows_from_its_tokens() -> None:
    home = Stage(A)
    tokens = tuple(range(50, 80))
    home.role.open_home(OpenSession(5, 1, KEY, 30), tokens)
    home.role.run_home(1, 30, (7,), 1)
    (opening,) = jobs(home.outbox)
    assert opening == OpenJob(5, 1, KEY, 30)
    home.role.opened(OpenJob(5, 1, KEY, 30), (30, 0))
    (job,) = home.fill_jobs()
    assert (job.span, job.position, job.tokens) == (Span(0, 2), 0, tokens)
    home.role.filled(job, rows_of(30))
    assert [type(each) for each in jobs(home.outbox)] == [StageJob]
    home.role.receive(B, StepNeeded(5, 1, 4, 30))
    ((node, given),) = sent(home.outbox)
    assert node == B
    assert isinstance(given, Step)
    assert (given.position, given.count, given.stage) == (4, 26, 1)


def test_at_home_as_well_nothing_opens_an_ended_session_again() -> None:
    """The next stage asked for rows; the answer ended before that came (rough, seed 302)."""
    home = Stage(A)
    home.role.open_home(OpenSession(5, 1, KEY, 3), (7, 8, 9))
    home.role.end(1, 0.0, keep=True)
    home.role.receive(B, StepNeeded(5, 1, 0, 3))
    assert home.role.sessions_open == 0


def test_home_without_layers_gives_embedded_tokens() -> None:
    spans = (StagePlacement(A, Span(0, 0)), StagePlacement(B, Span(0, 6)))
    home = Stage(A, replace(PLAN, stages=spans))
    home.role.open_home(OpenSession(5, 1, KEY, 3), (7, 8, 9))
    home.role.opened(OpenJob(5, 1, KEY, 3), ())
    home.outbox.drain()
    home.role.receive(B, StepNeeded(5, 1, 0, 3))
    (job,) = home.fill_jobs()
    assert (job.span, job.tokens) == (Span(0, 0), (7, 8, 9))
    home.role.filled(job, rows_of(3))
    assert [node for node, _ in sent(home.outbox)] == [B]


def test_what_is_asked_before_the_session_is_known_is_given_after() -> None:
    stage = Stage()
    stage.role.receive(C, StepNeeded(5, 1, 0, 30))
    assert stage.outbox.drain() == []
    stage.open(30, (30, 30))
    assert sent(stage.outbox) == [(A, StepNeeded(5, 1, 0, 30))]


@pytest.mark.parametrize("who", [A, B])
def test_only_the_next_stage_is_given_rows(who: NodeId) -> None:
    stage = Stage()
    stage.open(30, (30, 30))
    stage.outbox.drain()
    stage.role.receive(who, StepNeeded(5, 1, 0, 30))
    assert stage.outbox.drain() == []


def test_only_home_opens_a_session() -> None:
    stage = Stage()
    stage.role.receive(C, OpenSession(5, 1, KEY, 30))
    assert stage.outbox.drain() == []


def test_a_session_is_opened_once() -> None:
    stage = Stage()
    stage.open(30, (30, 30))
    stage.outbox.drain()
    stage.role.receive(A, OpenSession(5, 1, KEY, 30))
    assert stage.outbox.drain() == []


def test_broken_rows_fail_the_session_at_home() -> None:
    stage = Stage()
    stage.open(30, (0, 0))
    stage.outbox.drain()
    stage.role.receive(A, replace(step_of(0, 30, wanted=0), payload=b""))
    ((node, failed),) = sent(stage.outbox)
    assert node == A
    assert isinstance(failed, StepFailed)


def test_a_cache_that_cannot_be_opened_fails_the_session_at_home() -> None:
    stage = Stage()
    stage.role.receive(A, OpenSession(5, 1, KEY, 30))
    stage.role.failed(OpenJob(5, 1, KEY, 30), "no room")
    assert sent(stage.outbox) == [(A, StepFailed(5, 1, "no room"))]


def test_what_nobody_goes_on_with_is_forgotten_in_time() -> None:
    stage = Stage()
    stage.open(30, (30, 30))
    stage.role.close(A, CloseSession(5, 1), 0.0)
    stage.outbox.drain()
    stage.open(20, (20, 20), session=2)
    assert stage.role.next_timer() is None
    stage.outbox.drain()
    stage.follow(replace(PLAN, epoch=6), now=100.0)
    assert stage.role.next_timer() == 100.0 + ABANDONED_S
    stage.role.handle_timer(100.0 + ABANDONED_S - 1)
    assert stage.outbox.drain() == []
    stage.role.handle_timer(100.0 + ABANDONED_S)
    assert jobs(stage.outbox) == [ForgetJob(KEY)]
    assert stage.role.next_timer() is None


def test_what_somebody_goes_on_with_is_not_forgotten() -> None:
    stage = Stage()
    stage.open(30, (30, 30))
    stage.follow(replace(PLAN, epoch=6), now=100.0)
    stage.outbox.drain()
    stage.open(30, (30, 30))
    assert stage.role.next_timer() is None


def test_what_is_remembered_of_abandoned_answers_has_a_bound() -> None:
    stage = Stage()
    for epoch in range(6, 8):
        for session in range(SESSIONS_MAX):
            key = 1000 * epoch + session
            stage.role.receive(A, OpenSession(stage.epoch, session, key, 0))
        stage.follow(replace(PLAN, epoch=epoch))
    stage.outbox.drain()
    stage.role.handle_timer(1e9)
    assert len(jobs(stage.outbox)) == SESSIONS_MAX


def test_an_ended_answer_is_kept_for_the_next_question() -> None:
    stage = Stage()
    stage.open(0, ())
    stage.role.close(A, CloseSession(5, 1, keep=True), 50.0)
    assert jobs(stage.outbox) == [CloseJob(5, 1, keep=True)]
    assert stage.role.answers_kept() == {KEY}
    opening = OpenSession(5, 2, 7, 20, continues=KEY, shared=20)
    stage.role.receive(A, opening)
    assert jobs(stage.outbox) == [OpenJob(5, 2, 7, 20, continues=KEY, shared=20)]
    assert stage.role.answers_kept() == set()
    stage.role.opened(OpenJob(5, 2, 7, 20, continues=KEY, shared=20), (20, 20))
    stage.role.receive(A, step_of(20, session=2))
    (job,) = jobs(stage.outbox)
    assert isinstance(job, StageJob)
    assert job.position == 20


def test_an_ended_answer_is_not_kept_for_ever() -> None:
    stage = Stage()
    stage.open(0, ())
    stage.role.close(A, CloseSession(5, 1, keep=True), 50.0)
    stage.follow(replace(PLAN, epoch=6), now=60.0)
    assert stage.role.next_timer() == 50.0 + REMEMBERED_S
    stage.outbox.drain()
    stage.role.handle_timer(50.0 + REMEMBERED_S)
    assert jobs(stage.outbox) == [ForgetJob(KEY)]


def test_a_step_of_the_next_question_waits_for_its_opening() -> None:
    stage = Stage()
    stage.open(0, ())
    stage.role.close(A, CloseSession(5, 1, keep=True), 50.0)
    stage.outbox.drain()
    stage.role.receive(A, step_of(20, session=2))
    assert jobs(stage.outbox) == []
    stage.role.receive(A, OpenSession(5, 2, 7, 20, continues=KEY, shared=20))
    stage.role.opened(OpenJob(5, 2, 7, 20, continues=KEY, shared=20), (20, 20))
    assert isinstance(jobs(stage.outbox)[-1], StageJob)
