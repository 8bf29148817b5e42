"""The engine: jobs of the mesh on the stages of a real, small model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from edgellama_kernels import HiddenRows
from mesh_building import A, B, ask_of
from model_running import Ring

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.mesh.effects import (
    CloseJob,
    HeadJob,
    Job,
    JobResult,
    Likelihoods,
    PromptTokens,
    ScoreJob,
    StageJob,
    TokenizeJob,
)
from edgellama.model.hidden import take_rows
from edgellama.model.tokenizer import Tokenizer
from edgellama.node.engine import Engine, LoadedSpan
from edgellama.values import Plan, SamplingSettings, Span, StagePlacement, Turn

if TYPE_CHECKING:
    from edgellama_kernels import Kernels
    from model_running import PackedModel

PROMPT = (1, 77, 300, 5, 5, 410)
SPANS = (Span(0, 1), Span(1, 4))
PLAN = Plan(
    5,
    A,
    "00" * 32,
    64,
    2,
    tuple(StagePlacement(*each) for each in zip((A, B), SPANS, strict=True)),
)
TOKENIZE = TokenizeJob(1, ask_of("once"), 64)


def loaded(packed: PackedModel, plan: Plan, stage: int) -> LoadedSpan:
    span = plan.stages[stage].span
    at_home = stage == 0
    return LoadedSpan(
        plan,
        span,
        packed.config,
        packed.layers[span.first : span.past],
        packed.home if at_home else None,
        Tokenizer.from_gguf(packed.gguf) if at_home else None,
    )


@pytest.fixture
def engines(packed: PackedModel, kernels: Kernels) -> list[Engine]:
    """Return home's engine and the other stage's."""
    both = [Engine(kernels), Engine(kernels)]
    for stage, engine in enumerate(both):
        engine.install(loaded(packed, PLAN, stage))
    return both


def rows(result: JobResult | EdgellamaError) -> HiddenRows:
    assert not isinstance(result, EdgellamaError), result
    return result  # type: ignore[return-value]


def once_round(
    engines: list[Engine], tokens: tuple[int, ...], position: int, session: int = 1, epoch: int = 5
) -> int:
    """Return the token that follows, as home would have it computed."""
    hidden = rows(engines[0].run(StageJob(epoch, session, position, tokens=tokens)))
    for engine in engines[1:]:
        hidden = rows(engine.run(StageJob(epoch, session, position, hidden=hidden)))
    count = len(tokens)
    row = take_rows(hidden, count - 1, count)
    job = HeadJob(epoch, session, position + count, row, SamplingSettings(), ())
    token = engines[0].run(job)
    assert isinstance(token, int)
    return token


def answer(engines: list[Engine], count: int, session: int = 1) -> list[int]:
    tokens: list[int] = []
    step, position = PROMPT, 0
    for _ in range(count):
        tokens.append(once_round(engines, step, position, session))
        position += len(step)
        step = (tokens[-1],)
    return tokens


def test_two_engines_answer_as_the_whole_model(
    engines: list[Engine], packed: PackedModel, kernels: Kernels
) -> None:
    assert answer(engines, 8) == Ring(packed, kernels, [4]).greedy(PROMPT, 8)


def test_sessions_do_not_disturb_each_other(engines: list[Engine]) -> None:
    alone = answer(engines, 4)
    once_round(engines, (9, 8, 7), 0, session=2)
    for engine in engines:
        assert engine.run(CloseJob(5, 1)) is None
    assert answer(engines, 4, session=3) == alone


def test_home_without_layers_gives_the_embedding(packed: PackedModel, kernels: Kernels) -> None:
    spans = (Span(0, 0), Span(0, 4))
    stages = tuple(StagePlacement(*each) for each in zip((A, B), spans, strict=True))
    plan = replace(PLAN, stages=stages)
    both = [Engine(kernels), Engine(kernels)]
    for stage, engine in enumerate(both):
        engine.install(loaded(packed, plan, stage))
    assert once_round(both, PROMPT, 0) == Ring(packed, kernels, [4]).greedy(PROMPT, 1)[0]


def refused(result: JobResult | EdgellamaError) -> str:
    assert isinstance(result, EdgellamaError)
    assert "\n" not in str(result)
    return str(result)


def test_the_old_epoch_computes_until_it_is_dropped(
    engines: list[Engine], packed: PackedModel
) -> None:
    first = once_round(engines, PROMPT, 0)
    for stage, engine in enumerate(engines):
        engine.install(loaded(packed, replace(PLAN, epoch=6), stage))
    assert once_round(engines, PROMPT, 0, epoch=6) == first  # the same session, another epoch
    second = once_round(engines, (first,), len(PROMPT))
    for engine in engines:
        engine.drop_before(6)
    assert once_round(engines, (first,), len(PROMPT), epoch=6) == second
    assert "not home" in refused(engines[0].run(StageJob(5, 1, 0, tokens=PROMPT)))
    hidden = rows(engines[0].run(StageJob(6, 2, 0, tokens=PROMPT)))
    assert "not held" in refused(engines[1].run(StageJob(5, 1, 0, hidden=hidden)))
    assert "not home" in refused(engines[0].run(HeadJob(5, 1, 6, hidden, SamplingSettings(), ())))


@pytest.mark.parametrize("position", [1, len(PROMPT) - 1, len(PROMPT) + 1])
def test_a_step_out_of_its_turn_is_refused_and_does_no_harm(
    engines: list[Engine], position: int
) -> None:
    first = once_round(engines, PROMPT, 0)
    refused(engines[0].run(StageJob(5, 1, position, tokens=(3,))))
    assert once_round(engines, (first,), len(PROMPT)) >= 0


def test_more_sessions_than_planned_are_refused_until_one_is_closed(engines: list[Engine]) -> None:
    for session in (1, 2):
        once_round(engines, PROMPT, 0, session)
    assert "its maximum" in refused(engines[0].run(StageJob(5, 3, 0, tokens=PROMPT)))
    for engine in engines:
        engine.run(CloseJob(5, 1))
    once_round(engines, PROMPT, 0, 3)


@pytest.mark.parametrize("job", [CloseJob(5, 99), CloseJob(99, 1)])
def test_closing_what_is_not_open_does_nothing(engines: list[Engine], job: Job) -> None:
    assert engines[0].run(job) is None


def test_the_context_is_the_plans(engines: list[Engine]) -> None:
    refused(engines[0].run(StageJob(5, 1, 0, tokens=(5,) * 65)))


def test_a_prompt_is_tokenized_at_home_alone(engines: list[Engine], packed: PackedModel) -> None:
    expected = tuple(Tokenizer.from_gguf(packed.gguf).encode("once"))
    assert engines[0].run(TOKENIZE) == PromptTokens(expected, 0, is_templated=False)
    assert "not home" in refused(engines[1].run(TOKENIZE))


def test_without_a_template_each_turn_is_a_line(engines: list[Engine], packed: PackedModel) -> None:
    history = (Turn("user", "once"), Turn("assistant", "upon"))
    expected = tuple(Tokenizer.from_gguf(packed.gguf).encode("once\nupon\na time"))
    for raw in (False, True):
        ask = ask_of("a time", raw=raw, history=history)
        made = engines[0].run(TokenizeJob(1, ask, 64))
        assert made == PromptTokens(expected, 2, is_templated=False)


def test_a_history_too_long_is_cut_unless_an_answer_goes_on(
    engines: list[Engine], packed: PackedModel
) -> None:
    encode = Tokenizer.from_gguf(packed.gguf).encode
    history = (Turn("user", "once upon a time"), Turn("assistant", "there was")) * 4
    cut = encode("once upon a time\nthere was\nthen")
    context = 2 * len(cut) + 1
    made = engines[0].run(TokenizeJob(1, ask_of("then", history=history), context))
    assert made == PromptTokens(tuple(cut), 2, is_templated=False)
    whole = encode("\n".join([*(turn.content for turn in history), "then"]))
    going_on = ask_of("then", history=history, tokens=(5,))
    made = engines[0].run(TokenizeJob(1, going_on, context))
    assert made == PromptTokens(tuple(whole), 8, is_templated=False)


def test_a_system_text_needs_a_template(engines: list[Engine]) -> None:
    result = engines[0].run(TokenizeJob(1, ask_of("once", raw=False, system="Be brief."), 64))
    assert isinstance(result, MisuseError)
    assert "chat template" in refused(result)


def test_rows_are_scored(engines: list[Engine]) -> None:
    hidden = engines[0].run(StageJob(5, 1, 0, tokens=(5, 7)))
    assert isinstance(hidden, HiddenRows)
    scores = engines[0].run(ScoreJob(5, 1, 4, hidden, (7, 300)))
    assert isinstance(scores, Likelihoods)
    assert len(scores.nlls) == 2
    assert all(0 < nll < 20 for nll in scores.nlls)
    assert "not home" in refused(engines[1].run(ScoreJob(5, 1, 4, hidden, (7, 300))))


def test_running_out_of_memory_is_an_error_for_a_person(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(job: StageJob) -> HiddenRows:
        raise MemoryError

    monkeypatch.setattr(engines[0], "_run_stage", too_much)
    assert "--ram" in refused(engines[0].run(StageJob(5, 1, 0, tokens=PROMPT)))


def test_other_kernels_take_over_in_open_sessions(
    engines: list[Engine], packed: PackedModel, kernels: Kernels
) -> None:
    import edgellama_kernels

    expected = Ring(packed, kernels, [4]).greedy(PROMPT, 3)
    got = [once_round(engines, PROMPT, 0)]
    for engine in engines:
        engine.use(edgellama_kernels.load("numpy"))
        assert engine.backend == "numpy"
    got.append(once_round(engines, (got[0],), len(PROMPT)))
    got.append(once_round(engines, (got[1],), len(PROMPT) + 1))
    for engine in engines:
        engine.close()
    assert got == expected
