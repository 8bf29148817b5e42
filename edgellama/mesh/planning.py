"""Epochs: who proposes a plan, when, and how all come to follow the same one.

The leader is the living member with the lowest id that takes layers. When the view has been still
for a moment and the placement that the facts ask for is not the one in force, it proposes a plan
under a greater epoch; the stages load and say so; the leader announces the plan as active. Of two
plans the greater (epoch, leader) wins everywhere, so there is nothing to vote on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.mesh.conflicts import other_kernels, other_model
from edgellama.mesh.effects import DropEpochsBefore, GiveUp, LoadPlan, Outbox, Tell
from edgellama.mesh.epochs import epoch_after, is_epoch_of, plan_number, plan_text
from edgellama.mesh.wishes import seniority, wanted_kv_kind, wanted_room, wanted_split
from edgellama.plan.choice import Choice, choose
from edgellama.plan.ram import Requirements, Unplaceable, stage_bytes
from edgellama.plan.speed import EFFORT_AT_ONCE
from edgellama.plan.wires import wires_of
from edgellama.values import (
    RAM,
    WIRE_Q8,
    DeviceFacts,
    ModelFacts,
    NodeId,
    Plan,
    StageTimes,
)
from edgellama.wire.messages import MemberRecord, PlanAnnouncement, StageFailed, StageReady

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgellama.mesh.measurements import Measurements
    from edgellama.mesh.membership import Membership

INCARNATION_PAST: Final = 1 << 64
MEASURED_S: Final = 10.0  # from news of measurements to a look at the plan; each look doubles it
MEASURED_MAX_S: Final = 640.0
SETTLE_S: Final = 0.5  # several devices that start together shall get one plan, not three
SETTLE_LOST_S: Final = 0.05  # when a stage is lost answers wait: only for others lost with it


class Planning:
    """One node's part in agreeing on a plan."""

    def __init__(
        self,
        membership: Membership,
        measurements: Measurements,
        sessions_max: int,
        outbox: Outbox,
    ) -> None:
        self._membership = membership
        self._measurements = measurements
        self._sessions_max = sessions_max
        self._outbox = outbox
        self._me = membership.me.node
        self._greatest: Plan | None = None  # proposed or active, by (epoch, leader)
        self._facts: ModelFacts | None = None  # of the greatest plan's model
        self._active: Plan | None = None
        self._active_facts: ModelFacts | None = None
        self._epoch_seen = 0
        self._announced_active = False  # the greatest plan has been called active by its leader
        self._loaded = False  # this node holds its span of the greatest plan
        self._ready: set[NodeId] = set()
        self._lives: dict[NodeId, int] = {}  # the incarnation of each of its stages
        self._active_lives: dict[NodeId, int] = {}  # the same of the plan in force
        self._split = RAM  # what the greatest plan was made by
        self._predicted: tuple[StageTimes, ...] = ()
        self._unfit: set[tuple[NodeId, int]] = set()  # could not load; until the view changes
        self._failure = ""  # why this node cannot load its span of the greatest plan
        self._has_failed = False  # some stage of the greatest plan could not load
        self._considered_at = -1.0  # the view's changed_at that the leader last looked at
        self._look_again_at: float | None = None
        self._measured_wait_s = MEASURED_S
        self._trouble = ""  # why no plan could be made when the view had last settled
        self.shortage = ""  # why those who take layers cannot hold the model; it may be served

    @property
    def active(self) -> Plan | None:
        """The plan in force here."""
        return self._active

    @property
    def epoch_seen(self) -> int:
        """The greatest epoch that this node knows of."""
        return self._epoch_seen

    @property
    def active_facts(self) -> ModelFacts | None:
        """The facts of the model of the plan in force here."""
        return self._active_facts

    @property
    def split(self) -> str:
        """What the plan in force, or the next one, was made by."""
        return self._split

    def predicted(self, node: NodeId) -> StageTimes:
        """Return what a stage of the plan in force was expected to take when it was made."""
        stage = self._active.stage_of(node) if self._active else None
        if stage is None or self._active != self._greatest or not self._predicted:
            return StageTimes()
        return self._predicted[stage]

    @property
    def trouble(self) -> str:
        """Why no plan can be made, for a person; empty while news of members settle."""
        return self._trouble if self.has_settled else ""

    @property
    def has_settled(self) -> bool:
        """Whether all that is known of members has been looked at."""
        is_considered = self._considered_at == self._membership.changed_at
        return is_considered and self._look_again_at is None

    @property
    def is_changing(self) -> bool:
        """Whether a greater plan than the one in force here is being loaded somewhere."""
        return self._greatest is not None and self._greatest != self._active

    @property
    def needs_me(self) -> bool:
        """Whether answers would miss this node now: nothing that is in force does without it."""
        plan = self._active
        return plan is not None and (self.is_changing or plan.stage_of(self._me) is not None)

    def held_bytes(self) -> int:
        """Return what this node holds of the model by the plan in force."""
        plan, facts = self._active, self._active_facts
        stage = plan.stage_of(self._me) if plan else None
        if plan is None or facts is None or stage is None:
            return 0
        requirements = Requirements(plan.context, plan.sessions_max, plan.kv_kind)
        return stage_bytes(facts, plan.stages[stage].span, stage == 0, requirements)

    def could_be_home(self) -> bool:
        """Return whether this node is home under the plan in force or the next one."""
        return any(plan and plan.home == self._me for plan in (self._active, self._greatest))

    def facts(self) -> ModelFacts | None:
        """Return the facts of the model that the mesh hosts or is about to host."""
        root = self._model_root()
        if self._facts is not None and self._facts.root == root:
            return self._facts
        return self._membership.models.get(root)

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called; None until there is news."""
        if self._considered_at != self._membership.changed_at:
            whole = self._greatest is None or self._is_whole(self._greatest, self._lives)
            return self._membership.changed_at + (SETTLE_S if whole else SETTLE_LOST_S)
        timers = [self._look_again_at, self._membership.steadiness.next_end()]
        if self._split != RAM and self._measurements.news_since is not None:
            timers.append(self._measurements.news_since + self._measured_wait_s)
        return min((timer for timer in timers if timer is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """When the view has settled: see what the facts ask for and, as the leader, propose it."""
        due = self.next_timer()
        if due is None or now < due:
            return
        if self._considered_at != self._membership.changed_at:
            self._measured_wait_s = MEASURED_S
        elif self._measurements.news_since is not None:
            # A plan that measurements change again and again is no better for it.
            self._measured_wait_s = min(2 * self._measured_wait_s, MEASURED_MAX_S)
        self._considered_at = self._membership.changed_at
        self._measurements.seen()
        self._look_again_at = None
        self._membership.steadiness.expire(now)
        self._unfit.clear()
        self._look_for_conflict()
        self._consider()

    def peer_connected(self, node: NodeId) -> None:
        """Tell a newcomer which plan is in force, or proposed by this node."""
        plan = self._greatest
        if plan and (self._announced_active or plan.leader == self._me):
            self._outbox.send(node, self._announcement())
        if plan and plan.leader == node and self._loaded:
            self._outbox.send(node, StageReady(plan.epoch))
        if plan and plan.leader == node and self._failure:
            self._outbox.send(node, StageFailed(plan.epoch, self._failure))

    def remind(self, node: NodeId, epoch_active: int) -> None:
        """Tell a member of the plan in force: it may have refused it before it knew who lives."""
        plan = self._active
        if plan is not None and plan == self._greatest and epoch_active < plan.epoch:
            self._outbox.send(node, self._announcement())

    def receive_announcement(
        self, node: NodeId, announcement: PlanAnnouncement, now: float
    ) -> bool:
        """Follow a greater plan; return whether the plan in force here has changed."""
        plan = announcement.plan
        self._epoch_seen = max(self._epoch_seen, plan.epoch)
        lives = dict(zip((each.node for each in plan.stages), announcement.lives, strict=True))
        rank = self._rank(plan, lives)
        if self._greatest is None or rank < self._rank(self._greatest, self._lives):
            self._follow(
                plan, announcement.model, lives, announcement.split, announcement.predicted
            )
            # It may have been made for other members than live now; then the leader makes another.
            self._look_again_at = now + SETTLE_S
        elif plan != self._greatest:
            self._outbox.send(node, self._announcement())
            return False
        if announcement.active:
            self._announced_active = True
        return self._activate_if_possible()

    def plan_loaded(self, epoch: int) -> bool:
        """Take note that this node's span is loaded; return whether the plan in force changed."""
        if self._greatest is None or self._greatest.epoch != epoch:
            return False
        self._loaded = True
        if self._greatest.leader != self._me:
            self._outbox.send(self._greatest.leader, StageReady(epoch))
        return self.stage_ready(self._me, epoch)

    def plan_failed(self, epoch: int, reason: str) -> None:
        """Tell the leader that this node's span cannot be loaded."""
        if self._greatest is None or self._greatest.epoch != epoch:
            return
        self._failure = reason
        if self._greatest.leader == self._me:
            self.stage_failed(self._me, epoch, reason)
        else:
            self._outbox.send(self._greatest.leader, StageFailed(epoch, reason))

    def stage_ready(self, node: NodeId, epoch: int) -> bool:
        """Take note of a loaded stage; return whether the plan in force here has changed."""
        plan = self._greatest
        if plan is None or plan.epoch != epoch:
            return False
        if plan.leader == self._me:
            self._ready.add(node)
            if all(placement.node in self._ready for placement in plan.stages):
                self._announced_active = True
                self._announce()
        return self._activate_if_possible()

    def stage_failed(self, node: NodeId, epoch: int, reason: str) -> None:
        """As the leader, plan again without the device that could not load its span.

        Where there is no other plan the leader says so to all, as of itself.
        """
        plan = self._greatest
        if plan is None or plan.epoch != epoch:
            return
        if plan.leader == node != self._me:
            self._set_trouble(reason)
            return
        text = f"{self._membership.name(node)} cannot take its layers: {reason}"
        self._outbox.put(Tell(text))
        record = self._membership.record(node)
        if plan.leader == self._me and record is not None:
            self._unfit.add((node, record.incarnation))
            self._has_failed = True
            self._consider()
            if self._trouble:
                self._trouble = text = f"{text}; {self._trouble}"
                for member in self._membership.connected():
                    self._outbox.send(member, StageFailed(epoch, text))

    @property
    def leader(self) -> NodeId:
        """The living member with the lowest id; who rests leads only where all do."""
        members = self._membership.staying() or self._membership.living()
        return min((record.node for record in members), default=self._me)

    def _is_leader(self) -> bool:
        return self._me == self.leader

    def _model_root(self) -> str:
        """Return the plan's model while it is served or offered, else the earliest offer's."""
        offers = self._offers()
        roots = {record.model_root for record in offers}
        plan = self._greatest
        # Without any offer those who are left may have all of its layers on their disks.
        if plan and (plan.model_root in roots or self._is_whole(plan, self._lives) or not offers):
            return plan.model_root
        return min(offers, key=seniority).model_root if offers else ""

    def _offers(self) -> list[MemberRecord]:
        return [record for record in self._membership.living() if record.model_root]

    def _look_for_conflict(self) -> None:
        """Give up where this device does not fit the members that were here before it."""
        me = self._membership.me
        first = min(self._membership.living(), key=seniority, default=me)
        if me.kernel_digest != first.kernel_digest:
            self._outbox.put(GiveUp(other_kernels(me, first)))
        root = self._model_root()
        if me.model_root and me.model_root != root:
            facts = self.facts()
            host = next((r.name for r in self._offers() if r.model_root == root), "another device")
            self._outbox.put(GiveUp(other_model(facts.name if facts else root[:12], host)))

    def _consider(self) -> None:
        facts = self.facts()
        if facts is None:
            self._set_trouble("no device here offers a model yet; join one with --model FILE")
            return
        requirements = self.requirements(facts)
        split = wanted_split(self._membership.staying(), self._split)
        choice = self._choice(facts, requirements, split)
        self.shortage = choice.reason if isinstance(choice, Unplaceable) else ""
        if isinstance(choice, Unplaceable):
            if self._is_serving(facts):
                # What was placed is placed: less memory than was offered is no reason to stop.
                self._outbox.put(Tell(f"{self._scarcity()}, the plan stays: {choice.reason}"))
            else:
                self._set_trouble(choice.reason)
            return
        self._trouble = ""
        plan = Plan(
            epoch_after(self._epoch_seen, self._membership.me),
            self._me,
            facts.root,
            requirements.context,
            requirements.sessions_max,
            choice.stages,
            requirements.kv_kind,
            wires_of(choice.stages, {each.node: each.wire for each in self._membership.living()}),
        )
        if self._is_leader() and not self._is_in_force(plan):
            self._epoch_seen = plan.epoch
            living = {record.node: record.incarnation for record in self._membership.living()}
            lives = {each.node: living[each.node] for each in plan.stages}
            self._follow(plan, facts, lives, split, choice.predicted)
            self._announce()

    def devices(self) -> list[DeviceFacts]:
        """Return the devices that may take part, as the planner wants them."""
        return [
            DeviceFacts(
                *(record.node, record.name, record.ram_bytes),
                self._measurements.speed(record.node),
                record.wire,
            )
            for record in self._membership.staying()
            if (record.node, record.incarnation) not in self._unfit
        ]

    def _choice(
        self, facts: ModelFacts, requirements: Requirements, split: str
    ) -> Choice | Unplaceable:
        plan = self._kept_plan()
        held = plan.stages if plan is not None and plan.model_root == facts.root else ()
        links = self._measurements.links()
        for devices in self._steadiest_first({each.node for each in held}):
            choice = choose(facts, devices, links, requirements, split, held, EFFORT_AT_ONCE)
            if isinstance(choice, Choice):
                break
        return choice

    def _steadiest_first(self, holders: Collection[NodeId]) -> list[list[DeviceFacts]]:
        """Return the devices to try: without those on trial, with those that hold layers, all."""
        devices, on_trial = self.devices(), self._membership.steadiness.on_trial
        steady = [each for each in devices if each.node not in on_trial]
        steady_or_holders = [
            each for each in devices if each.node not in on_trial or each.node in holders
        ]
        tries = [steady, steady_or_holders, devices]
        return [each for index, each in enumerate(tries) if each not in tries[:index]]

    def _kept_plan(self) -> Plan | None:
        """Return the plan that the next one is to be like.

        The greatest, unless it is being prepared and cannot come to be while the one in force can
        stay: a newcomer that is lost while it loads costs nothing.
        """
        greatest, active = self._greatest, self._active
        if greatest is None or active is None or not self.is_changing:
            return greatest
        if self._can_stay(greatest, self._lives) and not self._has_failed:
            return greatest
        return active if self._can_stay(active, self._active_lives) else greatest

    def _can_stay(self, plan: Plan, lives: dict[NodeId, int]) -> bool:
        staying = {record.node for record in self._membership.staying()}
        return self._is_whole(plan, lives) and all(each.node in staying for each in plan.stages)

    def _scarcity(self) -> str:
        """Return why no plan could be made now to take the place of the one that serves."""
        staying = {record.node for record in self._membership.staying()}
        stages = self._active.stages if self._active else ()
        going = [self._membership.name(each.node) for each in stages if each.node not in staying]
        if not going:
            return "memory has become scarce"
        return f"the others cannot take over from {' and '.join(going)}"

    def _set_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._outbox.put(Tell(trouble))
        self._trouble = trouble

    def requirements(self, facts: ModelFacts) -> Requirements:
        """Return for how much KV cache there must be room."""
        staying = self._membership.staying()
        return wanted_room(staying, facts, self._sessions_max, self._kv_kind(facts))

    def _kv_kind(self, facts: ModelFacts) -> str:
        """Return how keys and values are kept: an answer must end as it began, whoever comes."""
        if self._greatest is not None and self._greatest.model_root == facts.root:
            return self._greatest.kv_kind
        return wanted_kv_kind(self._membership.living())

    def _is_in_force(self, plan: Plan) -> bool:
        """Return whether the greatest plan is this one but for its epoch, and can be kept."""
        greatest = self._greatest
        if greatest is None or self._has_failed or not self._is_whole(greatest, self._lives):
            return False
        if not self._announced_active and not is_epoch_of(greatest.epoch, self._membership.me):
            return False  # its leader, or that life of it, is gone: nobody would call it active
        return (greatest.stages, greatest.context, greatest.model_root, greatest.wires) == (
            *(plan.stages, plan.context, plan.model_root, plan.wires),
        )

    def _is_serving(self, facts: ModelFacts) -> bool:
        """Return whether the plan in force is of this model, and all its stages do their part."""
        plan = self._active
        if plan is None or plan != self._greatest or self._has_failed:
            return False
        return plan.model_root == facts.root and self._is_whole(plan, self._lives)

    def _is_whole(self, plan: Plan, lives: dict[NodeId, int]) -> bool:
        """Return whether every stage lives, and in the life that the plan was made for."""
        living = {record.node: record.incarnation for record in self._membership.living()}
        return all(living.get(each.node) == lives[each.node] for each in plan.stages)

    def _rank(self, plan: Plan, lives: dict[NodeId, int]) -> tuple[int, NodeId, int, NodeId]:
        """Return what is less for the better of two plans: the elder's model, then the epoch."""
        offers = [each for each in self._offers() if each.model_root == plan.model_root]
        # Where nobody has the file any more, those who hold all layers do not need it.
        unoffered = (0 if self._is_whole(plan, lives) else INCARNATION_PAST, "")
        incarnation, node = min(map(seniority, offers), default=unoffered)
        return incarnation, node, -plan.epoch, plan.leader

    def _follow(
        self,
        plan: Plan,
        facts: ModelFacts,
        lives: dict[NodeId, int],
        split: str,
        predicted: tuple[StageTimes, ...],
    ) -> None:
        self._outbox.put(
            Tell(f"plan {plan_number(plan.epoch)}: {plan_text(plan, self._membership.name)}")
        )
        if self._membership.me.kv_kind not in ("", plan.kv_kind):
            kept = f"this mesh keeps keys and values as {plan.kv_kind}"
            self._outbox.put(Tell(f"{kept}; --kv counts when a mesh begins"))
        if not plan.is_exact:
            links = f"{plan.wires.count(WIRE_Q8)} of {len(plan.wires)} links carry q8"
            self._outbox.put(Tell(f"{links}: answers now depend on how the layers are split"))
        self._greatest = plan
        self._facts = facts
        self._announced_active = False
        self._ready = set()
        self._loaded = False
        self._failure = ""
        self._has_failed = False
        self._lives = lives
        self._split, self._predicted = split, predicted
        self._trouble = ""
        # A plan for an earlier life of this node is not for this one: its sessions are lost.
        if lives.get(self._me) == self._membership.me.incarnation:
            self._outbox.put(LoadPlan(plan, facts))

    def _activate_if_possible(self) -> bool:
        plan = self._greatest
        if plan is None or plan == self._active or not self._announced_active:
            return False
        if plan.stage_of(self._me) is not None and not self._loaded:
            return False
        self._active = plan
        self._active_facts, self._active_lives = self._facts, self._lives
        self._outbox.put(DropEpochsBefore(plan.epoch))
        return True

    def _announcement(self) -> PlanAnnouncement:
        assert self._greatest is not None
        assert self._facts is not None
        lives = tuple(self._lives[each.node] for each in self._greatest.stages)
        return PlanAnnouncement(
            *(self._greatest, self._facts, self._announced_active, lives),
            *(self._split, self._predicted),
        )

    def _announce(self) -> None:
        for node in self._membership.connected():
            self._outbox.send(node, self._announcement())
