"""Who comes and goes gets no layers for a while, unless the others cannot do without."""

from __future__ import annotations

import pytest
from mesh_building import A, B, C, D, node_id, of_kind, record, sent
from planning_desk import Desk, offering

from edgellama.mesh.effects import Tell
from edgellama.mesh.steadiness import (
    BLINK_S,
    LOSSES_S,
    TRIAL_MAX_S,
    TRIAL_S,
    Steadiness,
)
from edgellama.testing.fake_model import ram_bytes
from edgellama.wire.messages import DEAD, LEFT, MemberRecord, Trial, Trials


def lose(steadiness: Steadiness, times: int, now: float = 100.0) -> float:
    """Let B go so often, for a second, and return; return when it is back."""
    for _ in range(times):
        steadiness.lost(B, now)
        now += 1.0
        steadiness.returned(B, now, anew=False)
    return now


@pytest.mark.parametrize(
    ("times", "trial_s"),
    [(0, None), (1, None), (2, 30.0), (3, 60.0), (6, 480.0), (7, TRIAL_MAX_S), (5000, TRIAL_MAX_S)],
)
def test_each_loss_after_the_first_doubles_the_trial(times: int, trial_s: float | None) -> None:
    steadiness = Steadiness()
    now = lose(steadiness, times)
    end = steadiness.next_end()
    assert (None if end is None else end - now) == trial_s
    assert steadiness.on_trial == (frozenset() if trial_s is None else {B})


def test_a_trial_ends_and_an_old_loss_is_forgotten() -> None:
    steadiness = Steadiness()
    now = lose(steadiness, 2)
    steadiness.expire(now + TRIAL_S - 0.1)
    assert steadiness.on_trial == {B}
    steadiness.expire(now + TRIAL_S)
    assert not steadiness.on_trial
    lose(steadiness, 1, now + LOSSES_S)
    assert not steadiness.on_trial


def test_others_are_not_on_trial_for_it() -> None:
    steadiness = Steadiness()
    now = lose(steadiness, 2)
    steadiness.lost(C, now)
    assert not steadiness.returned(C, now + 5, anew=True)
    assert steadiness.on_trial == {B}


def test_who_was_never_gone_is_no_loss() -> None:
    """Somebody who had been cut off calls it dead, and it says at once that it is not."""
    steadiness = Steadiness()
    for now in (100.0, 120.0, 140.0):
        steadiness.lost(B, now)
        assert not steadiness.returned(B, now + BLINK_S / 2, anew=False)


def test_who_starts_anew_at_once_is_a_loss() -> None:
    steadiness = Steadiness()
    begun = [steadiness.returned(B, now, anew=True) for now in (100.0, 120.0, 140.0)]
    assert begun == [False, True, True]


def test_what_may_have_been_this_nodes_own_absence_does_not_count() -> None:
    steadiness = Steadiness()
    for now in (100.0, 130.0, 160.0):
        steadiness.lost(B, now)
        steadiness.excuse(B)
        assert not steadiness.returned(B, now + 20, anew=False)


def test_what_is_told_of_trials_counts_if_it_is_longer() -> None:
    steadiness = Steadiness()
    now = lose(steadiness, 2)
    steadiness.told([Trial(B, 1), Trial(C, 5_000), Trial(D, (1 << 32) - 1)], now)
    told = {trial.node: trial.left_ms / 1000 for trial in steadiness.trials(now)}
    assert told == {B: TRIAL_S, C: 5.0, D: TRIAL_MAX_S}
    assert steadiness.trials(now + TRIAL_MAX_S) == ()


# In a mesh


def come_and_go(desk: Desk, node: MemberRecord, times: int, *, by: str = DEAD) -> MemberRecord:
    """Let a member be gone and come back in another life so often; return its last record."""
    for _ in range(times):
        desk.hear(node._replace(version=node.version + 1, state=by))
        desk.settle()
        node = node._replace(incarnation=node.incarnation + 10)
        desk.hear(node)
        desk.settle()
        desk.load(*_stages(desk))
    return node


def _stages(desk: Desk) -> set[str]:
    plan = desk.planning._greatest
    assert plan is not None
    return {stage.node for stage in plan.stages} - {A}


def desk_of(layers: float, *others: MemberRecord) -> Desk:
    """Return a leader's desk that offers memory for so many of the model's twelve layers."""
    desk = Desk(offering(A, ram_bytes=ram_bytes(layers)), *others)
    desk.load(*_stages(desk))
    return desk


def test_after_a_second_loss_a_device_gets_no_layers_until_it_has_stayed() -> None:
    desk = desk_of(12, record(B))
    node = come_and_go(desk, record(B), 1)
    assert _stages(desk) == {B}
    desk.effects()
    come_and_go(desk, node, 1)
    assert _stages(desk) == set()
    effects = desk.effects()
    trials = [(to, each) for to, each in sent(effects) if isinstance(each, Trials)]
    assert trials == [(B, Trials((Trial(B, 30_000),)))]
    assert [each.text for each in of_kind(effects, Tell) if "more than once" in each.text]
    assert desk.planning.has_settled
    end = desk.planning.next_timer()
    assert end is not None
    desk.planning.handle_timer(end)
    assert _stages(desk) == {B}
    assert desk.planning.next_timer() is None


def test_it_gets_them_at_once_when_the_others_cannot_do_without() -> None:
    desk = desk_of(7, record(B))
    come_and_go(desk, record(B), 3)
    assert _stages(desk) == {B}


def test_who_leaves_in_order_is_welcome_at_any_time() -> None:
    desk = desk_of(12, record(B))
    come_and_go(desk, record(B), 4, by=LEFT)
    assert _stages(desk) == {B}


def test_a_life_that_begins_before_the_last_one_was_missed_is_a_loss_as_well() -> None:
    desk = desk_of(12, record(B), record(C))
    for life in (2, 3):
        desk.hear(record(B, incarnation=life))
        desk.settle()
        desk.load(*_stages(desk))
    assert _stages(desk) == {C}


def test_a_leader_that_came_and_went_hears_of_it_from_the_others() -> None:
    desk = Desk(offering(A, ram_bytes=ram_bytes(12)), record(B, ram_bytes=ram_bytes(12)))
    desk.settle()
    told = Trials((Trial(A, 30_000), Trial(node_id(99), 30_000)))
    desk.membership.receive(B, told, desk.now)
    assert desk.membership.steadiness.on_trial == {A}  # nobody knows the other one
    assert [each for each in of_kind(desk.effects(), Tell) if each.text.startswith("this device")]
    desk.membership.receive(B, told, desk.now)
    assert not of_kind(desk.effects(), Tell)
    desk.settle()  # it looks again, though nobody has come or gone
    assert A not in {stage.node for stage in desk.proposal().plan.stages}


def test_of_two_on_trial_the_one_that_holds_the_layers_keeps_them() -> None:
    desk = desk_of(12)
    desk.hear(record(B, ram_bytes=ram_bytes(12)))
    desk.membership.receive(B, Trials((Trial(A, 30_000), Trial(B, 30_000))), desk.now)
    desk.settle()
    assert _stages(desk) == set()


def test_whoever_connects_is_told_of_all_trials() -> None:
    desk = desk_of(12, record(B))
    desk.membership.tell_trials(B, desk.now)
    assert not [each for _, each in sent(desk.effects()) if isinstance(each, Trials)]
    come_and_go(desk, record(B), 2)
    desk.effects()
    desk.membership.tell_trials(C, desk.now + 1.0)
    ((to, told),) = sent(desk.effects())
    assert to == C
    assert isinstance(told, Trials)
    assert [trial.node for trial in told.trials] == [B]
