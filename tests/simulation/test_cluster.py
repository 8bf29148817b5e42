"""A mesh in virtual time: whatever happens to it, its tokens are those of a single device."""

from __future__ import annotations

import pytest

from edgellama.errors import EXIT_NO_MESH, ModelConflictError
from edgellama.plan.ram import Requirements, Unplaceable, place
from edgellama.testing.cluster import Answer, ClusterNode, Pace, SimulatedCluster
from edgellama.testing.fake_model import CONTEXT_MAX, FakeModel, ram_bytes
from edgellama.testing.network import Conditions
from edgellama.values import DeviceFacts, SamplingSettings
from edgellama.wire.messages import ALIVE, DEAD, LEFT

SEEDS = range(3)
ROUGH = Conditions(loss=0.05, reordering=0.1, duplication=0.05)
SLOW = Pace(compute_s=(0.02, 0.05))
"""Slow enough that a fault falls into the middle of an answer."""

SAMPLED = SamplingSettings(temperature=0.9, top_k=20, top_p=0.95, repeat_penalty=1.2, seed=7)


def trio(seed: int, conditions: Conditions = ROUGH, pace: Pace | None = None) -> SimulatedCluster:
    """Three devices of which any two can hold the model's 12 layers."""
    cluster = SimulatedCluster(seed, conditions, pace=pace)
    cluster.start("owner", 6, model=cluster.model)
    cluster.start("second", 6)
    cluster.start("third", 6)
    cluster.until_ready(3)
    return cluster


def by_role(cluster: SimulatedCluster) -> tuple[ClusterNode, list[ClusterNode]]:
    """Return home and the other stages, in the order of the ring."""
    plan = cluster.up()[0].core.planning.active
    assert plan is not None
    nodes = {node.node: node for node in cluster.up()}
    return nodes[plan.home], [nodes[stage.node] for stage in plan.stages[1:]]


def under_way(cluster: SimulatedCluster, answer: Answer, tokens: int = 3) -> None:
    cluster.until(lambda: len(answer.tokens) >= tokens or answer.ended, "under way")
    assert not answer.ended


def finish(cluster: SimulatedCluster, *answers: Answer) -> None:
    cluster.until_answered(*answers)
    assert all(answer.finished for answer in answers), [answer.failure for answer in answers]
    cluster.until_idle()


def long_ask(cluster: SimulatedCluster, sampling: SamplingSettings = SAMPLED):
    return cluster.new_ask("once upon a time " * 5, 40, sampling, ignore_end=True)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_any_node_and_any_guest_gets_the_single_devices_answer(seed: int, loss: float) -> None:
    cluster = trio(seed, Conditions(loss=loss, reordering=0.1, duplication=0.05))
    guests = [cluster.guest(node) for node in cluster.up()]
    askers = [*cluster.up(), *guests]
    finish(cluster, *(cluster.ask(each, cluster.new_ask(f"{i}")) for i, each in enumerate(askers)))
    finish(cluster, *(cluster.ask(each, long_ask(cluster)) for each in guests))


