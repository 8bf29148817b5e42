"""Offers that change: plans are made of what there is, and what serves is not stopped for it."""

from __future__ import annotations

import pytest
from mesh_building import MODEL, A, B, C, of_kind, record, sent
from planning_desk import Desk, offering

from edgellama.mesh.effects import LoadPlan, Outbox, Tell
from edgellama.mesh.membership import Membership
from edgellama.plan.ram import Requirements, stage_bytes
from edgellama.testing.fake_model import ram_bytes
from edgellama.wire.messages import DEAD, LEAVES, RESTS, Gossip, MemberRecord


def settled(*others: MemberRecord) -> Desk:
    desk = Desk(offering(A), *others)
    desk.load(*(each.node for each in others))
    assert desk.planning.active is not None
    desk.effects()
    return desk


def test_a_new_offer_is_told_to_all_and_to_the_person() -> None:
    outbox = Outbox()
    membership = Membership(record(A, ram_bytes=1 << 30), None, outbox)
    membership.set_offer(1 << 29, 7.0)
    assert (membership.me.ram_bytes, membership.me.version) == (1 << 29, 2)
    assert membership.changed_at == 7.0  # so that the leader looks again
    (told,) = of_kind(outbox.drain(), Tell)
    assert told.text == "n1 offers 512 MiB now, not 1 GiB"
    membership.receive_gossip(Gossip((record(B),), ()), 8.0)
    membership.peer_connected(B)
    outbox.drain()
    membership.set_offer(1 << 28, 9.0)
    ((node, gossip),) = sent(outbox)
    assert node == B
    assert isinstance(gossip, Gossip)
    assert membership.me in gossip.members


def test_what_a_device_holds_by_the_plan_in_force() -> None:
    desk = settled(record(B))
    plan = desk.planning.active
    assert plan is not None
    (home, _) = plan.stages
    assert home.node == A
    needs = Requirements(plan.context, plan.sessions_max, plan.kv_kind)
    assert desk.planning.held_bytes() == stage_bytes(MODEL.facts, home.span, True, needs)
    assert Desk(record(B)).planning.held_bytes() == 0


def test_less_memory_moves_layers_as_long_as_they_fit_somewhere() -> None:
    desk = settled(record(B), record(C))
    desk.hear(record(B, version=2, ram_bytes=ram_bytes(2)))
    desk.settle()
    (load,) = of_kind(desk.effects(), LoadPlan)
    spans = {stage.node: stage.span for stage in load.plan.stages}
    assert spans[B].layers <= 2
    assert sum(span.layers for span in spans.values()) == MODEL.facts.layers


def test_what_serves_goes_on_where_no_other_plan_fits() -> None:
    desk = settled(record(B))
    before = desk.planning.active
    desk.hear(record(B, version=2, ram_bytes=ram_bytes(1)))
    desk.settle()
    effects = desk.effects()
    assert desk.planning.trouble == ""
    assert desk.planning.active == before
    assert not of_kind(effects, LoadPlan)
    (told,) = of_kind(effects, Tell)
    assert told.text.startswith("memory has become scarce, the plan stays: the model needs")
    # But a device that is gone cannot serve.
    desk.hear(record(B, version=2, state=DEAD))
    desk.settle()
    assert "are missing" in desk.planning.trouble


@pytest.mark.parametrize("intent", [RESTS, LEAVES])
def test_who_goes_and_cannot_be_replaced_is_named(intent: str) -> None:
    desk = settled(record(B))
    desk.hear(record(B, version=2, intent=intent))
    desk.settle()
    said = [each.text for each in of_kind(desk.effects(), Tell)]
    (line,) = [each for each in said if "the plan stays" in each]
    assert line.startswith("the others cannot take over from n2, the plan stays: ")
    assert "missing" in line


def test_too_little_from_the_beginning_is_trouble() -> None:
    desk = Desk(offering(A, ram_bytes=ram_bytes(3)), record(B, ram_bytes=ram_bytes(3)))
    assert "are missing" in desk.planning.trouble
    assert desk.planning.held_bytes() == 0
