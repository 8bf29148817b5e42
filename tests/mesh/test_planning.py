"""Who proposes a plan, when, and which of two plans all follow."""

from __future__ import annotations

import pytest
from mesh_building import MODEL, A, B, C, D, node_id, of_kind, record, sent
from planning_desk import OTHER, ROOT, Desk, offering

from edgellama.errors import KernelConflictError, ModelConflictError
from edgellama.mesh.effects import DropEpochsBefore, GiveUp, LoadPlan, Tell
from edgellama.mesh.epochs import plan_number
from edgellama.mesh.planning import SETTLE_S
from edgellama.mesh.wishes import CONTEXT_DEFAULT
from edgellama.testing.fake_model import ram_bytes
from edgellama.values import (
    Plan,
    Span,
    StagePlacement,
)
from edgellama.wire.messages import (
    DEAD,
    MemberRecord,
    PlanAnnouncement,
    StageFailed,
    StageReady,
)


def leader(*others: MemberRecord) -> Desk:
    return Desk(offering(A), *(others or (record(B),)))


def test_the_leader_proposes_once_the_view_has_settled() -> None:
    desk = Desk(offering(A), record(B), settle=False)
    desk.planning.handle_timer(desk.now + SETTLE_S - 0.01)
    assert desk.announcements() == []
    assert desk.planning.next_timer() == desk.now + SETTLE_S
    desk.planning.handle_timer(desk.now + SETTLE_S)
    effects = desk.effects()
    ((node, announcement),) = sent(effects)[-1:]
    assert node == B
    assert isinstance(announcement, PlanAnnouncement)
    assert not announcement.active
    plan = announcement.plan
    assert (plan.leader, plan.model_root, plan.context) == (A, ROOT, MODEL.facts.context_max)
    assert {stage.node for stage in plan.stages} == {A, B}
    assert announcement.lives == (1, 1)
    assert of_kind(effects, LoadPlan) == [LoadPlan(plan, MODEL.facts)]
    assert desk.planning.next_timer() is None


def test_nobody_else_proposes() -> None:
    desk = Desk(record(B), offering(A))
    assert desk.announcements() == []
    assert desk.planning.trouble == ""


def test_each_newcomer_starts_the_wait_anew() -> None:
    desk = Desk(offering(A), record(B), settle=False)
    desk.now += SETTLE_S - 0.1 - 1.0
    desk.hear(record(C))
    desk.planning.handle_timer(desk.now + 0.2)
    assert desk.announcements() == []


def test_a_plan_is_active_when_every_stage_has_loaded() -> None:
    desk = leader(record(B), record(C))
    plan = desk.proposal().plan
    assert not desk.load(B)
    assert desk.planning.active is None
    assert desk.planning.stage_ready(C, plan.epoch)
    assert desk.planning.active == plan
    assert desk.planning.active_facts == MODEL.facts
    effects = desk.effects()
    assert of_kind(effects, DropEpochsBefore) == [DropEpochsBefore(plan.epoch)]
    assert [(node, each.active) for node, each in sent(effects)] == [(B, True), (C, True)]  # type: ignore[union-attr]


def test_who_follows_an_earlier_plan_is_told_of_the_one_in_force() -> None:
    desk = leader(record(B))
    plan = desk.proposal().plan
    desk.planning.remind(B, 0)
    assert desk.announcements() == []  # it is not in force yet
    desk.load(B)
    desk.effects()
    for behind in (0, plan.epoch - 1):
        desk.planning.remind(B, behind)
        ((node, told),) = desk.announcements()
        assert (node, told.plan, told.active) == (B, plan, True)
    desk.planning.remind(B, plan.epoch)
    assert desk.announcements() == []


def test_a_leader_in_another_life_does_not_wait_for_what_the_earlier_one_proposed() -> None:
    """All have told the life that is gone that they are ready (crowd, seed 1316)."""
    me, other = offering(A, ram_bytes=0), record(B, ram_bytes=ram_bytes(12))
    earlier = Desk(me, other).proposal()
    assert [stage.node for stage in earlier.plan.stages] == [B]
    desk = Desk(me._replace(incarnation=9), other, settle=False)
    desk.announced(earlier, by=B)
    desk.settle()
    later = desk.proposal()
    assert later.plan.epoch > earlier.plan.epoch
    assert desk.load(B)
    assert desk.planning.active == later.plan


