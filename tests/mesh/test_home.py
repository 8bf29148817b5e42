"""Home: prompt to tokens, tokens round the ring, and every way in which an answer ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from home_desk import GATEWAY, PLAN, Desk, read, running
from mesh_building import (
    WIDTH,
    A,
    B,
    C,
    ask_of,
    jobs,
    plan_of,
    returned_step,
    rows_of,
    sent,
)

from edgellama.errors import EXIT_MISUSE, EdgellamaError
from edgellama.mesh.effects import (
    HeadJob,
    PromptTokens,
    StageJob,
    TokenizeJob,
)
from edgellama.mesh.home import CLOSE_WAIT_S, GATEWAY_WAIT_S, PREFILL_CHUNK_TOKENS, REQUESTS_MAX
from edgellama.testing.fake_model import END_TOKEN
from edgellama.values import ASSISTANT, USER, LinkCounters, SamplingSettings, Turn
from edgellama.wire.messages import (
    CloseSession,
    Failure,
    Finished,
    Notice,
    Piece,
    SessionClosed,
    StepFailed,
)


def test_a_token_after_the_other() -> None:
    desk = Desk()
    session = desk.begin(ask_of(tokens_max=2))
    assert desk.fed() == [(0, (1, 2, 3))]
    job = desk.come_round(0, 3)
    assert (job.epoch, job.session, job.position, job.recent) == (5, session, 3, (1, 2, 3))
    desk.token(job, 41)
    assert desk.messages() == [Piece(7, 0, (41,), "<41>", 0)]
    assert desk.fed() == [(3, (41,))]
    desk.now += 0.25
    job = desk.come_round(3)
    assert desk.trips == [0.25]  # of tokens alone, not of the prompt
    assert (job.position, job.recent) == (4, (1, 2, 3, 41))
    desk.token(job, 42)
    assert desk.messages() == [Piece(7, 1, (42,), "<42>", 0)]
    assert [message for _, message in sent(desk.outbox)] == [CloseSession(5, session, keep=True)]


@pytest.mark.parametrize(
    ("token", "ignore_end", "reason"),
    [(END_TOKEN, False, "stop"), (END_TOKEN, True, "length"), (41, False, "length")],
)
def test_how_an_answer_ends(token: int, ignore_end: bool, reason: str) -> None:
    desk, job = running(tokens_max=1, ignore_end=ignore_end)
    desk.token(job, token)
    counters = LinkCounters(1, 2, 3, 4, 5)
    desk.home.session_closed(B, SessionClosed(5, 1, counters), desk.now)
    finished = desk.messages()[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.tokens_count) == (reason, int(reason == "length"))
    assert (finished.prompt_tokens, finished.counters) == ((1, 2, 3), counters)
    assert [(each.node, each.span) for each in finished.route] == [
        (each.node, each.span) for each in PLAN.stages
    ]
    assert desk.home.sessions_open == 0


def test_what_the_stream_held_back_comes_with_the_end() -> None:
    desk, job = running(tokens_max=1)
    desk.token(job, 40)  # a token whose text waits for the next one
    desk.home.session_closed(B, SessionClosed(5, 1, LinkCounters()), desk.now)
    piece, finished = desk.messages()
    assert isinstance(piece, Piece)
    assert isinstance(finished, Finished)
    assert (piece.text, finished.text) == ("", "<40>")


@pytest.mark.parametrize("window", [0, 1, 2, 64])
def test_the_penalty_sees_the_last_tokens(window: int) -> None:
    _, job = running(sampling=SamplingSettings(repeat_window=window))
    assert job.recent == (
        (1, 2, 3)[3 - window :] if 0 < window < 3 else (1, 2, 3)[: 3 * bool(window)]
    )


def test_a_long_prompt_goes_in_chunks_and_not_all_at_once() -> None:
    desk = Desk(plan_of(A, B, context=512))
    prompt = tuple(range(1, 4 * PREFILL_CHUNK_TOKENS + 6))
    desk.begin(ask_of(), prompt)
    chunk = PREFILL_CHUNK_TOKENS
    assert [(first, len(part)) for first, part in desk.fed()] == [
        (index * chunk, chunk) for index in range(3)
    ]
    desk.home.row_returned(returned_step(0, chunk, wanted=0), desk.now)
    assert [first for first, _ in desk.fed()] == [3 * chunk]
    desk.home.row_returned(returned_step(0, chunk, wanted=0), desk.now)  # once more: not news
    assert desk.fed() == []
    desk.home.row_returned(returned_step(chunk, chunk, wanted=0), desk.now)
    assert desk.fed() == [(4 * chunk, prompt[4 * chunk :])]


@pytest.mark.parametrize(
    "change",
    [{"epoch": 4}, {"epoch": 6}, {"session": 9}, {"position": 1}],
    ids=["old epoch", "later epoch", "other session", "other position"],
)
def test_a_row_that_nobody_waits_for(change: dict[str, int]) -> None:
    desk = Desk()
    desk.begin(ask_of())
    desk.fed()
    desk.home.row_returned(replace(returned_step(0, 3), **change), desk.now)  # type: ignore[arg-type]
    assert desk.outbox.drain() == []


@pytest.mark.parametrize("change", [{"payload": b""}, {"rows": 0}, {"codec": 9}])
def test_a_broken_row_fails_the_answer(change: dict[str, object]) -> None:
    desk = Desk()
    desk.begin(ask_of())
    desk.home.row_returned(replace(returned_step(0, 3), **change), desk.now)  # type: ignore[arg-type]
    (failure,) = desk.messages()
    assert isinstance(failure, Failure)
    assert failure.exit_code == 1


@pytest.mark.parametrize(("epoch", "position"), [(4, 3), (5, 2), (5, 4)])
def test_a_token_that_nobody_waits_for(epoch: int, position: int) -> None:
    desk, job = running()
    desk.token(replace(job, epoch=epoch, position=position), 41)
    assert desk.messages() == []


def test_more_requests_than_sessions_wait_in_their_order() -> None:
    desk = Desk()
    for request in (1, 2, 3):
        desk.begin(ask_of(request=request), prompt=(request, 2, 3))
        assert bool(desk.fed()) is (request < 3)
    desk.home.cancel(GATEWAY, 1, desk.now)
    desk.outbox.drain()
    desk.home.session_closed(B, SessionClosed(5, 1, LinkCounters()), desk.now)
    (job,) = [each for each in jobs(desk.outbox) if isinstance(each, StageJob)]
    assert (job.session, job.position) == (3, 0)


def test_a_slot_is_free_only_when_every_stage_has_said_so() -> None:
    """The end is told without the counters of a silent stage, but its KV slot may be taken."""
    desk = Desk(plan_of(A, B, sessions_max=1))
    desk.begin(ask_of(request=1, tokens_max=1))
    desk.begin(ask_of(request=2), prompt=(4, 5, 6))
    waiting = "as many answers are being made as there is memory for (1); yours is number 1 to wait"
    assert desk.messages() == [Notice(2, waiting)]
    desk.token(desk.come_round(0, 3), END_TOKEN)
    assert desk.home.next_timer() == desk.now + CLOSE_WAIT_S
    desk.home.handle_timer(desk.now + CLOSE_WAIT_S - 0.01)
    assert desk.messages() == []
    desk.home.handle_timer(desk.now + CLOSE_WAIT_S)
    assert [type(message) for message in desk.messages()] == [Finished]
    assert desk.home.next_timer() is None
    desk.outbox.drain()
    desk.home.stage_connected(C)
    assert sent(desk.outbox) == []
    desk.home.stage_connected(B)
    assert sent(desk.outbox) == [(B, CloseSession(5, 1, keep=True))]
    desk.home.session_closed(C, SessionClosed(5, 1, LinkCounters()), desk.now)  # not a stage
    assert desk.fed() == []
    desk.home.session_closed(B, SessionClosed(5, 1, LinkCounters()), desk.now)
    assert desk.fed() == [(0, (4, 5, 6))]
    assert desk.messages() == []


def test_home_alone_needs_nobodys_word() -> None:
    desk = Desk(plan_of(A))
    desk.begin(ask_of(tokens_max=1))
    desk.token(desk.come_round(0, 3), 41)
    assert [type(message) for message in desk.messages()] == [Piece, Finished]
    assert desk.home.sessions_open == 0


def test_a_new_epoch_goes_on_with_the_last_known_token() -> None:
    desk, job = running()
    desk.token(job, 41)
    desk.fed()
    desk.now = 20.0
    desk.follow(replace(PLAN, epoch=6))
    assert desk.resumed() == (2, 3)
    assert desk.fed() == [(3, (41,))]
    desk.token(job, 55)  # the old epoch's token
    step = replace(returned_step(3, 1, session=2), epoch=6)
    desk.home.row_returned(step, desk.now)
    (again,) = [each for each in jobs(desk.outbox) if isinstance(each, HeadJob)]
    assert (again.epoch, again.session, again.position) == (6, 2, 4)
    assert [type(message) for message in desk.messages()] == [Piece]


def test_a_prompt_that_was_being_tokenized_is_tokenized_again() -> None:
    desk = Desk()
    desk.home.ask(GATEWAY, ask_of())
    desk.outbox.drain()
    desk.follow(replace(PLAN, epoch=6))
    (job,) = jobs(desk.outbox)
    assert isinstance(job, TokenizeJob)
    assert job.session == 2
    desk.home.tokenized(1, read(9), desk.now)
    assert desk.fed() == []
    desk.home.tokenized(2, read(9), desk.now)
    assert desk.fed() == [(0, (9,))]


SAID = (Turn(USER, "a"), Turn(ASSISTANT, "b")) * 3


def test_what_was_left_out_of_the_history_stays_out() -> None:
    desk = Desk()
    desk.home.ask(GATEWAY, ask_of(history=SAID))
    (job,) = jobs(desk.outbox)
    assert isinstance(job, TokenizeJob)
    assert (job.ask.history, job.context) == (SAID, desk.plan.context)
    desk.home.tokenized(job.session, PromptTokens((1, 2), 4, is_templated=False), desk.now)
    desk.outbox.drain()
    desk.token(desk.come_round(0, 2), 41)
    assert desk.messages() == [Piece(7, 0, (41,), "<41>", 4, is_templated=False)]
    desk.home.ask(GATEWAY, ask_of(history=SAID))  # the gateway has lost its link, and all of that
    assert desk.messages() == [Piece(7, 0, (41,), "<41>", 4, is_templated=False)]


def test_when_another_is_home_answers_are_forgotten_and_ends_are_told() -> None:
    desk, job = running(tokens_max=1)
    desk.begin(ask_of(request=8))
    desk.token(job, 41)
    desk.messages()
    desk.follow(plan_of(B, A, epoch=6))
    assert [type(message) for message in desk.messages()] == [Finished]
    assert desk.home.sessions_open == 0


def test_a_gateway_resumes_with_the_tokens_that_it_knows() -> None:
    desk = Desk()
    desk.begin(ask_of(tokens=(41, 40), tokens_max=3))
    assert desk.resumed() == (1, 4)
    assert desk.fed() == [(4, (40,))]
    job = desk.come_round(4)
    desk.token(job, 43)
    assert desk.messages() == [Piece(7, 2, (43,), "<40><43>", 0)]


def test_a_gateway_that_knows_all_gets_the_end() -> None:
    desk = Desk(plan_of(A))
    desk.begin(ask_of(tokens=(41, 42), tokens_max=2))
    (finished,) = desk.messages()
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.tokens_count) == ("length", 2)
    assert desk.fed() == []


def test_a_request_that_is_under_way_is_told_again_what_it_missed() -> None:
    desk, job = running()
    desk.token(job, 40)
    desk.token(desk.come_round(3), 41)
    desk.messages()
    desk.home.ask(GATEWAY, ask_of(tokens=(40,)))
    assert desk.messages() == [Piece(7, 1, (41,), "<40><41>", 0)]
    desk.home.ask(GATEWAY, ask_of(tokens=(40, 41)))
    assert desk.messages() == []
    assert desk.home.sessions_open == 1


def test_a_request_asked_again_while_its_cancelled_session_closes_begins_anew() -> None:
    desk, _ = running()
    desk.home.cancel(GATEWAY, 7, desk.now)
    desk.outbox.drain()
    desk.home.ask(GATEWAY, ask_of())
    assert [type(job) for job in jobs(desk.outbox)] == [TokenizeJob]
    assert desk.home.sessions_open == 2


def test_an_answer_goes_on_for_a_while_without_its_gateway() -> None:
    desk, job = running()
    desk.home.gateway_gone(GATEWAY, desk.now)
    assert desk.home.next_timer() == desk.now + GATEWAY_WAIT_S
    desk.token(job, 41)
    desk.messages()
    desk.home.ask(B, ask_of(attempt=1))
    assert desk.said == [(B, Piece(7, 0, (41,), "<41>", 0))]
    assert desk.home.next_timer() is None
    desk.said.clear()
    desk.home.ask(GATEWAY, ask_of())  # it slept, and its asker has gone elsewhere
    assert desk.said == []
    desk.home.cancel(GATEWAY, 7, desk.now)
    assert desk.home.sessions_open == 1
    desk.home.gateway_gone(B, desk.now)
    desk.home.handle_timer(desk.now + GATEWAY_WAIT_S)
    assert [message for _, message in sent(desk.outbox)][-1] == CloseSession(5, 1, True)


def test_an_answer_without_its_gateway_makes_room_for_others() -> None:
    desk = Desk(plan_of(A, B, sessions_max=1))
    first = desk.begin(ask_of())
    desk.home.gateway_gone(GATEWAY, desk.now)
    desk.outbox.drain()
    desk.home.ask(C, ask_of(request=8))
    (job,) = jobs(desk.outbox)
    assert isinstance(job, TokenizeJob)
    desk.home.tokenized(job.session, PromptTokens((1, 2), 0, False), desk.now)
    assert [message for _, message in sent(desk.outbox)] == [CloseSession(5, first, True)]


def test_the_context_ends_an_answer_and_refuses_a_prompt() -> None:
    desk = Desk(plan_of(A, context=4))
    desk.begin(ask_of())
    desk.token(desk.come_round(0, 3), 41)
    finished = desk.messages()[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.tokens_count) == ("length", 1)
    desk.begin(ask_of(request=8), (1, 2, 3, 4))
    (failure,) = desk.messages()
    assert isinstance(failure, Failure)
    assert failure.exit_code == EXIT_MISUSE
    assert "4 tokens" in failure.text
    assert desk.home.sessions_open == 0


def test_settings_out_of_bounds_are_refused() -> None:
    desk = Desk()
    desk.home.ask(GATEWAY, ask_of(sampling=SamplingSettings(top_p=0.0)))
    (failure,) = desk.messages()
    assert isinstance(failure, Failure)
    assert failure.exit_code == EXIT_MISUSE
    assert desk.home.sessions_open == 0


def test_requests_have_a_bound() -> None:
    desk = Desk()
    for request in range(REQUESTS_MAX):
        desk.home.ask(GATEWAY, ask_of(request=request))
    assert desk.messages() == []
    desk.home.ask(GATEWAY, ask_of(request=REQUESTS_MAX))
    (failure,) = desk.messages()
    assert isinstance(failure, Failure)
    assert desk.home.sessions_open == REQUESTS_MAX


@pytest.mark.parametrize(("epoch", "fails"), [(5, True), (4, False), (6, False)])
def test_a_stage_that_cannot_compute_ends_the_answer(epoch: int, fails: bool) -> None:
    desk, _ = running()
    desk.home.step_failed(StepFailed(epoch, 1, "not finite"), desk.now)
    assert desk.messages() == ([Failure(7, 1, "not finite")] if fails else [])


def test_an_error_is_told_once() -> None:
    desk, _ = running()
    for _ in range(2):
        desk.home.fail(1, EdgellamaError("no"), desk.now)
    assert desk.messages() == [Failure(7, 1, "no")]


def test_times_are_the_prompts_and_the_answers() -> None:
    desk = Desk(plan_of(A))
    desk.begin(ask_of(tokens_max=2))
    desk.now = 10.5
    desk.token(desk.come_round(0, 3), 41)
    desk.now = 12.0
    desk.token(desk.come_round(3), 42)
    finished = desk.messages()[-1]
    assert isinstance(finished, Finished)
    assert (finished.prompt_us, finished.predicted_us) == (500_000, 1_500_000)


def test_rows_of_these_tests_have_the_plans_width() -> None:
    assert rows_of(2).halves.shape == (2, WIDTH)
