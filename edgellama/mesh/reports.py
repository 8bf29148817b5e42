"""What a node tells of the mesh and of itself, to people and to programs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgellama.mesh.epochs import plan_number
from edgellama.plan.costs import row_bytes
from edgellama.values import KV_F16, Plan, Span
from edgellama.wire.measurement_messages import FactsReply, LinkMeter, MeterReply
from edgellama.wire.messages import MemberRecord, MemberStatus, StatusReply

if TYPE_CHECKING:
    from edgellama.mesh.measurements import Measurements
    from edgellama.mesh.membership import Membership
    from edgellama.mesh.planning import Planning
    from edgellama.mesh.surroundings import Surroundings


class Reports:
    """Answers questions about a node's parts; changes nothing in them."""

    def __init__(
        self,
        membership: Membership,
        planning: Planning,
        measurements: Measurements,
        surroundings: Surroundings,
        open_mesh: bool,
    ) -> None:
        self._membership = membership
        self._planning = planning
        self._measurements = measurements
        self._surroundings = surroundings
        self._open_mesh = open_mesh

    @property
    def _me(self) -> str:
        return self._membership.me.node

    def status(self, request: int, now: float) -> StatusReply:
        """Return how the mesh stands, as this node sees it."""
        plan = self._planning.active
        trials_ms = dict(self._membership.steadiness.trials(now))
        members = tuple(
            replace(self._member_status(plan, each), trial_s=_seconds(trials_ms.get(each.node, 0)))
            for each in self._membership.records()
        )
        facts = self._planning.facts()
        return StatusReply(
            request,
            self._me,
            plan is not None and self._is_complete(plan) and not self._planning.trouble,
            plan_number(plan.epoch) if plan else 0,
            (facts,) if facts else (),
            plan.context if plan else 0,
            members,
            self._planning.trouble,
            self._open_mesh,
            plan.kv_kind if plan else KV_F16,
            self._planning.split,
        )

    def _is_complete(self, plan: Plan) -> bool:
        """Whether every stage's device is there: one that left is missed before it is replaced."""
        living = {record.node for record in self._membership.living()}
        return all(stage.node in living for stage in plan.stages)

    def facts(self, request: int) -> FactsReply:
        """Return all that this node would make a plan of."""
        facts = self._planning.facts()
        wanted = self._planning.requirements(facts) if facts else None
        return FactsReply(
            request,
            (facts,) if facts else (),
            wanted.context if wanted else 0,
            wanted.sessions_max if wanted else 0,
            self._planning.split,
            tuple(self._planning.devices()),
            tuple(self._measurements.links()),
            wanted.kv_kind if wanted else KV_F16,
        )

    def meter(self, request: int) -> MeterReply:
        """Return what this node has counted since it started."""
        meter = self._measurements.meter
        links = tuple(
            LinkMeter(link, self._surroundings.counters(link.peer))
            for link in self._measurements.own_links()
        )
        return MeterReply(
            request,
            self._me,
            self._membership.me.release,
            self._surroundings.clock_ms(),
            *(meter.epoch, meter.steps, meter.stage_ns, meter.heads, meter.head_ns),
            links,
        )

    def _member_status(self, plan: Plan | None, record: MemberRecord) -> MemberStatus:
        stage = plan.stage_of(record.node) if plan else None
        counters = self._surroundings.counters(None if record.node == self._me else record.node)
        transport = self._surroundings.transport(record.node)
        if plan is None or stage is None:
            return MemberStatus(record, Span(0, 0), False, counters, transport=transport)
        span, wire = plan.stages[stage].span, plan.wire_from(stage)
        peer = plan.stages[(stage + 1) % len(plan.stages)].node
        facts = self._planning.active_facts
        assert facts is not None
        return MemberStatus(
            *(record, span, stage == 0, counters, wire, self._planning.predicted(record.node)),
            self._measurements.stage_times(plan, record.node, peer, row_bytes(facts, wire)),
            transport,
        )


def _seconds(milliseconds: int) -> int:
    """Return whole seconds, none only of nothing."""
    return -(-milliseconds // 1000)