@pytest.mark.parametrize("loaded_first", [True, False])
def test_a_stage_follows_when_it_has_loaded_and_the_leader_says_so(loaded_first: bool) -> None:
    announcement = leader().proposal()
    desk = Desk(record(B), offering(A))
    assert not desk.announced(announcement)
    assert of_kind(desk.effects(), LoadPlan) == [LoadPlan(announcement.plan, MODEL.facts)]
    active = PlanAnnouncement(announcement.plan, MODEL.facts, True, announcement.lives)
    if loaded_first:
        assert not desk.load()
        assert sent(desk.outbox) == [(A, StageReady(announcement.plan.epoch))]
        assert desk.announced(active)
    else:
        assert not desk.announced(active)
        assert desk.load()
    assert desk.planning.active == announcement.plan
    assert not desk.announced(active)  # said twice, it changes nothing


def test_who_holds_no_layers_follows_at_once() -> None:
    announcement = leader().proposal()
    desk = Desk(record(D), offering(A), record(B))
    assert not desk.announced(announcement)
    active = PlanAnnouncement(announcement.plan, MODEL.facts, True, announcement.lives)
    assert desk.announced(active)
    assert of_kind(desk.effects(), LoadPlan) == []


def test_a_report_on_another_epoch_means_nothing() -> None:
    desk = leader()
    epoch = desk.proposal().plan.epoch
    assert not desk.planning.stage_ready(B, epoch - 1)
    assert not desk.planning.plan_loaded(epoch + 1)
    desk.planning.stage_failed(B, epoch - 1, "no")
    desk.planning.plan_failed(epoch + 1, "no")
    assert desk.effects() == []


def test_the_later_epoch_wins_and_the_earlier_one_is_answered_with_it() -> None:
    first = leader()
    early = first.proposal()
    first.hear(record(C))
    first.settle()
    late = first.proposal()
    assert plan_number(late.plan.epoch) == plan_number(early.plan.epoch) + 1
    desk = Desk(record(D), offering(A), record(B), record(C))
    for announcement in (early, late, early):
        desk.announced(announcement)
    assert desk.planning.epoch_seen == late.plan.epoch
    assert desk.announcements() == [(A, late)]


def test_no_two_leaders_and_no_two_lives_take_the_same_epoch() -> None:
    plans = [
        Desk(record(node, model_root=ROOT, incarnation=life, ram_bytes=ram_bytes(12))).planning
        for node in (A, B, C)
        for life in (1, 2, 3)
    ]
    assert len({each.epoch_seen for each in plans}) == 9
    assert {plan_number(each.epoch_seen) for each in plans} == {1}


def test_the_leader_counts_on_from_epochs_that_it_has_only_heard_of() -> None:
    desk = leader()
    mine = desk.proposal()
    other = Desk(offering(A), record(B), record(C)).proposal()
    beyond = Plan(9 << 24, B, ROOT, 64, 2, other.plan.stages)
    desk.announced(PlanAnnouncement(beyond, MODEL.facts, False, other.lives), B)
    desk.settle()
    assert plan_number(desk.proposal().plan.epoch) == 10
    assert plan_number(mine.plan.epoch) == 1


def settled(*others: MemberRecord) -> Desk:
    """Return a leader whose plan is active."""
    desk = leader(*others)
    desk.load(*(each.node for each in others or (record(B),)))
    assert desk.planning.active is not None
    desk.effects()
    return desk


@pytest.mark.parametrize(
    ("news", "replans"),
    [
        (record(B, version=2, backend="numba"), False),
        (record(B, version=2, name="other"), False),
        (record(B, version=2, state=DEAD), True),
        (record(B, incarnation=2), True),
        (record(B, version=2, context=100), True),
        (record(B, version=2, ram_bytes=ram_bytes(11)), False),
        (record(B, version=2, ram_bytes=ram_bytes(1)), True),
        (record(D), True),
        (record(D, ram_bytes=0), False),
        (record(D, state=DEAD), False),
    ],
    ids=[
        *("kernels", "name", "dead", "restarted", "context", "more memory", "less memory"),
        *("joined", "tiny", "hearsay"),
    ],
)
def test_when_the_leader_plans_again(news: MemberRecord, replans: bool) -> None:
    desk = settled(record(B), record(C))
    before = desk.planning.active
    desk.hear(news)
    desk.settle()
    assert bool(desk.announcements()) is replans
    assert desk.planning.active == before  # until the next is loaded
    assert (desk.planning.epoch_seen != getattr(before, "epoch", 0)) is replans


