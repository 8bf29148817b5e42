"""An answer goes on under another plan with real layers: whatever is kept, the same tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from mesh_building import A, B
from model_running import Ring

from edgellama.errors import EdgellamaError
from edgellama.mesh.effects import CloseJob, FillJob, ForgetJob, HeadJob, Job, OpenJob, StageJob
from edgellama.model.hidden import take_rows
from edgellama.node.engine import Engine, LoadedSpan
from edgellama.values import Plan, SamplingSettings, Span, StagePlacement

if TYPE_CHECKING:
    from edgellama_kernels import HiddenRows, Kernels
    from model_running import PackedModel

PROMPT = (1, 77, 300, 5, 5, 410)
KEY = 4711
LAYERS = 4


def plan_of(cut: int, epoch: int, context: int = 64) -> Plan:
    """Return a plan of two stages."""
    stages = (StagePlacement(A, Span(0, cut)), StagePlacement(B, Span(cut, LAYERS)))
    return Plan(epoch, A, "00" * 32, context, 2, stages)


class TwoEngines:
    """Home and another stage, and the answer so far."""

    def __init__(self, packed: PackedModel, kernels: Kernels) -> None:
        self.packed = packed
        self.engines = [Engine(kernels), Engine(kernels)]
        self.tokens = list(PROMPT)

    def install(self, plan: Plan, *stages: int) -> None:
        self.plan = plan
        for stage in stages or (0, 1):
            span = plan.stages[stage].span
            layers = self.packed.layers[span.first : span.past]
            home = self.packed.home if stage == 0 else None
            loaded = LoadedSpan(plan, span, self.packed.config, layers, home, None)
            self.engines[stage].install(loaded)
            self.engines[stage].drop_before(plan.epoch)

    def run(self, stage: int, job: Job) -> HiddenRows:
        result = self.engines[stage].run(job)
        assert not isinstance(result, EdgellamaError), result
        return result  # type: ignore[return-value]

    def open(self, length: int) -> list[tuple[int, ...]]:
        """Go on at this position; return what each stage's layers hold."""
        job = OpenJob(self.plan.epoch, 1, KEY, length)
        return [self.run(stage, job) for stage in (0, 1)]  # type: ignore[misc]

    def step(self, position: int) -> None:
        """Feed what is known from this position on, and take the next token."""
        tokens = tuple(self.tokens[position:])
        hidden = self.run(0, StageJob(self.plan.epoch, 1, position, tokens=tokens))
        hidden = self.run(1, StageJob(self.plan.epoch, 1, position, hidden=hidden))
        row = take_rows(hidden, len(tokens) - 1, len(tokens))
        head = HeadJob(self.plan.epoch, 1, len(self.tokens), row, SamplingSettings(), ())
        self.tokens.append(self.run(0, head))  # type: ignore[arg-type]

    def fill(self, stage: int, span: Span, position: int, hidden: HiddenRows) -> HiddenRows:
        return self.run(stage, FillJob(self.plan.epoch, 1, span, position, hidden=hidden))

    def fill_home(self, past_layer: int, first: int, past: int) -> HiddenRows:
        tokens = tuple(self.tokens[first:past])
        span = Span(0, past_layer)
        return self.run(0, FillJob(self.plan.epoch, 1, span, first, tokens))


@pytest.fixture
def two(packed: PackedModel, kernels: Kernels) -> TwoEngines:
    two = TwoEngines(packed, kernels)
    two.install(plan_of(2, 5))
    two.open(0)
    two.step(0)
    for _ in range(3):
        two.step(len(two.tokens) - 1)
    return two


@pytest.fixture
def expected(packed: PackedModel, kernels: Kernels) -> list[int]:
    return [*PROMPT, *Ring(packed, kernels, [LAYERS]).greedy(PROMPT, 8)]


def finish(two: TwoEngines, target: int, expected: list[int]) -> None:
    two.step(target)
    while len(two.tokens) < len(expected):
        two.step(len(two.tokens) - 1)
    assert two.tokens == expected