@pytest.mark.parametrize("seed", SEEDS)
def test_more_requests_than_sessions_wait_for_their_turn(seed: int) -> None:
    cluster = trio(seed)
    guest = cluster.guest(cluster.nodes["third"])
    answers = [cluster.ask(guest, cluster.new_ask(f"{n}" * n, 5 + n)) for n in range(9)]
    most = 0

    def done() -> bool:
        nonlocal most
        held = [len(node.engine.sessions_held()) for node in cluster.up()]
        most = max(most, *held)
        return all(answer.ended for answer in answers)

    cluster.until(done, "answered")
    assert most == 2
    finish(cluster, *answers)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cancelled_answer_frees_its_slots(seed: int) -> None:
    cluster = trio(seed, pace=SLOW)
    guest = cluster.guest(cluster.nodes["third"])
    for number in range(5):
        first, second = (cluster.ask(guest, long_ask(cluster)) for _ in range(2))
        if number % 2:
            under_way(cluster, first)
        else:
            cluster.run(cluster.dice.uniform(0.0, 0.3))
        guest.cancel(first)
        guest.cancel(second)
    cluster.until_idle()
    finish(cluster, cluster.ask(guest), cluster.ask(guest, long_ask(cluster)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_guest_that_is_gone_frees_its_slots(seed: int) -> None:
    cluster = trio(seed, pace=SLOW)
    guest = cluster.guest(cluster.nodes["second"])
    gone = [cluster.ask(guest, long_ask(cluster)) for _ in range(4)]
    under_way(cluster, gone[0])
    guest.vanish()
    other = cluster.ask(cluster.nodes["third"])
    finish(cluster, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_devices_that_join_one_after_the_other_change_no_token(seed: int) -> None:
    cluster = SimulatedCluster(seed, ROUGH, pace=SLOW)
    cluster.start("owner", 13, model=cluster.model)
    cluster.until_ready(1)
    for name in ("second", "third", "fourth"):
        answer = cluster.ask(cluster.nodes["owner"], long_ask(cluster))
        under_way(cluster, answer, 1)
        cluster.start(name, 13)
        finish(cluster, answer)
        cluster.until_ready(len(cluster.up()))
        finish(cluster, cluster.ask(cluster.nodes[name]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("again", [False, True])
def test_a_stage_that_dies_in_mid_answer_changes_no_token(seed: int, again: bool) -> None:
    cluster = SimulatedCluster(seed, ROUGH, pace=SLOW)
    cluster.start("owner", 12, model=cluster.model)
    cluster.start("second", 6)
    cluster.start("third", 6)
    cluster.until_ready(3)
    home, stages = by_role(cluster)
    answer = cluster.ask(home, long_ask(cluster))
    under_way(cluster, answer)
    victim = cluster.dice.choice(stages)
    victim.kill()
    if again:
        cluster.run(cluster.dice.uniform(0.0, 5.0))
        cluster.start(victim.name, 6)
    finish(cluster, answer)
    cluster.until_ready(3 if again else 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_when_home_dies_the_gateway_asks_the_next_home(seed: int) -> None:
    cluster = SimulatedCluster(seed, ROUGH, pace=SLOW)
    cluster.start("owner", 10, model=cluster.model)
    cluster.start("other", 11)
    cluster.start("great", 12)
    cluster.until_ready(3)
    home, _ = by_role(cluster)
    assert home.name == "great"
    for node in cluster.up():
        if node is not home:
            cluster.ask(node, long_ask(cluster))
    under_way(cluster, cluster.answers[0])
    home.kill()
    finish(cluster, *cluster.answers)
    assert by_role(cluster)[0].name == "other"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_file_of_another_model_is_refused_to_who_comes_later(seed: int) -> None:
    cluster = SimulatedCluster(seed, ROUGH)
    cluster.start("owner", 13, model=cluster.model)
    if seed % 2:
        cluster.start("second", 13)
    cluster.until_ready()
    late = cluster.start("late", 13, model=FakeModel("another"))
    cluster.until(lambda: not late.is_up, "given up")
    assert isinstance(late.error, ModelConflictError)
    assert "'hashes' offered by owner" in str(late.error)
    assert all(node.error is None for node in cluster.up())
    cluster.until_ready()
    finish(cluster, cluster.ask(cluster.nodes["owner"]))


@pytest.mark.parametrize("seed", SEEDS)
def test_too_little_memory_is_said_with_the_bytes_that_miss(seed: int) -> None:
    cluster = SimulatedCluster(seed)
    cluster.start("owner", 6, model=cluster.model)
    cluster.start("second", 4)
    cluster.run(3.0)
    answer = cluster.ask(cluster.guest(cluster.nodes["second"]))
    cluster.until(lambda: answer.ended, "refused")
    devices = [
        DeviceFacts(node.node, node.name, ram_bytes(layers))
        for node, layers in zip(cluster.up(), (6, 4), strict=True)
    ]
    missing = place(cluster.model.facts, devices, Requirements(CONTEXT_MAX, 2))
    assert isinstance(missing, Unplaceable)
    assert answer.failure is not None
    assert (answer.failure.exit_code, answer.failure.text) == (EXIT_NO_MESH, missing.reason)
    assert cluster.nodes["second"].told[-1] == missing.reason


@pytest.mark.parametrize("seed", SEEDS)
def test_who_has_all_layers_goes_on_without_the_models_file(seed: int) -> None:
    cluster = trio(seed, pace=SLOW)
    second, third = cluster.nodes["second"], cluster.nodes["third"]
    for node in (second, third):
        assert cluster.fetch(node, cluster.model.facts.root, range(cluster.model.layers))
    answer = cluster.ask(third, long_ask(cluster))
    under_way(cluster, answer)
    cluster.nodes["owner"].kill()
    finish(cluster, answer, cluster.ask(cluster.guest(second)))
    assert not [text for text in answer.notices if "offers a model" in text]


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_that_only_the_lost_device_had_are_waited_for(seed: int) -> None:
    cluster = trio(seed, pace=SLOW)
    answer = cluster.ask(cluster.nodes["third"], long_ask(cluster))
    under_way(cluster, answer)
    cluster.nodes["owner"].kill()
    cluster.until(lambda: all(each.core.planning.trouble for each in cluster.up()), "trouble")
    for node in cluster.up():
        late = cluster.ask(cluster.guest(node))
        cluster.until(lambda late=late: late.ended, "refused")  # type: ignore[misc]
        assert late.failure is not None
        assert late.failure.exit_code == EXIT_NO_MESH
        assert "no device that can be reached has the layers" in late.failure.text
    assert not answer.ended
    cluster.start("owner", 6, model=cluster.model)
    finish(cluster, answer)


def test_no_model_is_said() -> None:
    cluster = SimulatedCluster(1)
    node = cluster.start("one", 6)
    cluster.start("two", 6)
    cluster.run(2.0)
    answer = cluster.ask(cluster.guest(node))
    cluster.until(lambda: answer.ended, "refused")
    assert answer.failure is not None
    assert answer.failure.exit_code == EXIT_NO_MESH
    assert "no device here offers a model" in answer.failure.text


@pytest.mark.parametrize("seed", SEEDS)
def test_one_more_device_makes_place_for_the_model(seed: int) -> None:
    cluster = SimulatedCluster(seed, ROUGH)
    cluster.start("owner", 5, model=cluster.model)
    cluster.start("second", 5)
    cluster.run(3.0)
    assert all("are missing" in node.core.planning.trouble for node in cluster.up())
    cluster.start("third", 5)
    cluster.until_ready(3)
    finish(cluster, *(cluster.ask(node) for node in cluster.up()))


@pytest.mark.parametrize("seed", SEEDS)
def test_who_leaves_is_left_and_not_dead(seed: int) -> None:
    cluster = SimulatedCluster(seed, ROUGH, pace=SLOW)
    cluster.start("owner", 12, model=cluster.model)
    cluster.start("second", 6)
    leaver = cluster.start("third", 6)
    cluster.until_ready(3)
    answer = cluster.ask(cluster.nodes["owner"], long_ask(cluster))
    under_way(cluster, answer)
    leaver.leave()
    finish(cluster, answer)
    cluster.until_ready(2)
    for node in cluster.up():
        record = node.core.membership.record(leaver.node)
        assert record is not None
        assert record.state == LEFT
        assert [line for line in node.told if "third" in line and "left" in line]
        assert not [line for line in node.told if "lost" in line]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("who", ["owner", "second", "third"])
def test_a_device_that_starts_again_serves_again(seed: int, who: str) -> None:
    """With its old id and nothing of its old life: no session of that life may be met."""
    cluster = trio(seed, pace=SLOW)
    asker = cluster.nodes["second" if who == "third" else "third"]
    answer = cluster.ask(asker, long_ask(cluster))
    under_way(cluster, answer)
    cluster.nodes[who].kill()
    cluster.run(cluster.dice.choice([0.0, 0.01, 1.0, 6.0]))
    cluster.start(who, 6, model=cluster.model if who == "owner" else None)
    cluster.until_ready(3)
    if answer.failure is None:
        finish(cluster, answer)
    else:
        assert answer.failure.exit_code == EXIT_NO_MESH  # the two others cannot hold the model
        cluster.check(answer)
    finish(cluster, *(cluster.ask(node) for node in cluster.up()))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cut_between_two_devices_only_delays(seed: int) -> None:
    cluster = trio(seed, pace=SLOW)
    home, stages = by_role(cluster)
    answers = [cluster.ask(node, long_ask(cluster)) for node in cluster.up()]
    under_way(cluster, answers[0])
    pair = cluster.dice.sample([home, *stages], 2)
    cluster.partition([pair[0]], [pair[1]])
    cluster.run(cluster.dice.uniform(1.0, 12.0))
    cluster.heal()
    finish(cluster, *answers)
    cluster.until_ready(3)
    states = [record.state for node in cluster.up() for record in node.core.membership.records()]
    assert states == [ALIVE] * 9


@pytest.mark.parametrize("seed", SEEDS)
def test_who_is_known_by_hearsay_alone_is_no_ghost(seed: int) -> None:
    """Two devices never reach a third, and the only one that does dies together with it."""
    cluster = SimulatedCluster(seed)
    cluster.start("owner", 13, model=cluster.model)
    cluster.start("second", 13)
    between = cluster.start("between", 13)
    cluster.until_ready(3)
    hidden = cluster.start("hidden", 13)
    cluster.partition([hidden], [cluster.nodes["owner"], cluster.nodes["second"]])
    cluster.until(
        lambda: all(len(node.core.membership.living()) == 4 for node in cluster.up()), "known"
    )
    cluster.run(13.0)  # as long as somebody reaches it, it is alive
    for node in cluster.up():
        assert [record.state for record in node.core.membership.records()] == [ALIVE] * 4
    between.kill()
    hidden.kill()
    cluster.until_ready(2)
    finish(cluster, *(cluster.ask(node) for node in cluster.up()))


@pytest.mark.parametrize("seed", SEEDS)
def test_two_halves_of_a_mesh_become_one_again(seed: int) -> None:
    cluster = SimulatedCluster(seed, ROUGH)
    cluster.start("owner", 13, model=cluster.model)
    for name in ("second", "third", "fourth"):
        cluster.start(name, 13)
    cluster.until_ready(4)
    nodes = cluster.up()
    half = cluster.dice.sample(nodes, 2)
    rest = [node for node in nodes if node not in half]
    cluster.partition(half, rest)
    cluster.run(15.0)
    for node in half:
        states = {each.name: each.state for each in node.core.membership.records()}
        assert [states[other.name] for other in half] == [ALIVE] * 2
        assert [states[other.name] for other in rest] == [DEAD] * 2
    cluster.heal()
    cluster.until_ready(4)
    finish(cluster, *(cluster.ask(node, long_ask(cluster)) for node in nodes))


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_whose_owner_was_away_are_fetched_when_it_is_back(seed: int) -> None:
    cluster = SimulatedCluster(seed, ROUGH)
    cluster.start("owner", 6, model=cluster.model)
    cluster.start("second", 6)
    cluster.start("third", 6)
    cluster.until(
        lambda: all(node.core.planning.epoch_seen for node in cluster.up()), "a plan is proposed"
    )
    cluster.nodes["owner"].kill()
    cluster.until(lambda: all(each.core.planning.trouble for each in cluster.up()), "trouble")
    cluster.start("owner", 6, model=cluster.model)
    cluster.until_ready(3)
    finish(cluster, *(cluster.ask(node) for node in cluster.up()))


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_that_cannot_be_had_for_a_while_are_tried_again(seed: int) -> None:
    """A stage that could not load is left out until the view changes, not for ever."""
    cluster = SimulatedCluster(seed, ROUGH)
    cluster.start("owner", 6, model=cluster.model)
    second = cluster.start("second", 6)
    third = cluster.start("third", 6)
    cluster.until(
        lambda: all(node.core.planning.epoch_seen for node in cluster.up()), "a plan is proposed"
    )
    cluster.partition([cluster.nodes["owner"]], [second, third])
    cluster.run(20.0)
    cluster.heal()
    cluster.until_ready(3)
    finish(cluster, *(cluster.ask(node) for node in cluster.up()))


def test_a_guest_is_told_how_the_mesh_stands() -> None:
    cluster = trio(1)
    guest = cluster.guest(cluster.nodes["second"])
    guest.query_status()
    cluster.until(lambda: bool(guest.statuses), "status")
    status = guest.statuses[0]
    plan = cluster.nodes["second"].core.planning.active
    assert plan is not None
    assert (status.ready, status.trouble, status.node) == (True, "", guest.gateway.node)
    assert status.model == (cluster.model.facts,)
    assert status.epoch >= 1
    assert {each.record.node: each.span for each in status.members} == {
        stage.node: stage.span for stage in plan.stages
    }
    assert [each.record.node for each in status.members if each.home] == [plan.home]


def test_the_route_and_the_counters_are_those_of_the_ring() -> None:
    cluster = trio(2, Conditions())
    answer = cluster.ask(cluster.nodes["third"], long_ask(cluster))
    finish(cluster, answer)
    plan = cluster.nodes["third"].core.planning.active
    assert plan is not None
    assert answer.finished is not None
    route = answer.finished.route
    assert [(each.node, each.span) for each in route] == [
        (each.node, each.span) for each in plan.stages
    ]
    steps = len(answer.tokens) + len(cluster.expected(answer).prompt_tokens) // 32
    assert answer.finished.counters.packets_sent >= 3 * steps


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    cluster = trio(3)
    answer = cluster.ask(cluster.nodes["third"], cluster.new_ask("x" * CONTEXT_MAX))
    cluster.until(lambda: answer.ended, "refused")
    assert answer.failure is not None
    assert answer.failure.exit_code == 2
    assert f"{CONTEXT_MAX + 1} tokens" in answer.failure.text
    cluster.until_idle()


def test_the_context_ends_an_answer() -> None:
    cluster = trio(4)
    ask = cluster.new_ask("x" * (CONTEXT_MAX - 9), 1000, ignore_end=True)
    answer = cluster.ask(cluster.nodes["third"], ask)
    finish(cluster, answer)
    assert answer.finished is not None
    assert (answer.finished.reason, len(answer.tokens)) == ("length", 8)


def test_settings_out_of_bounds_are_refused_before_and_after_there_is_a_plan() -> None:
    cluster = SimulatedCluster(5)
    cluster.start("owner", 13, model=cluster.model)
    bad = SamplingSettings(repeat_penalty=100.0)
    early = cluster.ask(cluster.nodes["owner"], cluster.new_ask(sampling=bad))
    cluster.until_ready(1)
    late = cluster.ask(cluster.nodes["owner"], cluster.new_ask(sampling=bad))
    cluster.until(lambda: early.ended and late.ended, "refused")
    assert early.notices == ["waiting for the devices to load their layers"]
    for answer in (early, late):
        assert answer.failure is not None
        assert answer.failure.exit_code == 2
        assert "repeat penalty" in answer.failure.text
    finish(cluster, cluster.ask(cluster.nodes["owner"]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("one_way", [False, True])
def test_neighbours_that_cannot_hear_each_other_go_on_by_way_of_a_third(
    seed: int, one_way: bool
) -> None:
    """For ever: the link never heals, and the answers come nevertheless."""
    cluster = trio(seed, pace=SLOW)
    home, stages = by_role(cluster)
    answers = [cluster.ask(node, long_ask(cluster)) for node in cluster.up()]
    under_way(cluster, answers[0])
    one, other = cluster.dice.sample([home, *stages], 2)
    if one_way:
        cluster.network.cut(one.address, other.address)
    else:
        cluster.partition([one], [other])
    finish(cluster, *answers)
    later = [cluster.ask(node, long_ask(cluster)) for node in cluster.up()]
    finish(cluster, *later)
    assert [record.state for record in one.core.membership.records()] == [ALIVE] * 3
