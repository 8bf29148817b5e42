"""Conversations with a mesh in virtual time: what was computed serves, and no token changes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from edgellama.testing.cluster import Answer, Pace, SimulatedCluster
from edgellama.testing.fake_model import CONTEXT_MAX, FakeStage
from edgellama.testing.network import Conditions
from edgellama.values import ASSISTANT, USER, Turn

if TYPE_CHECKING:
    from edgellama_kernels import HiddenRows

    from edgellama.testing.cluster_node import ClusterNode

SEEDS = range(3)
ROUGH = Conditions(loss=0.05, reordering=0.1, duplication=0.05)
SLOW = Pace(compute_s=(0.02, 0.05))
STAGES = 3


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return where the number of every call's positions is added."""
    counts: list[int] = []
    forward = FakeStage.forward

    def counted(self: FakeStage, session: int, hidden: HiddenRows, position: int) -> HiddenRows:
        if self._span.layers < self._model.layers:  # not the single device's, for comparison
            counts.append(len(hidden.exponents))
        return forward(self, session, hidden, position)

    monkeypatch.setattr(FakeStage, "forward", counted)
    return counts


def trio(seed: int, pace: Pace | None = None) -> SimulatedCluster:
    cluster = SimulatedCluster(seed, ROUGH, pace=pace)
    cluster.start("owner", 6, model=cluster.model)
    cluster.start("second", 6)
    cluster.start("third", 6)
    cluster.until_ready(STAGES)
    return cluster


class Talk:
    """One conversation: each question brings what was said, as far as it was heard."""

    def __init__(self, cluster: SimulatedCluster, node: ClusterNode) -> None:
        self.cluster, self.node = cluster, node
        self.history: list[Turn] = []

    def begin(self, prompt: str, tokens_max: int = 12) -> Answer:
        ask = self.cluster.new_ask(prompt, tokens_max, ignore_end=True, history=tuple(self.history))
        return self.cluster.ask(self.node, ask)

    def end(self, answer: Answer) -> None:
        """Wait for the answer, which is compared with a single device's."""
        self.cluster.until_answered(answer)
        assert answer.finished, answer.failure
        self.history += [Turn(USER, answer.ask.prompt), Turn(ASSISTANT, answer.text)]

    def ask(self, prompt: str) -> Answer:
        answer = self.begin(prompt)
        self.end(answer)
        return answer


@pytest.mark.parametrize("seed", SEEDS)
def test_the_next_question_is_not_read_from_its_beginning(seed: int, computed: list[int]) -> None:
    cluster = trio(seed)
    talk = Talk(cluster, cluster.nodes["second"])
    first = talk.ask("once upon a time " * 9)
    cluster.until_idle()
    assert first.finished is not None
    known = len(first.finished.prompt_tokens)
    before = sum(computed)
    second = talk.ask("and then")
    assert second.finished is not None
    prompt = second.finished.prompt_tokens
    assert prompt[: known - 1] == first.finished.prompt_tokens[: known - 1]
    positions = (sum(computed) - before) / STAGES
    assert positions <= len(prompt) - known + len(second.tokens) + 1
    cluster.until_idle()


@pytest.mark.parametrize("seed", SEEDS)
def test_two_conversations_do_not_disturb_each_other(seed: int) -> None:
    cluster = trio(seed)
    talks = [Talk(cluster, node) for node in cluster.up()]
    for turn in range(4):
        answers = [talk.begin(f"turn {turn} " * (n + 3)) for n, talk in enumerate(talks)]
        for talk, answer in zip(talks, answers, strict=True):
            talk.end(answer)
    cluster.until_idle()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("victim", ["second", "third"])
def test_devices_die_and_return_between_and_in_answers(seed: int, victim: str) -> None:
    cluster = trio(seed, SLOW)
    talk = Talk(cluster, cluster.nodes["third" if victim == "second" else "second"])
    talk.ask("once upon a time " * 5)
    cluster.nodes[victim].kill()
    talk.ask("a wolf")
    cluster.start(victim, 6)
    cluster.until_ready(STAGES)
    answer = talk.begin("and a fox", 30)
    cluster.until(lambda: len(answer.tokens) > 3, "under way")
    cluster.nodes[victim].kill()
    talk.end(answer)
    talk.ask("the end")
    cluster.until_idle(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_conversation_that_outgrows_the_context(seed: int) -> None:
    cluster = trio(seed)
    talk = Talk(cluster, cluster.nodes["third"])
    kept = []
    for turn in range(12):
        answer = talk.ask(f"{turn} once upon a time")
        assert answer.finished is not None
        kept.append(len(answer.finished.prompt_tokens))
    assert max(kept) < CONTEXT_MAX
    assert any(later < earlier for earlier, later in pairwise(kept))
    cluster.until_idle()
