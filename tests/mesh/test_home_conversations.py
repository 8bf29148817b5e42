"""Home goes on from answers that have ended, and scores texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from home_desk import GATEWAY, PLAN, Desk, read, running
from mesh_building import A, B, ask_of, jobs, plan_of, returned_step, sent

from edgellama.errors import EdgellamaError
from edgellama.mesh.effects import (
    ScoreJob,
    TokenizeJob,
)
from edgellama.values import LinkCounters, Plan
from edgellama.wire.messages import (
    CloseSession,
    Failure,
    Finished,
    OpenSession,
    SessionClosed,
)


def answer_ended(desk: Desk) -> int:
    """Let an answer to 1, 2, 3 end with 41, which went round, and 42; return its key."""
    desk.home.ask(GATEWAY, ask_of(tokens_max=2))
    (tokenize,) = jobs(desk.outbox)
    assert isinstance(tokenize, TokenizeJob)
    desk.home.tokenized(tokenize.session, read(1, 2, 3), desk.now)
    ((_, opening),) = [each for each in sent(desk.outbox) if isinstance(each[1], OpenSession)]
    assert isinstance(opening, OpenSession)
    desk.token(desk.come_round(0, 3), 41)
    desk.fed()
    desk.token(desk.come_round(3), 42)
    desk.home.session_closed(B, SessionClosed(5, 1, LinkCounters()), desk.now)
    desk.outbox.drain()
    return opening.key


def opened(desk: Desk) -> tuple[int, int, int]:
    """Return at what position a session is opened, from which answer, and how much of it."""
    ((_, opening),) = [each for each in sent(desk.outbox) if isinstance(each[1], OpenSession)]
    assert isinstance(opening, OpenSession)
    return opening.length, opening.continues, opening.shared


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ((1, 2, 3, 41, 7, 8), (4, 4)),
        ((1, 2, 9), (2, 2)),
        ((1, 2, 3), (2, 3)),  # its last position is computed again, for its row
        ((2, 2, 3), (0, 0)),
    ],
)
def test_a_question_goes_on_from_an_answer_that_begins_like_it(
    prompt: tuple[int, ...], expected: tuple[int, int]
) -> None:
    desk = Desk()
    key = answer_ended(desk)
    desk.begin(ask_of(request=8), prompt)
    length, continues, shared = opened(desk)
    assert (length, shared) == expected
    assert continues == (key if shared else 0)


def test_an_answer_that_failed_is_not_gone_on_from() -> None:
    desk, _ = running()
    desk.home.fail(1, EdgellamaError("broken"), desk.now)
    assert sent(desk.outbox) == [(B, CloseSession(5, 1, keep=False))]
    desk.home.session_closed(B, SessionClosed(5, 1, LinkCounters()), desk.now)
    desk.begin(ask_of(request=8))
    assert opened(desk) == (0, 0, 0)


def test_an_answer_that_was_stopped_is() -> None:
    desk, _ = running()
    desk.home.cancel(GATEWAY, 7, desk.now)
    assert sent(desk.outbox) == [(B, CloseSession(5, 1, keep=True))]
    desk.home.session_closed(B, SessionClosed(5, 1, LinkCounters()), desk.now)
    desk.begin(ask_of(request=8))
    assert opened(desk)[0] == 2


def test_where_every_slot_is_taken_nothing_is_gone_on_from() -> None:
    desk = Desk()
    answer_ended(desk)
    for request in (8, 9):  # the second takes the memory of the ended answer
        desk.begin(ask_of(request=request), (5, 6, request))
    desk.outbox.drain()
    desk.home.cancel(GATEWAY, 8, desk.now)
    desk.home.session_closed(B, SessionClosed(5, 2, LinkCounters()), desk.now)
    desk.begin(ask_of(request=10), (1, 2, 3, 41, 7))
    assert opened(desk) == (0, 0, 0)


def test_only_the_tokens_of_a_prompt_are_wanted() -> None:
    """However many: there is no answer that would need room in the context."""
    desk = Desk(plan_of(A, context=2))
    desk.begin(ask_of(tokens_max=0), prompt=(1, 2, 3))
    assert desk.fed() == []
    (finished,) = desk.messages()
    assert isinstance(finished, Finished)
    assert (finished.prompt_tokens, finished.tokens_count) == ((1, 2, 3), 0)


TEXT = tuple(range(50))


def scoring(plan: Plan = PLAN) -> Desk:
    desk = Desk(plan)
    desk.begin(ask_of(tokens=TEXT, tokens_max=0, scored_from=25), prompt=())
    return desk


def test_a_text_is_scored() -> None:
    desk = scoring()
    assert desk.fed() == [(0, TEXT[:32]), (32, TEXT[32:49])]
    jobs_made = []
    for position, count, wanted in ((0, 32, 7), (32, 17, 17)):
        desk.home.row_returned(returned_step(position, count, wanted=wanted), desk.now)
        (job,) = jobs(desk.outbox)
        assert isinstance(job, ScoreJob)
        assert len(job.hidden.exponents) == wanted
        jobs_made.append(job)
    assert [(job.position, job.targets) for job in jobs_made] == [
        (25, TEXT[26:33]),
        (32, TEXT[33:50]),
    ]
    desk.home.scored(jobs_made[1], (2.0,) * 17, desk.now)
    assert desk.messages() == []
    desk.home.scored(jobs_made[0], (1.0,) * 7, desk.now)
    desk.home.session_closed(B, SessionClosed(5, 1, LinkCounters()), desk.now)
    (finished,) = desk.messages()
    assert isinstance(finished, Finished)
    assert finished.nlls == (1.0,) * 7 + (2.0,) * 17
    assert finished.tokens_count == len(TEXT)


def test_under_a_new_epoch_a_text_is_scored_from_its_beginning() -> None:
    desk = scoring()
    desk.outbox.drain()
    desk.home.row_returned(returned_step(0, 32, wanted=7), desk.now)
    (job,) = jobs(desk.outbox)
    assert isinstance(job, ScoreJob)
    desk.home.scored(job, (1.0,) * 7, desk.now)
    desk.follow(replace(PLAN, epoch=6))
    assert desk.fed() == [(0, TEXT[:32]), (32, TEXT[32:49])]
    desk.home.scored(job, (1.0,) * 7, desk.now)  # of the old epoch
    desk.home.row_returned(replace(returned_step(32, 17, wanted=17, session=2), epoch=6), desk.now)
    (again,) = jobs(desk.outbox)
    assert isinstance(again, ScoreJob)
    desk.home.scored(again, (2.0,) * 17, desk.now)
    assert desk.messages() == []  # its first part is still to come


def test_a_text_that_does_not_fit_the_context_is_refused() -> None:
    desk = scoring(plan_of(A, B, context=49))
    (failure,) = desk.messages()
    assert isinstance(failure, Failure)
    assert failure.text == "50 tokens do not fit this mesh's context of 49"
    assert desk.home.sessions_open == 0
