"""One node's planning with the view that it plans from, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh_building import MODEL, A, record, sent

from edgellama.mesh.effects import Outbox
from edgellama.mesh.measurements import Measurements
from edgellama.mesh.membership import Membership
from edgellama.mesh.planning import SETTLE_S, Planning
from edgellama.testing.fake_model import FakeModel
from edgellama.wire.messages import Gossip, PlanAnnouncement

if TYPE_CHECKING:
    from edgellama.mesh.effects import Effect
    from edgellama.values import NodeId
    from edgellama.wire.messages import MemberRecord

ROOT = MODEL.facts.root
OTHER = FakeModel("another", 6)


class Desk:
    """One node's planning with the view that it plans from."""

    def __init__(self, me: MemberRecord, *others: MemberRecord, settle: bool = True) -> None:
        self.outbox = Outbox()
        self.membership = Membership(
            me, MODEL.facts if me.model_root == ROOT else None, self.outbox
        )
        self.measurements = Measurements(me.node, self.outbox, list)
        self.planning = Planning(self.membership, self.measurements, 2, self.outbox)
        self.now = 0.0
        for other in others:
            self.membership.peer_connected(other.node)
        self.hear(*others)
        if settle:
            self.settle()

    def hear(self, *records: MemberRecord) -> None:
        self.now += 1.0
        self.membership.receive_gossip(Gossip(records, (MODEL.facts, OTHER.facts)), self.now)

    def settle(self) -> None:
        self.now += SETTLE_S
        self.planning.handle_timer(self.now)

    def announced(self, announcement: PlanAnnouncement, by: NodeId = A) -> bool:
        return self.planning.receive_announcement(by, announcement, self.now)

    def effects(self) -> list[Effect]:
        return self.outbox.drain()

    def announcements(self) -> list[tuple[NodeId, PlanAnnouncement]]:
        messages = sent(self.effects())
        return [(node, each) for node, each in messages if isinstance(each, PlanAnnouncement)]

    def proposal(self) -> PlanAnnouncement:
        """Return what this leader has just announced to all."""
        announcements = self.announcements()
        assert announcements
        assert all(each == announcements[0][1] for _, each in announcements)
        return announcements[0][1]

    def load(self, *ready: NodeId) -> bool:
        """Load the own span, and let others say that they have loaded theirs."""
        epoch = self.planning.epoch_seen
        changed = self.planning.plan_loaded(epoch)
        for node in ready:
            changed |= self.planning.stage_ready(node, epoch)
        return changed


def offering(node: NodeId, **changes: object) -> MemberRecord:
    return record(node, model_root=ROOT, **changes)
