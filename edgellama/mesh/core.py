"""One node of the mesh as a value: events and results in, effects out, time as an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama_kernels import HiddenRows

from edgellama.errors import DuplicateIdentityError, EdgellamaError, WireError
from edgellama.link.connection import CLOSE_REASONS
from edgellama.link.endpoint import Connected, Disconnected, Event, Identity, MessageReceived
from edgellama.link.links import UDP
from edgellama.mesh.effects import (
    Administer,
    CloseJob,
    Effect,
    FillJob,
    ForgetJob,
    GiveUp,
    HeadJob,
    Job,
    JobResult,
    Likelihoods,
    OpenJob,
    Outbox,
    PromptTokens,
    ScoreJob,
    StageJob,
    ToAsker,
    TokenizeJob,
)
from edgellama.mesh.gateway import Gateway
from edgellama.mesh.home import Home
from edgellama.mesh.leaving import Leaving
from edgellama.mesh.measurements import Measurements
from edgellama.mesh.membership import Membership
from edgellama.mesh.planning import Planning
from edgellama.mesh.reachability import Reachability
from edgellama.mesh.reports import Reports
from edgellama.mesh.session_keeping import SessionKeeping
from edgellama.mesh.stage_role import StageRole
from edgellama.mesh.token_trips import TokenTrips
from edgellama.values import RAM
from edgellama.wire.frames import CloseCode
from edgellama.wire.key_messages import Forget, InviteQuery, NewKey
from edgellama.wire.measurement_messages import (
    FactsQuery,
    Measured,
    MeterQuery,
    RateProbe,
)
from edgellama.wire.messages import (
    RESTS,
    STAYS,
    Ask,
    AskInSession,
    Cancel,
    CloseSession,
    Doubt,
    Failure,
    Finished,
    ForgetSession,
    Gossip,
    Heard,
    Heartbeat,
    KeepSession,
    MemberRecord,
    Message,
    Notice,
    NotRelayed,
    OpenSession,
    Piece,
    PlanAnnouncement,
    Relayed,
    SessionClosed,
    SessionForgotten,
    SessionQuery,
    SessionReply,
    StageFailed,
    StageReady,
    StatusQuery,
    StatusReply,
    Step,
    StepFailed,
    StepNeeded,
    StepStale,
    TokenTook,
    Trials,
    decode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellama.mesh.surroundings import Surroundings
    from edgellama.values import (
        DeviceSpeed,
        ModelFacts,
        NodeId,
    )
    from edgellama.wire.messages import Conversation


class MeshNode:
    """Routes messages to the parts of a node, and gathers what they want done."""

    def __init__(
        self,
        me: MemberRecord,
        model: ModelFacts | None,
        sessions_max: int,
        surroundings: Surroundings,
        *,
        open_mesh: bool,
        kept: Iterable[Conversation] = (),
    ) -> None:
        self._outbox = Outbox(me.node)
        self._me = me.node
        self._surroundings = surroundings
        self._guests: set[NodeId] = set()
        self.membership = Membership(me, model, self._outbox)
        self.reach = Reachability(
            *(me.node, self._outbox, self.membership, surroundings.heard_at, self),
        )
        self.measurements = Measurements(
            *(me.node, self._outbox, surroundings.links),
            lambda node: surroundings.transport(node) == UDP,
        )
        self.planning = Planning(self.membership, self.measurements, sessions_max, self._outbox)
        self.leaving = Leaving(self.membership, self.planning, self._outbox)
        self.stage = StageRole(
            me.node, self._outbox, lambda: surroundings.counters(None), self._peer_reads_lz4
        )
        self.home = Home(
            *(me.node, self._outbox, self.stage, self._home_replies, self.membership.name),
            lambda trip_s: self.trips.took(trip_s, self._now),
        )
        self.trips = TokenTrips(
            self._outbox, self.membership.connected, lambda: self.planning.is_changing
        )
        self.gateway = Gateway(self._answer, self._hand_over)
        self._reports = Reports(
            *(self.membership, self.planning, self.measurements),
            *(surroundings, open_mesh),
        )
        self.sessions = SessionKeeping(me.node, self._outbox, self.membership.connected, kept)
        self._was_busy = False
        self._now = 0.0  # of the event that is being handled, for replies within it

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call."""
        return self._outbox.drain()

    def handle_event(self, event: Event, now: float) -> None:
        """Take an event of the link."""
        self._now = now
        if isinstance(event, Connected):
            self._connected(event.identity)
        elif isinstance(event, Disconnected):
            self._disconnected(event)
        elif isinstance(event, MessageReceived):
            try:
                self._receive(event.node, decode(event.message))
            except WireError:
                # A peer with the key speaks nonsense: it is another release or a broken one, and
                # what it said has no effect. Its link stays, as its other messages may be sound.
                return

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called."""
        if self._is_busy() != self._was_busy:
            return self._now  # those who wait for each other begin at once to give signs of life
        parts = (
            *(self.membership, self.reach, self.measurements, self.planning),
            *(self.home, self.stage, self.gateway, self.sessions, self.leaving),
        )
        timers = [part.next_timer() for part in parts]
        return min((timer for timer in timers if timer is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due at ``now``."""
        self._now = now
        self._was_busy = self._is_busy()
        guests = self.gateway.askers & self._guests
        self.reach.handle_timer(now, self._awaited(), guests, self._heartbeat)
        if self.membership.is_heartbeat_due(now):
            for node in self.membership.connected():
                self._outbox.send(node, self._heartbeat())
        self.membership.handle_timer(now)
        self.measurements.handle_timer(
            now, self.membership.connected(), probes=self._may_probe_links()
        )
        self.planning.handle_timer(now)
        if self.planning.has_settled:
            self.gateway.set_trouble(self.planning.trouble, now)
        self.gateway.handle_timer(now)
        self.home.handle_timer(now)
        self.stage.handle_timer(now)
        self.sessions.handle_timer(now, self.gateway.requests)
        self.leaving.handle_timer(now)

    def _heartbeat(self) -> Heartbeat:
        active = self.planning.active
        return self.membership.heartbeat(self.planning.epoch_seen, active.epoch if active else 0)

    def _is_busy(self) -> bool:
        parts = (self.stage.sessions_open, self.home.sessions_open, self.gateway.askers)
        return any(parts)

    def _may_probe_links(self) -> bool:
        """Return whether rates are of use here, and nobody waits for anything."""
        by_speed = self.planning.split != RAM
        return by_speed and not self._is_busy() and not self.planning.is_changing

    def _awaited(self) -> set[NodeId]:
        """Return the members that answers wait on: the ring around, homes, gateways, the leader."""
        awaited = self.stage.neighbours | self.home.gateways | self.gateway.homes
        if awaited:
            awaited.add(self.planning.leader)
        return awaited - {self._me}

    def hand_over(self, now: float) -> None:
        """Let the others take over what this node does; ``HandedOver`` says that it may leave."""
        self._now = now
        self.leaving.begin(now)

    def rest(self, now: float, *, resting: bool) -> None:
        """Take no layers from the next plan on, or take them again."""
        self._now = now
        self.membership.set_intent(RESTS if resting else STAYS, now)

    def leave(self, now: float) -> None:
        """Tell the others that this node goes, now."""
        self.sessions.leave(now)
        self.membership.leave(now)

    def ask(self, ask: Ask, now: float) -> None:
        """Take a request from this very process; its answer comes as ``ToAsker`` effects."""
        self._now = now
        self.gateway.ask(self._me, ask, self.planning.trouble, now)

    def cancel(self, request: int, now: float) -> None:
        """Stop a request of this very process."""
        self._now = now
        self.gateway.cancel(self._me, request)

    def plan_loaded(self, epoch: int, now: float) -> None:
        """Take note that this node's span under this epoch can compute."""
        self._now = now
        if self.planning.plan_loaded(epoch):
            self._follow_plan()

    def plan_failed(self, epoch: int, error: EdgellamaError, now: float) -> None:
        """Take note that this node's span cannot be loaded."""
        self._now = now
        self.planning.plan_failed(epoch, str(error))

    def speed_tried(self, speed: DeviceSpeed, now: float) -> None:
        """Take note of what a trial of this device's kernels has shown."""
        self.measurements.set_speed(speed, now)

    def job_timed(self, job: Job, elapsed_ns: int) -> None:
        """Take note of how long the compute thread has worked on a job."""
        self.measurements.meter.take(job, elapsed_ns)

    def job_done(self, job: Job, result: JobResult | EdgellamaError, now: float) -> None:
        """Take what the compute thread has made of a job."""
        self._now = now
        if isinstance(result, EdgellamaError):
            self._job_failed(job, result)
        elif isinstance(job, StageJob):
            assert isinstance(result, HiddenRows)
            step = self.stage.computed(job, result)
            if step is not None:
                self.home.row_returned(step, now)
        elif isinstance(job, FillJob):
            assert isinstance(result, HiddenRows)
            self.stage.filled(job, result)
        elif isinstance(job, OpenJob):
            assert isinstance(result, tuple)
            assert not isinstance(result, HiddenRows)
            self.stage.opened(job, result)
        elif isinstance(job, HeadJob):
            assert isinstance(result, int)
            self.home.token_made(job, result, now)
        elif isinstance(job, ScoreJob):
            assert isinstance(result, Likelihoods)
            self.home.scored(job, result.nlls, now)
        elif isinstance(job, TokenizeJob):
            assert isinstance(result, PromptTokens)
            self.home.tokenized(job.session, result, now)

    def status(self, request: int = 0) -> StatusReply:
        """Return how the mesh stands, as this node sees it."""
        return self._reports.status(request, self._now)

    def _connected(self, identity: Identity) -> None:
        if identity.guest:
            self._guests.add(identity.node)
            return
        self.reach.link_up(identity, self._now)

    def member_reached(self, node: NodeId) -> None:
        """Say again to a member what may have been lost."""
        self.membership.tell_trials(node, self._now)
        self.measurements.peer_connected(node)
        self.planning.peer_connected(node)
        self.stage.peer_connected(node)
        self.home.stage_connected(node)
        self.gateway.home_connected(node)

    def member_unreached(self, node: NodeId) -> None:
        """Let the answers of a gateway that cannot be told wait for it, or for another one."""
        self.home.gateway_gone(node, self._now)

    def member_silent(self, node: NodeId) -> None:
        """Tell those who wait for an answer on whom it waits."""
        plan = self.planning.active
        if plan is not None and plan.stage_of(node) is not None:
            name = self.membership.name(node)
            self.gateway.notice(
                f"{name} is silent; the other devices are asked whether they hear it"
            )

    def _disconnected(self, event: Disconnected) -> None:
        node = event.node
        if node in self._guests:
            self._guests.discard(node)
            self.gateway.asker_gone(node, left=event.left, now=self._now)
            self.sessions.asker_gone(node, left=event.left, now=self._now)
            return
        if event.reason == CLOSE_REASONS[CloseCode.REPLACED]:
            self._outbox.put(GiveUp(DuplicateIdentityError.of()))
        self.sessions.member_gone(node, self._now)
        self.reach.link_down(node, self._now, left=event.left)

    def _receive(self, node: NodeId, message: Message) -> None:
        if node in self._guests:
            self._receive_from_guest(node, message)
        elif isinstance(message, Relayed):
            origin = self.reach.receive_relayed(node, message, self._now)
            inner = decode(bytes(message.message)) if origin is not None else None
            if origin is not None and inner is not None and not isinstance(inner, Relayed):
                self._receive_from_member(origin, inner)
        elif isinstance(message, Doubt | Heard | NotRelayed):
            self.reach.receive(node, message, self._heartbeat, self._now)
        else:
            self._receive_from_member(node, message)

    def _receive_from_guest(self, node: NodeId, message: Message) -> None:
        match message:
            case Ask():
                self.gateway.ask(node, message, self.planning.trouble, self._now)
            case AskInSession():
                self.sessions.begin(node, message.conversation, self._now)
                ask = message.conversation.ask
                self.gateway.ask(node, ask, self.planning.trouble, self._now)
            case Cancel():
                self.gateway.cancel(node, message.request)
                self.sessions.stopped(node, message.request, self._now)
            case SessionQuery() | ForgetSession():
                self.sessions.guest_asks(node, message, self._now)
            case StatusQuery():
                self._outbox.send(node, self.status(message.request))
            case FactsQuery():
                self._outbox.send(node, self._reports.facts(message.request))
            case MeterQuery():
                self._outbox.send(node, self._reports.meter(message.request))
            case InviteQuery() | Forget():
                self._outbox.put(Administer(node, message))
            case _:
                raise WireError(f"a guest sent a {type(message).__name__}")

    def _receive_from_member(self, node: NodeId, message: Message) -> None:
        match message:
            case Step():
                self._receive_step(node, message)
            case OpenSession() | StepNeeded():
                self.stage.receive(node, message)
            case Heartbeat() | Gossip() | Trials():
                self._receive_on_members(node, message)
            case Measured() | RateProbe():
                self.measurements.receive(node, message, self._now)
            case PlanAnnouncement() | StageReady() | StageFailed():
                self._receive_on_plan(node, message)
            case Piece() | Finished() | Failure() | Notice():
                if not self.gateway.home_says(node, message) and isinstance(message, Piece):
                    # The cancellation came before the request, or was lost with a connection.
                    self._outbox.send(node, Cancel(message.request))
            case CloseSession():
                self.stage.close(node, message, self._now)
            case TokenTook():
                self.trips.heard(message)
            case NewKey():
                self._outbox.put(Administer(node, message))
            case (
                KeepSession()
                | SessionQuery()
                | ForgetSession()
                | SessionReply()
                | SessionForgotten()
            ):
                self.sessions.member_says(node, message, self._now)
            case _:
                self._receive_as_home(node, message)

    def _receive_on_members(self, node: NodeId, message: Heartbeat | Gossip | Trials) -> None:
        self.membership.receive(node, message, self._now)
        if isinstance(message, Heartbeat):
            self.planning.remind(node, message.epoch_active)

    def _receive_on_plan(
        self, node: NodeId, message: PlanAnnouncement | StageReady | StageFailed
    ) -> None:
        changed = False
        match message:
            case PlanAnnouncement():
                changed = self.planning.receive_announcement(node, message, self._now)
            case StageReady():
                changed = self.planning.stage_ready(node, message.epoch)
            case StageFailed():
                self.planning.stage_failed(node, message.epoch, message.reason)
        if changed:
            self._follow_plan()

    def _receive_as_home(self, node: NodeId, message: Message) -> None:
        match message:
            case Ask():
                # One that comes late, when another is home, its gateway hands over again.
                if self.planning.could_be_home():
                    self.home.ask(node, message)
            case Cancel():
                self.home.cancel(node, message.request, self._now)
            case SessionClosed():
                self.home.session_closed(node, message, self._now)
            case StepFailed():
                self.home.step_failed(message, self._now)
            case StepStale():
                # A stale step ends with the next epoch, which begins answers again.
                return
            case _:
                raise WireError(f"a member sent a {type(message).__name__}")

    def _receive_step(self, node: NodeId, step: Step) -> None:
        plan = self.planning.active
        if plan is not None and step.epoch == plan.epoch and step.stage == len(plan.stages):
            self.home.row_returned(step, self._now)
        else:
            self.stage.receive(node, step)

    def _follow_plan(self) -> None:
        plan = self.planning.active
        facts = self.planning.active_facts
        assert plan is not None
        assert facts is not None
        self.trips.follow()
        self.measurements.follow(plan, facts)
        self.stage.follow(plan, facts.width, self._now)
        self.home.follow(plan, self._surroundings.vocabulary(), self._now)
        self.gateway.follow(plan)
        self.leaving.handle_timer(self._now)

    def _job_failed(self, job: Job, error: EdgellamaError) -> None:
        if isinstance(job, CloseJob | ForgetJob):
            return  # what is to be freed is not there
        at_home = self.planning.active is not None and self.planning.active.home == self._me
        if isinstance(job, TokenizeJob | HeadJob | ScoreJob) or at_home:
            self.home.fail(job.session, error, self._now)
        else:
            self.stage.failed(job, str(error))

    def _peer_reads_lz4(self, node: NodeId) -> bool:
        record = self.membership.record(node)
        return record is not None and record.reads_lz4

    def _home_replies(self, gateway: NodeId, message: Piece | Finished | Failure | Notice) -> None:
        if gateway == self._me:
            self.gateway.home_says(self._me, message)
        else:
            self._outbox.send(gateway, message)

    def _answer(self, asker: NodeId, message: Piece | Finished | Failure | Notice) -> None:
        self.sessions.said(message, self._now)
        if asker == self._me:
            self._outbox.put(ToAsker(message))
        else:
            self._outbox.send(asker, message)

    def _hand_over(self, home: NodeId, message: Ask | Cancel) -> None:
        if home != self._me:
            self._outbox.send(home, message)
        elif isinstance(message, Ask):
            self.home.ask(self._me, message)
        else:
            self.home.cancel(self._me, message.request, self._now)