def test_a_plan_that_is_loaded_again_loses_no_answer(two: TwoEngines, expected: list[int]) -> None:
    two.install(two.plan)
    finish(two, len(two.tokens) - 1, expected)


def test_with_the_same_cut_nothing_is_lacking(two: TwoEngines, expected: list[int]) -> None:
    target = len(two.tokens) - 1
    two.install(plan_of(2, 6))
    assert two.open(target) == [(target,) * 2] * 2
    finish(two, target, expected)


def test_a_cache_longer_than_where_it_goes_on_is_used_up_to_there(
    two: TwoEngines, expected: list[int]
) -> None:
    two.install(plan_of(2, 6))
    two.tokens = two.tokens[:8]
    assert two.open(7) == [(7, 7), (7, 7)]
    finish(two, 7, expected)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_home_takes_layers_over(two: TwoEngines, expected: list[int], chunk: int) -> None:
    """Home holds layers 0 and 1 and gets 2: the other stage goes on with 3 alone."""
    target = len(two.tokens) - 1
    two.install(plan_of(3, 6))
    assert two.open(target) == [(target, target, 0), (target,)]
    for first, past in pairwise([*range(0, target, chunk), target]):
        two.fill_home(3, first, past)
    finish(two, target, expected)


def test_a_stage_is_lost_and_another_begins_with_nothing(
    two: TwoEngines, expected: list[int], kernels: Kernels
) -> None:
    target = len(two.tokens) - 1
    two.engines[1] = Engine(kernels)
    two.install(plan_of(2, 6))
    assert two.open(target) == [(target,) * 2, (0, 0)]
    rows = two.fill_home(2, 0, target)  # what home holds already it writes again alike
    two.fill(1, Span(2, 4), 0, rows)
    finish(two, target, expected)


def test_a_stage_takes_over_layers_before_its_own(two: TwoEngines, expected: list[int]) -> None:
    target = len(two.tokens) - 1
    two.install(plan_of(1, 6))
    assert two.open(target) == [(target,), (0, target, target)]
    rows = two.fill_home(1, 0, target)
    two.fill(1, Span(1, 2), 0, rows)
    finish(two, target, expected)


def test_layers_in_the_middle_alone_are_filled(two: TwoEngines, expected: list[int]) -> None:
    """Rows from before layer 2 fill it; layer 3, held already, is passed over."""
    target = len(two.tokens) - 1
    rows = two.fill_home(2, 0, target)
    two.install(plan_of(1, 6))
    two.open(target)
    two.fill(1, Span(1, 2), 0, two.fill_home(1, 0, target))
    two.fill(1, Span(2, 3), 0, rows)
    finish(two, target, expected)


def test_what_lacks_the_past_cannot_be_filled(two: TwoEngines) -> None:
    target = len(two.tokens) - 1
    two.install(plan_of(1, 6))
    two.open(target)
    rows = two.fill_home(1, 0, target)
    for job in (
        FillJob(6, 1, Span(1, 2), 1, hidden=take_rows(rows, 1, 2)),
        FillJob(6, 1, Span(0, 2), 0, hidden=rows),
        FillJob(6, 9, Span(1, 2), 0, hidden=rows),
        FillJob(5, 1, Span(1, 2), 0, hidden=rows),
        StageJob(6, 1, target, hidden=take_rows(rows, 0, 1)),
    ):
        assert isinstance(two.engines[1].run(job), EdgellamaError)


@pytest.mark.parametrize("how", ["another context", "forgotten", "no name", "other answers"])
def test_what_does_not_serve_is_not_used(two: TwoEngines, how: str, kernels: Kernels) -> None:
    target = len(two.tokens) - 1
    if how == "no name":
        two = TwoEngines(two.packed, kernels)
        two.install(plan_of(2, 5))
        two.step(0)
    if how == "another context":
        two.install(plan_of(2, 6, context=128))
    else:
        two.install(plan_of(2, 6))
    for engine in two.engines:
        if how == "forgotten":
            engine.run(ForgetJob(KEY))
        if how == "other answers":  # its memory is needed for others
            for session in (2, 3):
                engine.run(OpenJob(6, session, KEY + session, 0))
    if how == "other answers":
        assert all(not engine._kept.answers() for engine in two.engines)
        return
    assert two.open(target) == [(0, 0), (0, 0)]


