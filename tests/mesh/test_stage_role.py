"""Steps: each computed once and in order, whatever comes twice, early, late or broken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mesh_building import (
    MODEL,
    WIDTH,
    A,
    B,
    C,
    D,
    jobs,
    plan_of,
    rows_of,
    sent,
    step_of,
)

from edgellama.link.endpoint import Priority
from edgellama.mesh.coming_epoch import WAITING_BYTES_MAX, WAITING_MAX
from edgellama.mesh.effects import CloseJob, Outbox, Send, StageJob
from edgellama.mesh.stage_role import (
    CLOSED_KEPT,
    SESSIONS_MAX,
    STEPS_UNDER_WAY_MAX,
    StageRole,
    steps_under_way_max,
)
from edgellama.mesh.stage_session import held_bytes_max
from edgellama.model.hidden import join_rows, take_rows
from edgellama.values import LinkCounters, NodeId, Plan
from edgellama.wire.activations import CODEC_Q8, ActivationEncoder, decode_hidden
from edgellama.wire.messages import (
    CloseSession,
    SessionClosed,
    Step,
    StepFailed,
    StepNeeded,
    StepStale,
)

PLAN = plan_of(A, B, C)


class Stage:
    """The stage role of one node, and what its compute thread would be given."""

    def __init__(self, me: NodeId = B, plan: Plan = PLAN) -> None:
        self.outbox = Outbox()
        self.bytes_sent = 0
        self.role = StageRole(
            me, self.outbox, lambda: LinkCounters(bytes_sent=self.bytes_sent), lambda node: False
        )
        if plan is not None:
            self.role.follow(plan, WIDTH, 0.0)

    def positions(self) -> list[tuple[int, int]]:
        """Return (position, count) of the steps that are to be computed."""
        done = jobs(self.outbox)
        assert all(isinstance(job, StageJob) for job in done)
        return [(job.position, job.count) for job in done]  # type: ignore[attr-defined]

    def compute(self, step: Step) -> Step | None:
        """Take a step, compute it at once and return what comes home, if this is home."""
        self.role.receive(PLAN.stages[step.stage - 1].node, step)
        hidden = rows_of(step.count, 100 + step.position)
        job = StageJob(step.epoch, step.session, step.position, hidden=hidden)
        return self.role.computed(job, hidden)


def test_a_step_is_computed_and_passed_on() -> None:
    stage = Stage()
    stage.role.receive(A, step_of(0, 3, wanted=1))
    (job,) = jobs(stage.outbox)
    assert isinstance(job, StageJob)
    assert (job.epoch, job.session, job.position, job.count) == (5, 1, 0, 3)
    assert job.hidden is not None
    assert np.array_equal(job.hidden.halves, rows_of(3).halves)
    assert stage.role.computed(job, rows_of(3, 50)) is None
    (send,) = stage.outbox.drain()
    assert isinstance(send, Send)
    assert (send.node, send.priority) == (C, Priority.PREFILL)
    done = send.message
    assert isinstance(done, Step)
    assert (done.position, done.count, done.stage, done.wanted, done.rows) == (0, 3, 2, 1, 3)
    assert np.array_equal(
        decode_hidden(done.codec, 3, WIDTH, done.payload).halves, rows_of(3, 50).halves
    )


@pytest.mark.parametrize(("count", "wanted"), [(3, 1), (3, 0), (3, 2), (1, 1)])
def test_the_last_stage_sends_home_only_the_rows_that_it_wants(count: int, wanted: int) -> None:
    stage = Stage(C)
    stage.compute(step_of(0, count, stage=2, wanted=wanted))
    (_, (_, done)) = (None, sent(stage.outbox)[-1])
    assert isinstance(done, Step)
    assert (done.stage, done.count, done.rows) == (3, count, wanted)
    got = decode_hidden(done.codec, wanted, WIDTH, done.payload)
    assert np.array_equal(got.halves, rows_of(count, 100).halves[count - wanted :])


LOSSY = replace(PLAN, wires=("f16", "q8", "f16"))


def test_a_q8_link_carries_q8_and_the_same_bytes_each_time() -> None:
    stage = Stage(plan=LOSSY)
    stage.compute(step_of(0, 2))
    ((node, done),) = sent(stage.outbox)
    assert isinstance(done, Step)
    assert (node, done.codec) == (C, CODEC_Q8)
    stage.role.receive(A, step_of(0, 2))
    assert sent(stage.outbox) == [(node, done)]
    alone = Stage(plan=LOSSY)  # the same positions in steps of one, as after a loss
    for position in (0, 1):
        step = step_of(position)
        alone.role.receive(A, step)
        rows = take_rows(rows_of(2, 100), position, position + 1)
        alone.role.computed(StageJob(5, 1, position, hidden=rows), rows)
    steps = [each for _, each in sent(alone.outbox) if isinstance(each, Step)]
    decoded = [decode_hidden(each.codec, 1, WIDTH, each.payload, wire="q8") for each in steps]
    together = decode_hidden(done.codec, 2, WIDTH, done.payload, wire="q8")
    assert join_rows(decoded).halves.tobytes() == together.halves.tobytes()


@pytest.mark.parametrize("wires", [("q8", "f16", "f16"), ("f16", "q8", "q8")])
def test_a_step_under_another_codec_than_the_plans_fails(wires: tuple[str, str, str]) -> None:
    step = step_of(0)
    if wires[0] == "f16":
        codec, payload = ActivationEncoder(peer_reads_lz4=False, wire="q8").encode(rows_of(1))
        step = replace(step, codec=codec, payload=payload)
    stage = Stage(plan=replace(PLAN, wires=wires))
    stage.role.receive(A, step)
    ((node, failed),) = sent(stage.outbox)
    assert node == A
    assert isinstance(failed, StepFailed)
    assert f"codec {step.codec} on a link that carries {wires[0]}" in failed.reason


def test_one_row_goes_before_prefill() -> None:
    stage = Stage()
    stage.compute(step_of(0, 1))
    (send,) = [each for each in stage.outbox.drain() if isinstance(each, Send)]
    assert send.priority == Priority.DECODE


def test_steps_are_computed_in_order_whatever_the_order_they_come_in() -> None:
    stage = Stage()
    for position in (4, 2, 6):
        stage.role.receive(A, step_of(position, 2))
    assert stage.positions() == []
    stage.role.receive(A, step_of(0, 2))
    assert stage.positions() == [(0, 2), (2, 2), (4, 2), (6, 2)]


def test_a_repeated_step_is_answered_and_not_computed_again() -> None:
    stage = Stage()
    stage.compute(step_of(0, 2))
    first = sent(stage.outbox)
    stage.role.receive(A, step_of(0, 2))
    effects = stage.outbox.drain()
    assert sent(effects) == first
    assert len(effects) == 1


def test_a_step_repeated_while_it_is_computed_is_not_computed_twice() -> None:
    stage = Stage()
    for _ in range(3):
        stage.role.receive(A, step_of(0, 2))
    assert stage.positions() == [(0, 2)]


def test_outputs_are_kept_of_as_many_steps_as_can_be_under_way() -> None:
    stage = Stage()
    kept = steps_under_way_max(PLAN)
    assert kept == 4
    for position in range(kept + 1):
        stage.compute(step_of(position))
    stage.outbox.drain()
    stage.role.receive(A, step_of(0))
    assert sent(stage.outbox) == []
    stage.role.peer_connected(C)
    again = [message for _, message in sent(stage.outbox)]
    assert [step.position for step in again if isinstance(step, Step)] == [1, 2, 3, 4]
    stage.role.peer_connected(D)
    stage.role.peer_connected(A)
    assert sent(stage.outbox) == []


def test_steps_under_way_have_a_bound() -> None:
    assert steps_under_way_max(plan_of(A)) == 2
    assert steps_under_way_max(plan_of(*(f"{n:032x}" for n in range(40)))) == STEPS_UNDER_WAY_MAX


def test_too_many_early_steps_are_asked_for_again() -> None:
    stage = Stage()
    for position in range(1, STEPS_UNDER_WAY_MAX + 1):
        stage.role.receive(A, step_of(position))
    assert stage.outbox.drain() == []
    stage.role.receive(A, step_of(STEPS_UNDER_WAY_MAX + 1))
    assert sent(stage.outbox) == [(A, StepNeeded(5, 1, 0))]


def test_a_step_of_an_old_epoch_is_told_the_one_in_force() -> None:
    stage = Stage()
    stage.role.receive(A, step_of(0, epoch=4))
    assert sent(stage.outbox) == [(A, StepStale(5))]


def test_steps_of_the_next_epoch_wait_for_it() -> None:
    stage = Stage()
    for position in range(WAITING_MAX + 5):
        stage.role.receive(A, step_of(position, epoch=6))
    assert stage.outbox.drain() == []
    stage.role.follow(replace(PLAN, epoch=6, context=1000), WIDTH, 0.0)
    assert stage.positions() == [(position, 1) for position in range(WAITING_MAX)]


def test_what_waits_of_one_node_for_the_next_epoch_is_bounded_in_bytes() -> None:
    stage = Stage()
    large = replace(step_of(0, epoch=6), payload=bytes(WAITING_BYTES_MAX // 2))
    stage.role.receive(C, step_of(0, epoch=6, session=3))
    for session in (4, 5, 6):
        stage.role.receive(A, replace(large, session=session))  # fails when its epoch comes
    stage.role.receive(A, step_of(0, epoch=6))  # no room is left for what A says
    stage.role.receive(B, step_of(0, epoch=6))  # of another there is
    stage.role.follow(replace(PLAN, epoch=6, stages=PLAN.stages), WIDTH, 0.0)
    failed = [each.session for _, each in sent(stage.outbox) if isinstance(each, StepFailed)]
    assert failed == [4, 5]


def test_rows_that_wait_to_be_computed_are_bounded_in_bytes() -> None:
    """However they are put: in order, early, or as kept rows that nobody asked for."""
    rows_each, row_bytes = 512, 1 + 2 * WIDTH
    step = step_of(0, rows_each)
    plan = replace(PLAN, context=1 << 20, sessions_max=1)
    most = held_bytes_max(plan, WIDTH)
    assert most >= 16 * 32 * row_bytes  # what an honest neighbour may have under way
    for first in (0, 1):
        stage = Stage(plan=plan)
        came = 0
        for session in range(2):
            for number in range(12):
                position = first + number * rows_each
                stage.role.receive(A, replace(step, position=position, session=session))
                came += rows_each * row_bytes
        effects = stage.outbox.drain()
        failed = [each for _, each in sent(effects) if isinstance(each, StepFailed)]
        kept = came - len(failed) * rows_each * row_bytes
        assert most - rows_each * row_bytes < kept <= most
        assert all("wait on this device" in each.reason for each in failed)


def test_room_comes_back_as_steps_are_computed() -> None:
    stage = Stage(plan=replace(PLAN, context=1 << 20, sessions_max=1))
    for number in range(40):
        step = replace(step_of(0, 512), position=512 * number)
        stage.role.receive(A, step)
        rows = rows_of(512)
        stage.role.computed(StageJob(5, 1, step.position, hidden=rows), rows)
    done = [each for _, each in sent(stage.outbox)]
    assert len(done) == 40
    assert all(isinstance(each, Step) for each in done)


def test_a_step_of_anybody_but_the_stage_before_means_nothing() -> None:
    stage = Stage()
    for node in (B, C, D):
        stage.role.receive(node, step_of(0))
    assert stage.outbox.drain() == []


def test_a_broken_step_that_waited_does_not_stop_the_others() -> None:
    stage = Stage()
    stage.role.receive(A, replace(step_of(0, epoch=6, session=2), payload=b""))
    stage.role.receive(A, step_of(0, epoch=6))
    stage.role.follow(replace(PLAN, epoch=6), WIDTH, 0.0)
    assert stage.positions() == [(0, 1)]


def test_a_new_epoch_voids_sessions_and_what_is_being_computed() -> None:
    stage = Stage()
    stage.role.receive(A, step_of(0))
    (job,) = jobs(stage.outbox)
    assert isinstance(job, StageJob)
    stage.role.follow(replace(PLAN, epoch=6), WIDTH, 0.0)
    assert stage.role.computed(job, rows_of(1)) is None
    assert stage.outbox.drain() == []
    stage.role.receive(A, step_of(0, epoch=6))
    assert stage.positions() == [(0, 1)]


@pytest.mark.parametrize("stage_index", [0, 2, 3, 9])
def test_a_step_for_another_stage_means_nothing(stage_index: int) -> None:
    stage = Stage()
    stage.role.receive(A, step_of(0, stage=stage_index))
    assert stage.outbox.drain() == []


def test_nobody_may_send_home_a_step_of_its_own() -> None:
    """Home feeds stage 0 itself; a step from outside would stand in its way."""
    home = Stage(A)
    home.role.receive(B, step_of(0, stage=0))
    home.role.run_home(1, 0, (3, 4), 1)
    assert home.positions() == [(0, 2)]


def test_who_holds_no_layers_computes_nothing() -> None:
    stage = Stage(D)
    for index in range(4):
        stage.role.receive(A, step_of(0, stage=index))
    stage.role.peer_connected(A)
    assert stage.outbox.drain() == []


BROKEN = [
    ("no rows", replace(step_of(0, 2), payload=b"")),
    ("an unknown codec", replace(step_of(0, 2), codec=9)),
    ("fewer rows than positions", replace(step_of(0, 2), rows=1)),
    ("infinity", replace(step_of(0, 1), payload=bytes(1) + b"\x00\x7c" * WIDTH)),
    ("beyond the context", replace(step_of(0, 65), count=65)),
]


@pytest.mark.parametrize("step", [each[1] for each in BROKEN], ids=[each[0] for each in BROKEN])
def test_a_broken_step_fails_its_session_at_home(step: Step) -> None:
    stage = Stage()
    stage.role.receive(A, step)
    ((node, failed),) = sent(stage.outbox)
    assert node == A
    assert isinstance(failed, StepFailed)
    assert (failed.epoch, failed.session) == (5, 1)
    assert failed.reason
    stage.role.peer_connected(A)  # and says so again where the word may have been lost
    assert sent(stage.outbox) == [(A, failed)]


def test_what_cannot_be_computed_fails_its_session_at_home() -> None:
    stage = Stage()
    stage.role.receive(A, step_of(0))
    (job,) = jobs(stage.outbox)
    assert isinstance(job, StageJob)
    stage.role.failed(job, "not finite")
    assert sent(stage.outbox) == [(A, StepFailed(5, 1, "not finite"))]
    stage.role.failed(replace(job, epoch=4), "of an old epoch")
    assert sent(stage.outbox) == []


def test_a_closed_session_is_freed_and_its_counters_told() -> None:
    stage = Stage()
    stage.bytes_sent = 100
    stage.role.receive(A, step_of(0))
    stage.outbox.drain()
    stage.bytes_sent = 350
    stage.role.close(A, CloseSession(5, 1), 0.0)
    effects = stage.outbox.drain()
    assert sent(effects) == [(A, SessionClosed(5, 1, LinkCounters(bytes_sent=250)))]
    assert [each.job for each in effects if hasattr(each, "job")] == [CloseJob(5, 1)]


def test_late_steps_do_not_open_a_closed_session_again() -> None:
    stage = Stage()
    stage.role.close(A, CloseSession(5, 1), 0.0)
    assert sent(stage.outbox) == [(A, SessionClosed(5, 1, LinkCounters()))]
    stage.role.receive(A, step_of(0))
    stage.role.receive(A, step_of(7))
    assert stage.outbox.drain() == []
    stage.role.receive(A, step_of(0, session=2))
    assert stage.positions() == [(0, 1)]


def test_the_memory_of_closed_sessions_has_a_bound() -> None:
    stage = Stage()
    for session in range(CLOSED_KEPT + 1):
        stage.role.close(A, CloseSession(5, session), 0.0)
    stage.outbox.drain()
    stage.role.receive(A, step_of(0, session=0))
    assert stage.positions() == [(0, 1)]


def test_a_close_of_another_epoch_leaves_the_session_of_that_number_alone() -> None:
    stage = Stage()
    stage.role.receive(A, step_of(0))
    stage.outbox.drain()
    stage.role.close(A, CloseSession(4, 1), 0.0)
    assert sent(stage.outbox) == [(A, SessionClosed(4, 1, LinkCounters()))]
    stage.role.receive(A, step_of(1))
    assert stage.positions() == [(1, 1)]


def test_a_close_may_come_before_its_epoch() -> None:
    stage = Stage()
    stage.role.receive(A, step_of(0, epoch=6))
    stage.role.close(A, CloseSession(6, 1), 0.0)
    stage.outbox.drain()
    stage.role.follow(replace(PLAN, epoch=6), WIDTH, 0.0)
    assert stage.outbox.drain() == []


def test_open_sessions_have_a_bound() -> None:
    stage = Stage()
    for session in range(SESSIONS_MAX):
        stage.role.receive(A, step_of(0, session=session))
    stage.outbox.drain()
    stage.role.receive(A, step_of(0, session=SESSIONS_MAX))
    ((node, failed),) = sent(stage.outbox)
    assert node == A
    assert isinstance(failed, StepFailed)
    assert failed.session == SESSIONS_MAX


def test_home_alone_has_its_rows_at_once() -> None:
    home = Stage(A, plan_of(A))
    home.role.run_home(1, 0, (3, 4, 5), 1)
    (job,) = jobs(home.outbox)
    assert job == StageJob(5, 1, 0, tokens=(3, 4, 5))
    assert isinstance(job, StageJob)
    assert job.count == 3
    done = home.role.computed(job, rows_of(3))
    assert done is not None
    assert (done.stage, done.rows, done.wanted) == (1, 1, 1)
    assert np.array_equal(home.role.last_rows(done).halves, rows_of(3).halves[2:])
    assert home.outbox.drain() == []


def test_the_model_of_these_tests_is_as_wide_as_its_rows() -> None:
    assert rows_of(1).halves.shape == (1, WIDTH)
    assert MODEL.layers == 12
