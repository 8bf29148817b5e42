"""Which links of a plan carry q8, and who is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh_building import MODEL, A, B, C, of_kind, record, sent

from edgellama.mesh.effects import Outbox, Tell
from edgellama.mesh.measurements import Measurements
from edgellama.mesh.membership import Membership
from edgellama.mesh.planning import SETTLE_S, Planning
from edgellama.wire.messages import Gossip, MemberRecord, PlanAnnouncement

if TYPE_CHECKING:
    from edgellama.values import Plan


class Leader:
    """The leader of three devices: what it told and announced."""

    def __init__(self, *wires: str) -> None:
        self.outbox = Outbox()
        root = MODEL.facts.root
        first, *others = [
            record(node, wire=wire, model_root=root if node == A else "")
            for node, wire in zip((A, B, C), wires, strict=True)
        ]
        self.membership = Membership(first, MODEL.facts, self.outbox)
        measurements = Measurements(A, self.outbox, list)
        self.planning = Planning(self.membership, measurements, 2, self.outbox)
        self.now = 0.0
        for other in others:
            self.membership.peer_connected(other.node)
        self.hear(*others)

    def hear(self, *records: MemberRecord) -> None:
        self.membership.receive_gossip(Gossip(records, ()), self.now)
        self.now += SETTLE_S
        self.planning.handle_timer(self.now)
        effects = self.outbox.drain()
        self.told = [tell.text for tell in of_kind(effects, Tell)]
        self.plans: list[Plan] = [
            each.plan for _, each in sent(effects) if isinstance(each, PlanAnnouncement)
        ]


def test_links_carry_q8_where_one_end_asks_and_everyone_is_told() -> None:
    leader = Leader("", "q8", "")
    plan = leader.plans[0]
    stage = plan.stage_of(B)
    assert stage is not None
    assert plan.wire_from(stage) == plan.wire_from(stage - 1) == "q8"
    assert plan.wires.count("q8") == 2
    assert any("2 of 3 links carry q8: answers now depend" in text for text in leader.told)


def test_an_exact_mesh_says_nothing_of_it() -> None:
    leader = Leader("f16", "", "")
    assert leader.plans[0].wires == ()
    assert not [text for text in leader.told if "carry" in text]


def test_another_word_about_the_wire_makes_another_plan() -> None:
    leader = Leader("", "", "")
    assert leader.plans[0].is_exact
    leader.hear(record(B, version=2, wire="q8"))
    assert not leader.plans[0].is_exact
