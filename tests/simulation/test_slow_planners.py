"""Planning holds up a node's links for a moment; nobody takes that for its end."""

from __future__ import annotations

import pytest

from edgellama.mesh.planning import Planning
from edgellama.testing.cluster import Answer, SimulatedCluster

SLOW_PHONE_S = 1.0  # what EFFORT_AT_ONCE is made for
TOO_LONG_S = 5.0


def joined_while_all_plan(
    seed: int, planning_s: float, patch: pytest.MonkeyPatch
) -> tuple[SimulatedCluster, Answer]:
    """Let a fourth device join in the middle of an answer; planning takes each of them so long."""
    cluster = SimulatedCluster(seed)
    for name in "abc":
        cluster.start(name, 9, model=cluster.model if name == "a" else None)
    cluster.until_ready(3)
    considers = Planning._consider
    planned: set[str] = set()

    def slowly(self: Planning) -> None:
        considers(self)
        for node in cluster.up():
            if node.node == self._me:
                planned.add(node.name)
                node.host.sleep(planning_s, clock_stops=False)

    patch.setattr(Planning, "_consider", slowly)
    answer = cluster.ask(cluster.nodes["b"], cluster.new_ask("once", 320, ignore_end=True))
    cluster.until(lambda: len(answer.tokens) >= 3, "under way")
    cluster.start("d", 9)
    cluster.run(8.0)
    assert planned == set("abcd")
    return cluster, answer


def missed(cluster: SimulatedCluster) -> list[str]:
    return [line for node in cluster.up() for line in node.told if line.endswith("is lost")]


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_missed_while_it_plans(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, answer = joined_while_all_plan(seed, SLOW_PHONE_S, monkeypatch)
    cluster.until_ready(4)
    cluster.nodes["d"].hand_over()
    cluster.until(lambda: not cluster.nodes["d"].is_up, "gone")
    cluster.until_answered(answer)
    cluster.until_ready(3)
    assert answer.finished, answer.failure
    assert missed(cluster) == []


def test_who_would_plan_for_too_long_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, _ = joined_while_all_plan(0, TOO_LONG_S, monkeypatch)
    assert missed(cluster)
