"""q8 links: answers depend on the split, and on nothing else that happens to a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from edgellama_kernels import HiddenRows
from edgellama_kernels.row_codec import REFERENCE

from edgellama.model.sampling import sample
from edgellama.testing.cluster import Answer, ClusterNode, Pace, SimulatedCluster
from edgellama.testing.fake_model import (
    CONTEXT_MAX,
    FakeHead,
    FakeModel,
    FakeStage,
    FakeTokenizer,
    expected_answer,
)
from edgellama.testing.network import Conditions
from edgellama.values import SamplingSettings, Span

if TYPE_CHECKING:
    from edgellama.wire.messages import Ask

ROUGH = Conditions(loss=0.15, reordering=0.1, duplication=0.05)
SLOW = Pace(compute_s=(0.02, 0.05))
SAMPLED = SamplingSettings(temperature=0.9, top_k=20, seed=7)
NAMES = ("owner", "second", "third")


def trio(seed: int, conditions: Conditions, *wires: str) -> SimulatedCluster:
    """Three devices that are all needed, so that a split comes back when they do."""
    cluster = SimulatedCluster(seed, conditions, pace=SLOW)
    for number, (name, wire) in enumerate(zip(NAMES, wires, strict=True), 1):
        model = cluster.model if name == "owner" else None
        cluster.start(name, 4, model=model, node=f"{number:032x}", wire=wire)
    cluster.until_ready(3)
    return cluster


def ask(cluster: SimulatedCluster) -> Answer:
    asked = cluster.new_ask("once upon a time " * 5, 30, SAMPLED, ignore_end=True)
    return cluster.nodes["owner"].ask(asked)


def ended(cluster: SimulatedCluster, answer: Answer) -> None:
    """Wait for an answer of which a single device's is not the measure."""
    cluster.until(lambda: answer.ended, "answered", 120.0)
    assert answer.finished, answer.failure


def split_of(node: ClusterNode) -> tuple[tuple[Span, ...], tuple[str, ...]]:
    plan = node.core.planning.active
    assert plan is not None
    return tuple(stage.span for stage in plan.stages), plan.wires


def answer_by_hand(
    model: FakeModel, asked: Ask, spans: tuple[Span, ...], wires: tuple[str, ...]
) -> tuple[int, ...]:
    """Compute stage by stage with the codec between them, each token in one step."""
    head = FakeHead(model)
    stages = [FakeStage(model, span, CONTEXT_MAX, 1) for span in spans]
    for stage in stages:
        stage.open(0)
    prompt = tuple(FakeTokenizer().encode(asked.prompt))
    tokens: list[int] = []
    position, due = 0, prompt
    while len(tokens) < asked.tokens_max:
        hidden = head.embed(due)
        for stage, wire in zip(stages, wires, strict=True):
            hidden = stage.forward(0, hidden, position)
            if wire == "q8":
                halves = REFERENCE.unpack(REFERENCE.pack(hidden.halves), hidden.halves.shape[1])
                hidden = HiddenRows(halves, hidden.exponents)
        position += len(due)
        recent = (*prompt, *tokens)[max(0, position - asked.sampling.repeat_window) :]
        due = (sample(head.logits(hidden)[-1], asked.sampling, position, recent),)
        tokens.extend(due)
    return tuple(tokens)


@pytest.mark.parametrize("wires", [("q8", "", ""), ("", "q8", "f16"), ("q8", "q8", "q8")])
@pytest.mark.parametrize("conditions", [Conditions(), ROUGH], ids=["calm", "rough"])
def test_the_answer_follows_from_the_split(
    wires: tuple[str, str, str], conditions: Conditions
) -> None:
    cluster = trio(1, conditions, *wires)
    answer = ask(cluster)
    ended(cluster, answer)
    spans, used = split_of(cluster.nodes["owner"])
    assert "q8" in used
    assert answer.tokens == answer_by_hand(cluster.model, answer.ask, spans, used)
    # The hashes make any difference show: on the way something was really lost.
    assert answer.tokens != expected_answer(cluster.model, answer.ask).tokens


def test_without_q8_the_answer_is_exact() -> None:
    cluster = trio(1, ROUGH, "", "f16", "")
    answer = ask(cluster)
    cluster.until_answered(answer)
    assert split_of(cluster.nodes["owner"])[1] == ()
    assert answer.tokens == expected_answer(cluster.model, answer.ask).tokens


@pytest.mark.parametrize("seed", range(3))
def test_a_stage_that_dies_and_comes_back_changes_nothing(seed: int) -> None:
    """Its KV cache is lost: the known tokens go round again in chunks, and give the same bytes."""
    cluster = trio(seed, ROUGH, "q8", "q8", "q8")
    spans, wires = split_of(cluster.nodes["owner"])
    answer = ask(cluster)
    cluster.until(lambda: len(answer.tokens) >= 5, "under way")
    cluster.nodes["second"].kill()
    cluster.run(3.0)
    cluster.start("second", 4, node=f"{2:032x}", wire="q8")
    ended(cluster, answer)
    assert split_of(cluster.nodes["owner"]) == (spans, wires)
    assert answer.tokens == answer_by_hand(cluster.model, answer.ask, spans, wires)