def test_a_change_of_plans_in_the_middle_of_filling_keeps_what_is_filled(
    two: TwoEngines, expected: list[int]
) -> None:
    target = len(two.tokens) - 1
    two.install(plan_of(1, 6))
    two.open(target)
    two.fill(1, Span(1, 2), 0, two.fill_home(1, 0, 5))
    two.install(replace(two.plan, epoch=7))
    assert two.open(target) == [(target,), (5, target, target)]
    two.fill(1, Span(1, 2), 5, two.fill_home(1, 5, target))
    finish(two, target, expected)


def test_a_step_that_came_before_its_name_keeps_its_cache(two: TwoEngines) -> None:
    two.install(plan_of(2, 6))
    hidden = two.run(0, StageJob(6, 2, 0, tokens=PROMPT))
    two.run(1, StageJob(6, 2, 0, hidden=hidden))
    held = len(PROMPT)
    assert two.run(1, OpenJob(6, 2, 99, 0)) == (held, held)  # type: ignore[comparison-overlap]


NEXT = (*PROMPT[:5], 9, 44)  # shares five tokens with the answer before


@pytest.fixture
def next_expected(packed: PackedModel, kernels: Kernels) -> list[int]:
    return [*NEXT, *Ring(packed, kernels, [LAYERS]).greedy(NEXT, 5)]


def end(two: TwoEngines) -> None:
    for engine in two.engines:
        assert engine.run(CloseJob(two.plan.epoch, 1, keep=True)) is None


def begin_next(two: TwoEngines, length: int) -> list[tuple[int, ...]]:
    two.tokens = list(NEXT)
    job = OpenJob(two.plan.epoch, 1, KEY + 1, length, continues=KEY, shared=5)
    return [two.run(stage, job) for stage in (0, 1)]  # type: ignore[misc]


def test_a_question_goes_on_from_the_answer_before(
    two: TwoEngines, next_expected: list[int]
) -> None:
    end(two)
    assert begin_next(two, 5) == [(5, 5)] * 2
    finish(two, 5, next_expected)


def test_what_the_two_do_not_share_never_serves(two: TwoEngines, next_expected: list[int]) -> None:
    """The question came further before the plan changed than this device has heard."""
    end(two)
    two.install(plan_of(2, 6))
    assert begin_next(two, 6) == [(5, 5)] * 2
    two.fill(1, Span(2, 4), 5, two.fill_home(2, 5, 6))
    finish(two, 6, next_expected)


def test_under_its_own_name_it_is_found_first(two: TwoEngines, next_expected: list[int]) -> None:
    end(two)
    begin_next(two, 5)
    two.step(5)
    two.step(len(two.tokens) - 1)
    known = list(two.tokens)
    two.install(plan_of(1, 6))
    held = begin_next(two, len(known) - 1)
    assert held == [(8,), (0, 8, 8)]
    two.tokens = known
    two.fill(1, Span(1, 2), 0, two.fill_home(1, 0, 8))
    finish(two, 8, next_expected)


def test_an_ended_answer_makes_room_for_new_ones(two: TwoEngines) -> None:
    end(two)
    for session in (2, 3):
        two.run(0, OpenJob(5, session, session, 0))
        two.run(0, StageJob(5, session, 0, tokens=PROMPT))
    two.run(0, CloseJob(5, 2))
    assert begin_next(two, 5) == [(0, 0), (5, 5)]


def test_who_is_continued_is_kept_no_longer_where_the_answer_itself_is_found(
    two: TwoEngines,
) -> None:
    """Nobody would forget it: the stage's deadline for it ended when the question came."""
    for engine in two.engines:
        engine.run(OpenJob(two.plan.epoch, 2, KEY + 1, 0))
        engine.run(CloseJob(two.plan.epoch, 2, keep=True))
    end(two)
    assert all(set(engine._kept.answers()) == {KEY, KEY + 1} for engine in two.engines)
    begin_next(two, 5)
    assert not any(engine._kept.answers() for engine in two.engines)
