"""Devices that leave on purpose or come in the middle: answers go on while others load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgellama.mesh.leaving import HAND_OVER_S
from edgellama.mesh.membership import Membership
from edgellama.mesh.planning import Planning
from edgellama.testing.cluster import Answer, ClusterNode, Pace, SimulatedCluster
from edgellama.testing.network import Conditions
from edgellama.wire.messages import LEFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.values import NodeId

SEEDS = range(2)
LOSSY = Conditions(loss=0.05, reordering=0.1, duplication=0.05)
LOADS_SLOWLY = Pace(compute_s=(0.005, 0.01), load_s=(2.0, 4.5))
"""Loading takes as long as a hundred tokens or more, and some devices longer than others."""

GAP_MAX_S = 0.75
"""Of virtual time between two tokens: less than half of what the quickest device loads for."""

ROLES = ["home", "middle", "last", "gateway"]


def mesh(seed: int, *offers: float, files: str = "a") -> SimulatedCluster:
    """Return devices a, b, ... that offer so many layers each; ``files`` have the model."""
    cluster = SimulatedCluster(seed, LOSSY, pace=LOADS_SLOWLY)
    for name, layers in zip("abcdef", offers, strict=False):
        cluster.start(name, layers, model=cluster.model if name in files else None)
    cluster.until_ready()
    return cluster


def ring(cluster: SimulatedCluster) -> list[ClusterNode]:
    plan = cluster.up()[0].core.planning.active
    assert plan is not None
    by_node = {node.node: node for node in cluster.up()}
    return [by_node[stage.node] for stage in plan.stages]


def long_answer(cluster: SimulatedCluster, gateway: ClusterNode) -> Answer:
    """Ask by a guest for more than comes while anybody loads, and wait until it has begun."""
    ask = cluster.new_ask("once upon a time", 320, ignore_end=True)
    answer = cluster.ask(cluster.guest(gateway), ask)
    cluster.until(lambda: len(answer.tokens) >= 3, "under way")
    return answer


def role(cluster: SimulatedCluster, name: str) -> tuple[ClusterNode, ClusterNode]:
    """Return who is of that role in the ring, and a gateway: another one, unless that is it."""
    home, middle, last = ring(cluster)
    leaver = {"home": home, "middle": middle, "last": last, "gateway": middle}[name]
    others = [node for node in (home, middle, last) if node is not leaver]
    return leaver, leaver if name == "gateway" else others[0]


def longest_gap_s(
    cluster: SimulatedCluster, answer: Answer, done: Callable[[], bool], what: str
) -> float:
    """Let time pass until then, and ten tokens on; return the longest time between two tokens."""
    tokens, came_at, longest, done_at = len(answer.tokens), cluster.network.now, 0.0, 0

    def is_over() -> bool:
        nonlocal tokens, came_at, longest, done_at
        longest = max(longest, cluster.network.now - came_at)
        if len(answer.tokens) > tokens:
            tokens, came_at = len(answer.tokens), cluster.network.now
        done_at = done_at or (done() and tokens)
        return answer.ended or bool(done_at and tokens >= done_at + 10)

    cluster.until(is_over, what)
    assert not answer.ended, answer
    return longest


def leave_without_a_pause(cluster: SimulatedCluster, name: str) -> tuple[ClusterNode, Answer]:
    """Let the device of that role hand over in the middle of an answer; return both."""
    leaver, gateway = role(cluster, name)
    answer = long_answer(cluster, gateway)
    leaver.hand_over()
    assert longest_gap_s(cluster, answer, lambda: not leaver.is_up, "gone") < GAP_MAX_S
    return leaver, answer


def finish(cluster: SimulatedCluster, *answers: Answer) -> None:
    cluster.until_answered(*answers)
    assert all(answer.finished for answer in answers), [answer.failure for answer in answers]
    cluster.until_idle()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ROLES)
def test_answers_go_on_until_the_others_have_taken_over(seed: int, name: str) -> None:
    cluster = mesh(seed, 9, 9, 9)
    leaver, answer = leave_without_a_pause(cluster, name)
    finish(cluster, answer)
    cluster.until_ready(2)
    assert not [line for line in leaver.told if "leaving at once" in line]
    for node in cluster.up():
        record = node.core.membership.record(leaver.node)
        assert record is not None
        assert record.state == LEFT


@pytest.mark.parametrize("seed", SEEDS)
def test_who_comes_while_an_answer_is_made_is_filled_first(seed: int) -> None:
    cluster = mesh(seed, 9, 9)
    answer = long_answer(cluster, cluster.nodes["a"])
    newcomer = cluster.start("c", 9)

    def is_taken_in() -> bool:
        plan = cluster.nodes["a"].core.planning.active
        return plan is not None and plan.stage_of(newcomer.node) is not None

    assert longest_gap_s(cluster, answer, is_taken_in, "taken in") < GAP_MAX_S
    finish(cluster, answer)
    cluster.until_ready(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["home", "middle", "last"])
def test_one_that_dies_while_it_leaves_is_like_any_that_dies(seed: int, name: str) -> None:
    cluster = mesh(seed, 9, 9, 9, files="abcd")
    leaver, gateway = role(cluster, name)
    answer = long_answer(cluster, gateway)
    leaver.hand_over()
    cluster.run(cluster.dice.uniform(0.0, 5.0))
    leaver.kill()
    finish(cluster, answer)
    cluster.until_ready(2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["home", "middle", "last"])
def test_another_dies_while_one_leaves(seed: int, name: str) -> None:
    """Whatever of the two is first, the last two can hold the model."""
    cluster = mesh(seed, 9, 9, 9, 9, files="abcd")
    nodes = ring(cluster)
    leaver = nodes[{"home": 0, "middle": 1, "last": 3}[name]]
    other = nodes[2]
    gateway = next(node for node in nodes if node not in (leaver, other))
    answer = long_answer(cluster, gateway)
    leaver.hand_over()
    cluster.run(cluster.dice.uniform(0.0, 7.0))
    other.kill()
    finish(cluster, answer)
    cluster.until(lambda: not leaver.is_up, "gone")
    cluster.until_ready(2)
    finish(cluster, cluster.ask(gateway))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_newcomer_that_dies_while_it_is_filled_costs_nothing(seed: int) -> None:
    cluster = mesh(seed, 9, 9)
    before = cluster.nodes["a"].core.planning.active
    assert before is not None
    cluster.pace = Pace(compute_s=(0.02, 0.04), load_s=(2.0, 4.5))  # its silence is long
    answer = long_answer(cluster, cluster.nodes["a"])
    newcomer = cluster.start("c", 9)
    cluster.until(
        lambda: cluster.nodes["a"].core.planning.is_changing, "a plan with it is prepared"
    )
    cluster.run(1.0)
    newcomer.kill()

    def has_settled() -> bool:
        plans = [node.core.planning for node in cluster.up()]
        return all(plan.active != before and not plan.is_changing for plan in plans)

    assert longest_gap_s(cluster, answer, has_settled, "settled") < GAP_MAX_S
    after = cluster.nodes["a"].core.planning.active
    assert after is not None
    assert after.stages == before.stages
    finish(cluster, answer)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("comes", [False, True], ids=["one leaves", "one comes"])
def test_home_dies_while_the_next_plan_is_prepared(seed: int, comes: bool) -> None:
    cluster = mesh(seed, 9, 9, 9, 9, files="abcd")
    home, second, _, last = ring(cluster)
    answer = long_answer(cluster, second)
    if comes:
        cluster.start("e", 12)
    else:
        last.hand_over()
    cluster.until(lambda: second.core.planning.is_changing, "another plan is prepared")
    cluster.run(cluster.dice.uniform(0.0, 3.0))
    home.kill()
    finish(cluster, answer)
    cluster.until_ready(4 if comes else 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_device_that_nobody_can_replace_says_so_and_goes(seed: int) -> None:
    cluster = mesh(seed, 6, 6)
    leaver = cluster.nodes["b"]
    leaver.hand_over()
    cluster.until(lambda: not leaver.is_up, "gone", seconds=2.0)
    (line,) = [each for each in leaver.told if each.startswith("leaving at once")]
    assert "cannot hold the model" in line
    assert "missing" in line


@pytest.mark.parametrize("seed", SEEDS)
def test_who_is_not_needed_goes_without_a_word(seed: int) -> None:
    cluster = mesh(seed, 13, 13)
    for name in ("b", "a"):  # the first is replaced by the other, which nobody replaces
        leaver = cluster.nodes[name]
        leaver.hand_over()
        cluster.until(lambda leaver=leaver: not leaver.is_up, "gone")
        assert not [line for line in leaver.told if "at once," in line]


@pytest.mark.parametrize("seed", SEEDS)
def test_all_that_leave_together_end_soon(seed: int) -> None:
    cluster = mesh(seed, 9, 9, 9)
    for node in cluster.up():
        node.hand_over()
    cluster.until(lambda: not cluster.up(), "all gone", seconds=2.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_patience_ends(seed: int) -> None:
    """Whoever would take over cannot be reached by the leaver's weights, and never says ready."""
    cluster = mesh(seed, 9, 9, 9)
    leaver = ring(cluster)[1]
    cluster.pace = Pace(load_s=(10 * HAND_OVER_S, 10 * HAND_OVER_S))
    answer = long_answer(cluster, ring(cluster)[0])
    leaver.hand_over()
    began = cluster.network.now
    cluster.until(lambda: not leaver.is_up, "gone")
    assert began + HAND_OVER_S <= cluster.network.now < began + HAND_OVER_S + 1.0
    assert [line for line in leaver.told if "have not taken over" in line]
    cluster.check(answer)