def test_dead_and_back_before_it_was_noticed_changes_nothing() -> None:
    desk = settled()
    desk.hear(record(B, state=DEAD))
    desk.hear(record(B, version=2))
    desk.settle()
    assert desk.announcements() == []


@pytest.mark.parametrize("active", [True, False])
def test_the_next_leader_keeps_an_active_plan_and_replaces_a_mere_proposal(active: bool) -> None:
    """Of a proposal whose leader is gone nobody would ever say that it is active."""
    useless = {"ram_bytes": 0}
    desk = Desk(record(B, ram_bytes=ram_bytes(12)), offering(A, **useless), offering(C, **useless))
    stages = (StagePlacement(B, Span(0, 12)),)
    plan = Plan(1 << 24, A, ROOT, MODEL.facts.context_max, 2, stages)
    desk.announced(PlanAnnouncement(plan, MODEL.facts, active, (1,)))
    desk.load()
    desk.effects()
    desk.hear(offering(A, state=DEAD, **useless))
    desk.settle()
    assert bool(desk.announcements()) is not active


def test_keys_and_values_are_kept_as_the_eldest_asks() -> None:
    desk = Desk(offering(A), record(B, kv_kind="q8", incarnation=2), record(C, kv_kind="f16"))
    assert desk.proposal().plan.kv_kind == "f16"
    desk = Desk(offering(A), record(B, kv_kind="q8"), record(C))
    assert desk.proposal().plan.kv_kind == "q8"
    desk = Desk(offering(A), record(B), record(C))
    assert desk.proposal().plan.kv_kind == "f16"


def test_an_answer_ends_with_the_keys_and_values_that_it_began_with() -> None:
    """Whoever asked for them may be gone: a plan for the same model keeps its kind."""
    desk = Desk(offering(A), record(B, kv_kind="q8"), record(C))
    assert desk.proposal().plan.kv_kind == "q8"
    desk.hear(record(B, state=DEAD))
    desk.hear(record(D, kv_kind="f16"))
    desk.settle()
    assert desk.proposal().plan.kv_kind == "q8"


def test_a_device_that_wanted_another_kind_of_cache_is_told() -> None:
    desk = Desk(offering(A, kv_kind="q8", incarnation=7), record(B, kv_kind="f16"))
    desk.settle()
    assert any(
        "keeps keys and values as f16" in tell.text for tell in of_kind(desk.effects(), Tell)
    )


def test_a_plan_for_an_earlier_life_is_not_loaded_but_replaced() -> None:
    announcement = leader().proposal()
    again = Desk(offering(A, incarnation=2), record(B))
    again.effects()
    again.announced(PlanAnnouncement(announcement.plan, MODEL.facts, True, announcement.lives), B)
    assert of_kind(again.effects(), LoadPlan) == []
    assert again.planning.active is None
    again.settle()
    assert again.proposal().lives == (2, 1)
    assert again.planning.epoch_seen > announcement.plan.epoch


def test_after_a_plan_for_others_than_live_now_the_leader_looks_again() -> None:
    desk = Desk(offering(A, ram_bytes=ram_bytes(13)), record(B))
    desk.effects()
    stages = (StagePlacement(D, Span(0, 12)),)
    foreign = Plan(7 << 24, D, ROOT, 64, 2, stages)
    desk.announced(PlanAnnouncement(foreign, MODEL.facts, True, (1,)), B)
    assert desk.planning.next_timer() == desk.now + SETTLE_S
    desk.settle()
    assert plan_number(desk.proposal().plan.epoch) == 8
    assert desk.planning.next_timer() is None


def test_a_stage_that_cannot_load_is_left_out_until_the_view_changes() -> None:
    desk = leader(record(B), record(C))
    first = desk.proposal()
    desk.planning.stage_failed(C, first.plan.epoch, "the disk is full")
    effects = desk.effects()
    assert "n3 cannot take its layers: the disk is full" in [
        tell.text for tell in of_kind(effects, Tell)
    ]
    second = sent(effects)[0][1]
    assert isinstance(second, PlanAnnouncement)
    assert {stage.node for stage in second.plan.stages} == {A, B}
    desk.hear(record(D))
    desk.settle()
    assert {stage.node for stage in desk.proposal().plan.stages} == {A, B, C, D}


