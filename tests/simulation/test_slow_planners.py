"""Planning holds up a node's links for a moment; nobody takes that for its end."""

from __future__ import annotations

import pytest

from edgellama.mesh.planning import Planning
from edgellama.testing.cluster import SimulatedCluster

SLOW_PHONE_S = 1.0  # what EFFORT_AT_ONCE is made for
TOO_LONG_S = 5.0


def lost_while_all_plan(seed: int, planning_s: float, patch: pytest.MonkeyPatch) -> list[str]:
    """Let a device join and another leave while an answer is made; return whom anybody missed."""
    cluster = SimulatedCluster(seed)
    for name in "abc":
        cluster.start(name, 9, model=cluster.model if name == "a" else None)
    cluster.until_ready(3)
    by_node = {node.node: node for node in cluster.up()}
    considers = Planning._consider
    plans: list[str] = []

    def slowly(self: Planning) -> None:
        considers(self)
        node = by_node.get(self._me)
        if node is not None and node.is_up:
            plans.append(node.name)
            node.host.sleep(planning_s, clock_stops=False)

    patch.setattr(Planning, "_consider", slowly)
    answer = cluster.ask(cluster.nodes["b"], cluster.new_ask("once", 320, ignore_end=True))
    cluster.until(lambda: len(answer.tokens) >= 3, "under way")
    newcomer = cluster.start("d", 9)
    by_node[newcomer.node] = newcomer
    cluster.run(8.0)
    newcomer.hand_over()
    cluster.until(lambda: not newcomer.is_up, "gone")
    cluster.until_answered(answer)
    assert answer.finished, answer.failure
    assert set(plans) == set("abcd")
    return [line for node in by_node.values() for line in node.told if line.endswith("is lost")]


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_missed_while_it_plans(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost_while_all_plan(seed, SLOW_PHONE_S, monkeypatch) == []


def test_who_would_plan_for_too_long_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lost_while_all_plan(0, TOO_LONG_S, monkeypatch)
