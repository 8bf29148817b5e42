"""Who rests or leaves: who leads then, what is planned, and when a leaver may go."""

from __future__ import annotations

import pytest
from mesh_building import A, B, C, of_kind, record
from planning_desk import Desk, offering

from edgellama.mesh.effects import HandedOver, Tell
from edgellama.mesh.leaving import HAND_OVER_S, Leaving
from edgellama.testing.fake_model import ram_bytes
from edgellama.wire.messages import DEAD, LEAVES, LEFT, RESTS, STAYS

ROOMY = ram_bytes(12)


def serving(*, ram: int = ROOMY) -> Desk:
    """Return the leader of two devices, with a plan in force over both."""
    desk = Desk(offering(A, ram_bytes=ram), record(B, ram_bytes=ram))
    desk.load(B)
    assert desk.planning.needs_me
    desk.effects()
    return desk


def leaving(desk: Desk) -> Leaving:
    leaver = Leaving(desk.membership, desk.planning, desk.outbox)
    leaver.begin(desk.now)
    return leaver


def lines(desk: Desk) -> list[str]:
    return [each.text for each in of_kind(desk.effects(), Tell)]


@pytest.mark.parametrize("intent", [RESTS, LEAVES])
def test_who_does_not_stay_gets_no_layers_and_does_not_lead(intent: str) -> None:
    desk = Desk(record(B, ram_bytes=ROOMY), offering(A, intent=intent, ram_bytes=ROOMY))
    assert desk.planning.leader == B
    (stage,) = desk.proposal().plan.stages
    assert stage.node == B


def test_where_all_rest_the_lowest_leads_and_nothing_is_planned() -> None:
    desk = Desk(offering(A, intent=RESTS), record(B, intent=RESTS))
    assert desk.planning.leader == A
    assert desk.announcements() == []
    assert "no device offers any" in desk.planning.trouble


def test_what_a_resting_device_asks_for_does_not_count() -> None:
    desk = Desk(offering(A, ram_bytes=ROOMY), record(B, context=64, sessions=1, intent=RESTS))
    plan = desk.proposal().plan
    assert (plan.context > 64, plan.sessions_max) == (True, 2)


def test_a_leaver_waits_for_the_plan_without_it() -> None:
    desk = serving()
    leaver = leaving(desk)
    assert desk.membership.me.intent == LEAVES
    assert not of_kind(desk.effects(), HandedOver)
    desk.planning.peer_connected(B)
    other = Desk(record(B, ram_bytes=ROOMY), desk.membership.me, settle=False)
    other.announced(desk.proposal())
    other.effects()
    other.settle()
    for is_active in (False, True):
        leaver.handle_timer(desk.now)
        assert not of_kind(desk.effects(), HandedOver)
        announcement = other.proposal()
        assert announcement.active == is_active
        desk.announced(announcement, B)
        other.load()
    leaver.handle_timer(desk.now)
    assert len(of_kind(desk.effects(), HandedOver)) == 1


def test_a_leaver_waits_no_longer_than_it_says() -> None:
    desk = serving()
    leaver = leaving(desk)
    assert leaver.next_timer() == desk.now + HAND_OVER_S
    leaver.handle_timer(desk.now + HAND_OVER_S - 0.01)
    assert not of_kind(desk.effects(), HandedOver)
    leaver.handle_timer(desk.now + HAND_OVER_S)
    effects = desk.effects()
    assert len(of_kind(effects, HandedOver)) == 1
    assert any("have not taken over" in each.text for each in of_kind(effects, Tell))
    leaver.handle_timer(desk.now + HAND_OVER_S + 1)
    assert desk.effects() == []


def test_a_leaver_whom_nobody_can_replace_goes_at_once() -> None:
    desk = serving(ram=ram_bytes(6))
    leaver = leaving(desk)
    assert not of_kind(desk.effects(), HandedOver)
    desk.settle()
    leaver.handle_timer(desk.now)
    effects = desk.effects()
    assert len(of_kind(effects, HandedOver)) == 1
    assert any("cannot hold the model" in each.text for each in of_kind(effects, Tell))


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_the_last_one_goes_without_a_word(state: str) -> None:
    desk = serving()
    desk.hear(record(B, version=2, state=state, ram_bytes=ROOMY))
    desk.effects()
    leaving(desk)
    effects = desk.effects()
    assert len(of_kind(effects, HandedOver)) == 1
    assert of_kind(effects, Tell) == []


def test_without_a_plan_in_force_there_is_nothing_to_hand_over() -> None:
    desk = Desk(offering(A, ram_bytes=ROOMY), record(B, ram_bytes=ROOMY))
    leaving(desk)
    assert of_kind(desk.effects(), HandedOver)


def test_who_leaves_does_not_change_its_mind() -> None:
    desk = serving()
    leaving(desk)
    desk.membership.set_intent(STAYS, desk.now)
    assert desk.membership.me.intent == LEAVES


def test_others_are_told_what_a_member_intends() -> None:
    desk = serving()
    for version, intent in enumerate((RESTS, STAYS, LEAVES), start=2):
        desk.hear(record(B, version=version, ram_bytes=ROOMY, intent=intent))
    said = [line for line in lines(desk) if line.startswith("n2")]
    assert said == ["n2 wants to rest", "n2 takes layers again", "n2 wants to leave"]


@pytest.mark.parametrize("how", ["is lost", "rests", "could not load"])
def test_a_newcomer_that_fails_while_it_loads_costs_nothing(how: str) -> None:
    desk = serving()
    before = desk.planning.active
    assert before is not None
    desk.hear(record(C, ram_bytes=ROOMY))
    desk.settle()
    prepared = desk.proposal().plan
    assert prepared.stage_of(C) is not None
    if how == "could not load":
        desk.planning.stage_failed(C, prepared.epoch, "its disk is full")
    else:
        change = {"state": DEAD} if how == "is lost" else {"intent": RESTS}
        desk.hear(record(C, version=2, ram_bytes=ROOMY, **change))
        desk.settle()
    after = desk.proposal().plan
    assert after.stages == before.stages
    assert desk.planning.active == before