@pytest.mark.parametrize("seed", SEEDS)
def test_who_rests_holds_nothing_and_comes_back(seed: int) -> None:
    cluster = mesh(seed, 9, 9, 9)
    resting, gateway = role(cluster, ROLES[seed])
    answer = long_answer(cluster, gateway)
    resting.rest(resting=True)
    gap_s = longest_gap_s(cluster, answer, lambda: len(ring(cluster)) == 2, "handed over")
    assert gap_s < GAP_MAX_S
    finish(cluster, answer)
    cluster.until_ready(2)
    assert resting.is_up
    assert resting not in ring(cluster)
    finish(cluster, cluster.ask(resting))  # it is a gateway as before
    resting.rest(resting=False)
    cluster.until_ready(3)
    finish(cluster, cluster.ask(resting))


def plans_are_active_before_all_have_loaded(patch: pytest.MonkeyPatch) -> None:
    right = Planning.stage_ready

    def wrong(self: Planning, node: NodeId, epoch: int) -> bool:
        plan = self._greatest
        if plan is not None and plan.leader == self._me:
            self._ready |= {stage.node for stage in plan.stages}
        return right(self, node, epoch)

    patch.setattr(Planning, "stage_ready", wrong)


def the_leaver_goes_before_the_others_have_taken_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Planning, "needs_me", False)


def the_leaver_is_planned_with(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "staying", Membership.living)


@pytest.mark.parametrize(
    "plant",
    [
        plans_are_active_before_all_have_loaded,
        the_leaver_goes_before_the_others_have_taken_over,
        the_leaver_is_planned_with,
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clusters = [mesh(seed, 9, 9, 9) for seed in SEEDS]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        _ = [leave_without_a_pause(cluster, "middle") for cluster in clusters]