def test_a_plan_that_failed_is_not_taken_for_one_in_force() -> None:
    desk = leader()
    first = desk.proposal()
    desk.planning.stage_failed(B, first.plan.epoch, "nobody has the layers")
    trouble = desk.planning.trouble
    assert trouble.startswith("n2 cannot take its layers: nobody has the layers; ")
    assert "are missing" in trouble
    assert (B, StageFailed(first.plan.epoch, trouble)) in sent(desk.effects())
    desk.hear(record(B, state=DEAD))
    desk.hear(record(B, version=2))
    desk.settle()
    second = desk.proposal()
    assert second.plan.stages == first.plan.stages
    assert second.plan.epoch > first.plan.epoch


def test_what_the_leader_says_of_a_failed_plan_is_everybodys_trouble() -> None:
    proposal = leader().proposal()
    desk = Desk(record(B), offering(A))
    desk.announced(proposal)
    desk.settle()
    desk.planning.stage_failed(C, proposal.plan.epoch, "the disk is full")
    desk.planning.stage_failed(A, proposal.plan.epoch - 1, "of an earlier plan")
    assert desk.planning.trouble == ""
    desk.planning.stage_failed(A, proposal.plan.epoch, "nobody has the layers")
    assert desk.planning.trouble == "nobody has the layers"


def test_a_failure_is_told_to_the_leader_and_told_again() -> None:
    announcement = leader().proposal()
    desk = Desk(record(B), offering(A))
    desk.announced(announcement)
    desk.effects()
    desk.planning.plan_failed(announcement.plan.epoch, "the disk is full")
    failed = StageFailed(announcement.plan.epoch, "the disk is full")
    assert sent(desk.outbox) == [(A, failed)]
    desk.planning.peer_connected(A)
    assert sent(desk.outbox) == [(A, failed)]
    desk.planning.peer_connected(C)
    assert sent(desk.outbox) == []


def test_what_a_newcomer_is_told() -> None:
    desk = leader()
    proposed = desk.proposal()
    desk.planning.peer_connected(D)
    assert sent(desk.outbox) == [(D, proposed)]
    follower = Desk(record(B), offering(A))
    follower.announced(proposed)
    follower.load()
    follower.effects()
    follower.planning.peer_connected(D)  # a proposal is its leader's word alone
    assert sent(follower.outbox) == []
    follower.planning.peer_connected(A)
    assert sent(follower.outbox) == [(A, StageReady(proposed.plan.epoch))]
    active = PlanAnnouncement(proposed.plan, MODEL.facts, True, proposed.lives)
    follower.announced(active)
    follower.effects()
    follower.planning.peer_connected(D)
    assert sent(follower.outbox) == [(D, active)]


@pytest.mark.parametrize(
    ("records", "context"),
    [
        ([offering(A, ram_bytes=ram_bytes(13))], 512),
        ([offering(A, ram_bytes=ram_bytes(13), context=100)], 100),
        ([offering(A, ram_bytes=ram_bytes(13)), record(B, context=70)], 70),
        ([offering(A, ram_bytes=ram_bytes(13), context=90), record(B, context=70)], 70),
        ([offering(A, ram_bytes=ram_bytes(13), context=9000)], 512),
    ],
)
def test_the_least_context_that_is_asked_for(records: list[MemberRecord], context: int) -> None:
    desk = Desk(*records)
    (load,) = of_kind(desk.effects(), LoadPlan)
    assert load.plan.context == context
    assert context <= min(CONTEXT_DEFAULT, MODEL.facts.context_max)


@pytest.mark.parametrize(
    ("asked", "sessions"), [((0, 0), 2), ((1, 0), 1), ((0, 4), 4), ((5, 3), 3)]
)
def test_the_least_sessions_that_are_asked_for(asked: tuple[int, int], sessions: int) -> None:
    room = ram_bytes(40)
    desk = Desk(
        offering(A, ram_bytes=room, sessions=asked[0]), record(B, sessions=asked[1], ram_bytes=room)
    )
    (load,) = of_kind(desk.effects(), LoadPlan)
    assert load.plan.sessions_max == sessions


def test_trouble_is_told_once_and_ends() -> None:
    desk = Desk(record(A))
    no_model = "no device here offers a model yet; join one with --model FILE"
    assert desk.planning.trouble == no_model
    desk.hear(offering(B))
    assert desk.planning.trouble == ""  # while it settles nobody knows
    desk.settle()
    assert desk.planning.trouble == ""
    desk.hear(offering(B, version=2, state=DEAD))
    desk.settle()
    assert "are missing" in desk.planning.trouble  # its layers may be on this device's disk
    texts = [tell.text for tell in of_kind(desk.effects(), Tell)]
    assert texts.count(no_model) == texts.count(desk.planning.trouble) == 1


