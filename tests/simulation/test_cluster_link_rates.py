"""A simulated mesh finds out what its links carry, by itself and while nobody waits."""

from __future__ import annotations

import itertools

import pytest

from edgellama.testing.cluster import ClusterNode, SimulatedCluster
from edgellama.testing.network import Conditions
from edgellama.values import BATCH, CHAT

FOUND_S = 40.0  # each node tries one link every 5 s


def three(
    seed: int, conditions: Conditions, split: str
) -> tuple[SimulatedCluster, list[ClusterNode]]:
    cluster = SimulatedCluster(seed, conditions)
    nodes = [
        cluster.start("owner", 5, model=cluster.model, split=split),
        cluster.start("second", 5),
        cluster.start("third", 5),
    ]
    cluster.until_ready(3)
    return cluster, nodes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bytes_per_s", [4e5, 2e6, 8e6])
def test_every_member_comes_to_know_the_rate_of_every_link(seed: int, bytes_per_s: float) -> None:
    cluster, nodes = three(seed, Conditions(bytes_per_second=bytes_per_s), CHAT)
    cluster.run(FOUND_S)
    for asked, (one, other) in itertools.product(nodes, itertools.permutations(nodes, 2)):
        rate = asked.core.measurements.rate(one.node, other.node)
        assert rate == pytest.approx(bytes_per_s, rel=0.15)


def test_an_answer_under_way_is_not_disturbed_by_probes() -> None:
    cluster, nodes = three(4, Conditions(bytes_per_second=1e6), BATCH)
    answer = cluster.ask(nodes[1], cluster.new_ask("once upon a time", 40))
    while not answer.ended:
        cluster.run(0.1)
        assert all(not node.core.measurements.rates.probes for node in nodes)
    cluster.until_answered(answer)
    cluster.run(FOUND_S)
    assert sum(node.core.measurements.rates.probes for node in nodes) == 3  # one for each pair


def test_a_mesh_that_splits_by_memory_probes_nothing() -> None:
    cluster, nodes = three(5, Conditions(), "")
    cluster.run(FOUND_S)
    assert [node.core.measurements.rates.probes for node in nodes] == [0, 0, 0]
