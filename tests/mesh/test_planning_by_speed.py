"""A mesh that is split by speed: who says so, and when news of speed change its plan."""

from __future__ import annotations

from mesh_building import MODEL, A, B, C, record
from planning_desk import ROOT, Desk, offering

from edgellama.mesh.planning import MEASURED_S
from edgellama.mesh.wishes import wanted_split
from edgellama.testing.fake_model import ram_bytes
from edgellama.values import (
    BATCH,
    CHAT,
    DeviceSpeed,
    ModelFacts,
    NodeId,
    Plan,
    Span,
    StagePlacement,
)
from edgellama.wire.measurement_messages import Measured
from edgellama.wire.messages import Gossip, PlanAnnouncement


def quick(desk: Desk, node: NodeId, ms: int) -> None:
    """Let a device say that a layer takes so long on it."""
    speed = DeviceSpeed(ms * 10**6, 0, 0)
    if node == A:
        desk.measurements.set_speed(speed, desk.now)
    else:
        desk.measurements.receive(node, Measured((speed,), 0, 0, 0, ()), desk.now)


def by_speed() -> Desk:
    """Return a leader's desk whose mesh is split by speed; both devices could hold the model."""
    ram = ram_bytes(12)
    me, other = offering(A, ram_bytes=ram, split=CHAT), record(B, ram_bytes=ram, split=BATCH)
    desk = Desk(me, other._replace(incarnation=2), settle=False)
    quick(desk, A, 10)
    quick(desk, B, 1)
    desk.settle()
    return desk


def test_the_eldest_says_what_to_split_by_and_it_travels_with_the_plan() -> None:
    desk = by_speed()
    proposal = desk.proposal()
    assert proposal.split == CHAT
    assert [stage.node for stage in proposal.plan.stages] == [B]
    assert [times.compute_ns for times in proposal.predicted] == [12 * 10**6]
    follower = Desk(record(B), offering(A))
    follower.announced(proposal)
    assert follower.planning.split == CHAT


def test_the_split_outlives_who_asked_for_it() -> None:
    desk = by_speed()
    desk.load(B)
    desk.effects()
    desk.membership.receive_gossip(Gossip((record(C, ram_bytes=ram_bytes(12)),), ()), desk.now)
    desk.membership.leave(desk.now)
    assert wanted_split(desk.membership.staying(), desk.planning.split) == BATCH
    other = Desk(offering(A))
    other.announced(PlanAnnouncement(*_plan_by_speed(), True, (1,), CHAT, ()))
    assert wanted_split(other.membership.staying(), other.planning.split) == CHAT


def _plan_by_speed() -> tuple[Plan, ModelFacts]:
    plan = Plan(1 << 24, B, ROOT, 64, 2, (StagePlacement(A, Span(0, MODEL.layers)),))
    return plan, MODEL.facts


def test_news_of_speed_are_looked_at_later_and_later() -> None:
    desk = by_speed()
    first = desk.proposal().plan
    desk.planning.stage_ready(B, first.epoch)
    desk.effects()
    waits = []
    for ms in (3, 30, 2, 20):
        quick(desk, B, ms)
        due = desk.planning.next_timer()
        assert due is not None
        waits.append(due - desk.now)
        desk.now = due
        desk.planning.handle_timer(desk.now)
        for _, each in desk.announcements():
            for node in {stage.node for stage in each.plan.stages}:
                desk.planning.stage_ready(node, each.plan.epoch)
                desk.planning.plan_loaded(each.plan.epoch)
        desk.effects()
    assert waits == [MEASURED_S, 2 * MEASURED_S, 4 * MEASURED_S, 8 * MEASURED_S]


def test_news_without_end_are_looked_at_all_the_same() -> None:
    desk = by_speed()
    desk.planning.stage_ready(B, desk.proposal().plan.epoch)
    desk.effects()
    since = desk.now
    while not desk.announcements() and desk.now < since + 2 * MEASURED_S:
        desk.now += MEASURED_S / 4
        quick(desk, B, 30 + int(desk.now - since))
        desk.planning.handle_timer(desk.now)
    assert desk.now <= since + 1.5 * MEASURED_S


def test_a_small_gain_changes_no_plan_and_a_great_one_does() -> None:
    desk = by_speed()
    first = desk.proposal().plan
    desk.planning.stage_ready(B, first.epoch)
    for ms, changes in ((9, False), (11, False), (13, True)):
        desk.effects()
        quick(desk, B, ms)
        due = desk.planning.next_timer()
        assert due is not None
        desk.now = due
        desk.planning.handle_timer(desk.now)
        assert bool(desk.announcements()) is changes, ms


def test_news_of_speed_do_not_touch_a_mesh_that_is_split_by_memory() -> None:
    desk = Desk(offering(A), record(B))
    desk.effects()
    quick(desk, B, 90)
    assert desk.planning.next_timer() is None
