"""Meshes whose links go over TCP, all of them or some: the answer is that of a single device."""

from __future__ import annotations

import pytest

from edgellama.testing.cluster import Pace, SimulatedCluster
from edgellama.testing.network import Conditions
from edgellama.values import SamplingSettings

SAMPLED = SamplingSettings(temperature=0.9, top_k=20, seed=7)
ROUGH = Conditions(loss=0.1, reordering=0.1, duplication=0.05)
SLOW = Pace(compute_s=(0.02, 0.05))


def trio(seed: int, *transports: str, conditions: Conditions = ROUGH) -> SimulatedCluster:
    """Three devices of which any two can hold the model's 12 layers."""
    cluster = SimulatedCluster(seed, conditions, pace=SLOW)
    for name, transport in zip(("owner", "second", "third"), transports, strict=True):
        model = cluster.model if name == "owner" else None
        cluster.start(name, 6, model=model, transport=transport)
    return cluster


def deaf(cluster: SimulatedCluster, name: str) -> None:
    """Let no datagram reach a device or leave it."""
    address = cluster.nodes[name].address
    for other in cluster.up():
        if other.address != address:
            for path in ((address, other.address), (other.address, address)):
                cluster.network.set_conditions(Conditions(loss=1.0), *path)


def transports(cluster: SimulatedCluster, name: str) -> list[str]:
    node = cluster.nodes[name]
    return [node.transport(other.node) for other in cluster.up() if other is not node]


@pytest.mark.parametrize("seed", range(2))
def test_all_links_over_tcp(seed: int) -> None:
    cluster = trio(seed, "tcp", "tcp", "tcp")
    cluster.until_ready(3)
    assert transports(cluster, "owner") == ["tcp", "tcp"]
    asked = cluster.new_ask("once upon a time " * 5, 20, SAMPLED, ignore_end=True)
    answer = cluster.nodes["second"].ask(asked)
    cluster.until_answered(answer)
    assert answer.finished
    cluster.until_idle()


def test_one_device_without_datagrams() -> None:
    cluster = trio(1, "auto", "auto", "auto")
    deaf(cluster, "third")
    cluster.until_ready(3)
    assert transports(cluster, "owner") == ["udp", "tcp"]
    assert transports(cluster, "third") == ["tcp", "tcp"]
    for node in cluster.up():
        answer = node.ask(cluster.new_ask("who", 10, SAMPLED, ignore_end=True))
        cluster.until_answered(answer)
        assert answer.finished


@pytest.mark.parametrize("seed", range(2))
def test_datagrams_stop_in_the_middle_of_an_answer(seed: int) -> None:
    cluster = trio(seed, "auto", "auto", "auto")
    cluster.until_ready(3)
    assert transports(cluster, "owner") == ["udp", "udp"]
    asked = cluster.new_ask("once upon a time " * 5, 60, SAMPLED, ignore_end=True)
    answer = cluster.nodes["owner"].ask(asked)
    cluster.until(lambda: len(answer.tokens) >= 5, "under way")
    deaf(cluster, "second")
    cluster.until_answered(answer, seconds=120.0)
    assert answer.finished
    cluster.until(lambda: transports(cluster, "second") == ["tcp", "tcp"], "over TCP", 60.0)


def test_a_device_over_tcp_dies_in_the_middle_of_an_answer() -> None:
    cluster = trio(3, "tcp", "tcp", "tcp")
    cluster.until_ready(3)
    asked = cluster.new_ask("once upon a time " * 5, 60, SAMPLED, ignore_end=True)
    answer = cluster.nodes["owner"].ask(asked)
    cluster.until(lambda: len(answer.tokens) >= 5, "under way")
    cluster.nodes["third"].kill()
    cluster.until_answered(answer, seconds=120.0)
    assert answer.finished
    cluster.until_ready(2)
    cluster.start("third", 6, transport="tcp")
    cluster.until_ready(3)


def test_a_guest_over_datagrams_asks_a_mesh_over_tcp() -> None:
    cluster = trio(2, "auto", "auto", "tcp")
    cluster.until_ready(3)
    guest = cluster.guest(cluster.nodes["owner"])
    answer = guest.ask(cluster.new_ask("who", 10, SAMPLED, ignore_end=True))
    cluster.until_answered(answer)
    assert answer.finished
