"""A device that comes and goes: it is taken in once more, then only when it has stayed."""

from __future__ import annotations

import pytest

from edgellama.mesh.steadiness import TRIAL_MAX_S, Steadiness
from edgellama.testing.cluster import ClusterNode, SimulatedCluster

TIMES = 6
IDS = {name: f"{number:032x}" for number, name in enumerate("abc", 1)}
ROOM = 9  # of the model's twelve layers: any two devices can hold it


def mesh(seed: int) -> SimulatedCluster:
    cluster = SimulatedCluster(seed)
    for name in "abc":
        cluster.start(name, ROOM, model=cluster.model if name == "c" else None, node=IDS[name])
    cluster.until_ready(3)
    return cluster


def holders(node: ClusterNode) -> set[str]:
    plan = node.core.planning.active
    assert plan is not None
    return {name for name in "abc" if plan.stage_of(IDS[name]) is not None}


def crash(cluster: SimulatedCluster, name: str) -> None:
    cluster.nodes[name].kill()
    cluster.run(12.0)
    cluster.start(name, ROOM)


def cut_off(cluster: SimulatedCluster, name: str) -> None:
    others = [node for node in cluster.up() if node.name != name]
    cluster.partition([cluster.nodes[name]], others)
    cluster.run(12.0)
    cluster.heal()


def plans_told(node: ClusterNode) -> int:
    return sum(line.startswith("plan ") for line in node.told)


def plans_while_it_comes_and_goes(cluster: SimulatedCluster, name: str, how: str) -> int:
    """Let a device come and go; return how many plans a steady one has followed meanwhile."""
    steady = cluster.nodes["c"]
    before = plans_told(steady)
    answer = cluster.ask(steady, cluster.new_ask("once upon a time", 300, ignore_end=True))
    for _ in range(TIMES):
        {"crash": crash, "cut off": cut_off}[how](cluster, name)
        cluster.run(12.0)  # a dead one is dialled every ten seconds
    cluster.until_answered(answer)
    assert answer.finished, answer.failure
    return plans_told(steady) - before


@pytest.mark.parametrize("how", ["crash", "cut off"])
@pytest.mark.parametrize("name", ["a", "b"])  # the leader is the one with the least id
def test_a_device_that_comes_and_goes_soon_changes_nothing_any_more(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = mesh(1)
    plans = plans_while_it_comes_and_goes(cluster, name, how)
    assert holders(cluster.nodes["c"]) == set("abc") - {name}
    assert [line for line in cluster.nodes[name].told if line.startswith("this device was lost")]
    cluster.run(TRIAL_MAX_S)
    cluster.until_ready(3)  # it has stayed
    with monkeypatch.context() as patch:
        patch.setattr(Steadiness, "returned", lambda *_, **__: False)
        restless = plans_while_it_comes_and_goes(mesh(1), name, how)
    # Gone, back, gone: then nobody counts on it. Else each time costs two plans.
    assert (plans, restless) == (3, 2 * TIMES)


def test_a_device_that_the_others_cannot_do_without_is_always_taken_in() -> None:
    cluster = SimulatedCluster(2)
    cluster.start("a", 7, model=cluster.model, node=IDS["a"])
    cluster.start("b", 7, node=IDS["b"])
    cluster.until_ready(2)
    for _ in range(3):
        cluster.nodes["b"].kill()
        cluster.run(1.0)
        cluster.start("b", 7)
        cluster.until_ready(2)


@pytest.mark.parametrize("offers", [(13, 6), (6, 13)])
def test_of_two_that_lose_each_other_the_one_that_can_holds_all_layers_alone(
    offers: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither can say whose link it is, and both are on trial for the other."""

    def plans_of_the_holder() -> int:
        cluster = SimulatedCluster(3)
        for name, layers in zip("ab", offers, strict=True):
            cluster.start(name, layers, model=cluster.model, node=IDS[name])
        cluster.until_ready(2)
        holder = cluster.nodes["a" if offers[0] > offers[1] else "b"]
        before = plans_told(holder)
        for _ in range(TIMES):
            cut_off(cluster, "a")
            cluster.run(12.0)
        last = cluster.ask(cluster.nodes["b"])
        cluster.until_answered(last)
        assert last.finished, last.failure
        return plans_told(holder) - before

    plans = plans_of_the_holder()
    monkeypatch.setattr(Steadiness, "returned", lambda *_, **__: False)
    assert (plans, plans_of_the_holder()) == (3, 2 * TIMES)