def test_who_is_left_goes_on_with_the_model_of_a_device_that_is_gone() -> None:
    room = ram_bytes(12)
    desk = Desk(record(A, ram_bytes=room), offering(B), record(C, ram_bytes=room))
    assert desk.proposal().plan.model_root == ROOT
    desk.hear(offering(B, version=2, state=DEAD))
    desk.settle()
    plan = desk.proposal().plan
    assert plan.model_root == ROOT
    assert {stage.node for stage in plan.stages} == {A, C}


def test_too_little_memory_is_trouble() -> None:
    desk = Desk(offering(A), record(B, ram_bytes=0))
    assert "are missing" in desk.planning.trouble
    assert desk.planning.active is None


def gave_up(desk: Desk) -> list[type[Exception]]:
    return [type(each.error) for each in of_kind(desk.effects(), GiveUp)]


@pytest.mark.parametrize("mine_is_later", [True, False])
def test_of_two_models_the_later_offer_gives_up(mine_is_later: bool) -> None:
    mine = record(A, model_root=OTHER.facts.root, incarnation=2 if mine_is_later else 1)
    theirs = record(B, model_root=ROOT, incarnation=1 if mine_is_later else 2)
    desk = Desk(mine, theirs)
    assert gave_up(desk) == ([ModelConflictError] if mine_is_later else [])


@pytest.mark.parametrize("elder_epoch", [1, 9])
def test_the_elders_plan_stands_whatever_the_epochs(elder_epoch: int) -> None:
    """A later device with a file of its own may have planned alone before it found the mesh."""
    elder = record(C, model_root=ROOT, incarnation=5, ram_bytes=ram_bytes(13))
    later = record(D, model_root=OTHER.facts.root, incarnation=6, ram_bytes=ram_bytes(13))
    elder_plan = Plan(elder_epoch << 24, C, ROOT, 64, 2, (StagePlacement(C, Span(0, 12)),))
    later_plan = Plan(5 << 24, D, OTHER.facts.root, 64, 2, (StagePlacement(D, Span(0, 6)),))
    announcements = [
        PlanAnnouncement(elder_plan, MODEL.facts, True, (5,)),
        PlanAnnouncement(later_plan, OTHER.facts, True, (6,)),
    ]
    for order in (announcements, announcements[::-1]):
        desk = Desk(record(node_id(9)), elder, later)
        for announcement in order:
            desk.announced(announcement)
        assert desk.planning.active == elder_plan
        assert desk.planning.active_facts == MODEL.facts
        assert desk.planning.facts() == MODEL.facts
        assert desk.planning.epoch_seen == max(elder_epoch, 5) << 24


def test_who_hosts_a_model_whose_owner_left_stands_against_a_newcomer() -> None:
    plan = Plan(1 << 24, B, ROOT, 64, 2, (StagePlacement(C, Span(0, 12)),))
    newcomer = record(D, model_root=OTHER.facts.root, incarnation=6)
    desk = Desk(record(B), record(C, ram_bytes=ram_bytes(13)), newcomer)
    desk.announced(PlanAnnouncement(plan, MODEL.facts, True, (1,)))
    alone = Plan(5 << 24, D, OTHER.facts.root, 64, 2, (StagePlacement(D, Span(0, 6)),))
    desk.announced(PlanAnnouncement(alone, OTHER.facts, True, (6,)))
    assert desk.planning.active == plan
    desk.hear(record(C, version=2, state=DEAD))  # now nobody holds that model
    desk.announced(PlanAnnouncement(alone, OTHER.facts, True, (6,)))
    assert desk.planning.active == alone


def test_kernels_that_compute_otherwise_are_refused_to_who_comes_later() -> None:
    other = {"kernel_digest": "another"}
    assert gave_up(Desk(offering(B, incarnation=2, **other), record(A))) == [KernelConflictError]
    assert gave_up(Desk(offering(B, incarnation=1), record(A, incarnation=2, **other))) == []


def test_a_node_that_has_left_plans_nothing_more() -> None:
    desk = settled()
    desk.membership.leave(desk.now)
    desk.hear(record(B, version=9, state=DEAD))
    desk.settle()
    assert desk.announcements() == []


def test_who_could_be_home() -> None:
    announcement = leader(record(B, ram_bytes=ram_bytes(13))).proposal()
    assert announcement.plan.home == B
    for node, could in ((B, True), (C, False)):
        desk = Desk(record(node), offering(A))
        assert not desk.planning.could_be_home()
        desk.announced(announcement)
        assert desk.planning.could_be_home() is could
