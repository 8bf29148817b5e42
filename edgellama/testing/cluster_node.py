"""One device of a simulated mesh: carries out what the mesh decides, as ``Member`` does."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, TransferError
from edgellama.link.endpoint import Event, Identity
from edgellama.link.links import UDP
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import (
    Dial,
    DropEpochsBefore,
    Effect,
    GiveUp,
    HandedOver,
    HangUp,
    Job,
    LoadPlan,
    Run,
    Send,
    Tell,
    ToAsker,
)
from edgellama.testing.cluster_asking import MESH_KEY, Answer
from edgellama.testing.fake_model import FakeEngine, FakeModel, FakeTokenizer
from edgellama.testing.network import SimulatedHost
from edgellama.testing.streams import StreamingHost
from edgellama.values import Address, LinkCounters, LinkFacts, NodeId
from edgellama.wire.messages import Ask, MemberRecord, Message, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.testing.cluster import SimulatedCluster

SESSIONS_MAX: Final = 2
FETCH_TRIES: Final = 3
FETCH_WAIT_S: Final = 1.0


class ClusterNode:
    """One device: what ``Member`` is, in virtual time."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        me: MemberRecord,
        model: FakeModel | None,
        transport: str = UDP,
    ) -> None:
        self._cluster = cluster
        self.name = me.name
        self.told: list[str] = []
        self.error: EdgellamaError | None = None
        self.answers: dict[int, Answer] = {}
        self.engine = FakeEngine()
        self.is_up = True
        self._tokenizer: FakeTokenizer | None = None
        self._queue: deque[tuple[Callable[[], None], float]] = deque()  # the compute thread's
        self._loads = 0
        identity, address = Identity(me.node, me.incarnation), Address(me.host, me.port)
        self.host = (
            SimulatedHost(cluster.network, identity, address, MESH_KEY)
            if transport == UDP
            else StreamingHost(
                cluster.network, cluster.pipes, identity, address, MESH_KEY, transport
            )
        )
        facts = model.facts if model else None
        self.core = MeshNode(me, facts, SESSIONS_MAX, self, open_mesh=False)
        self.host.handler = self

    @property
    def node(self) -> NodeId:
        """The node's id."""
        return self.host.endpoint.identity.node

    @property
    def address(self) -> Address:
        """Where its datagrams go."""
        return self.host.address

    # What the core asks of its surroundings, and what the host tells its handler

    def heard_at(self, node: NodeId) -> float | None:
        """Return when anything last came from a peer."""
        peer = self.host.endpoint.peers().get(node)
        return None if peer is None else peer.silent_since

    def counters(self, node: NodeId | None) -> LinkCounters:
        """Return what has gone over one link or all."""
        if node is None:
            return self.host.endpoint.total_counters()
        try:
            return self.host.endpoint.counters(node)
        except KeyError:
            return LinkCounters()

    def transport(self, node: NodeId) -> str:
        """Return what carries a link."""
        if isinstance(self.host, StreamingHost):
            return self.host.links.transport_of(node)
        return UDP if node in self.host.endpoint.peers() else ""

    def links(self) -> list[LinkFacts]:
        """Return the round trips to other members."""
        return [
            LinkFacts(self.node, node, round(peer.round_trip_s * 1e6), peer.bytes_per_s)
            for node, peer in self.host.endpoint.peers().items()
            if peer.round_trip_s is not None and not peer.identity.guest
        ]

    def clock_ms(self) -> int:
        """Return the virtual time."""
        return round(self._cluster.network.now * 1000)

    def vocabulary(self) -> FakeTokenizer | None:
        """Return the tokenizer of the span loaded last."""
        return self._tokenizer

    def handle_event(self, event: Event, now: float) -> None:
        """Take an event of the link."""
        self.core.handle_event(event, now)
        self._carry_out(now)

    def next_timer(self) -> float | None:
        """Return when the core wants to be called."""
        return self.core.next_timer()

    def handle_timer(self, now: float) -> None:
        """Let the core do what is due."""
        self.core.handle_timer(now)
        self._carry_out(now)

    # What a person or a program does with it

    def ask(self, ask: Ask) -> Answer:
        """Ask this very node."""
        answer = self.answers[ask.request] = Answer(ask)
        self._act(lambda now: self.core.ask(ask, now))
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer asked of this very node."""
        answer.cancelled = True
        self._act(lambda now: self.core.cancel(answer.ask.request, now))

    def hand_over(self) -> None:
        """Leave when the others have taken over, as ``join`` does on Ctrl-C."""
        self._act(self.core.hand_over)

    def rest(self, *, resting: bool) -> None:
        """Want no layers, or want them again, as a phone does by its battery."""
        self._act(lambda now: self.core.rest(now, resting=resting))

    def leave(self) -> None:
        """Go with a word."""

        def leave(now: float) -> None:
            self.core.leave(now)
            self._carry_out(now)
            for node in list(self.host.endpoint.peers()):
                self.host.endpoint.disconnect(node, now)

        self.host.act(leave)
        self.kill()

    def kill(self) -> None:
        """Vanish without a word."""
        self.is_up = False
        self.host.crash()
        for answer in self.answers.values():
            answer.abandoned = True

    def stall(self, seconds: float) -> None:
        """Let the compute thread stand still for a while after the job under way."""
        self._enqueue(lambda: None, seconds)

    def dial(self, address: Address) -> None:
        """Try an address, as discovery does."""
        self.host.act(lambda now: self.host.endpoint.dial(address, now))

    def _act(self, call: Callable[[float], None]) -> None:
        def act(now: float) -> None:
            call(now)
            self._carry_out(now)

        self.host.act(act)

    # What the core wants

    def _carry_out(self, now: float) -> None:
        while effects := self.core.effects():
            for effect in effects:
                self._do(effect, now)

    def _do(self, effect: Effect, now: float) -> None:
        match effect:
            case Send():
                if effect.node in self.host.endpoint.peers():
                    data = encode(effect.message)
                    self.host.endpoint.send(effect.node, data, effect.priority, now)
            case Run():
                self._compute(effect.job)
            case Dial():
                self.host.endpoint.dial(effect.address, now)
            case HangUp():
                self.host.endpoint.give_up(effect.node, now)
            case LoadPlan():
                self._load(effect)
            case DropEpochsBefore():
                self._enqueue(lambda: self.engine.drop_before(effect.epoch), 0.0)
            case ToAsker():
                self._answered(effect.message)
            case Tell():
                self.told.append(effect.text)
            case HandedOver():
                self._cluster.network.at(self._cluster.network.now, self.leave)
            case GiveUp():
                self.error = self.error or effect.error
                self._cluster.network.at(self._cluster.network.now, self.leave)

    def _answered(self, message: Message) -> None:
        request = getattr(message, "request", None)
        assert request is not None
        self.answers[request].take(message)

    def _compute(self, job: Job) -> None:
        def compute() -> None:
            result = self.engine.run(job)
            self._act(lambda now: self.core.job_done(job, result, now))

        self._enqueue(compute, self._cluster.between(self._cluster.pace.compute_s))

    def _enqueue(self, call: Callable[[], None], seconds: float) -> None:
        self._queue.append((call, seconds))
        if len(self._queue) == 1:
            self._begin_first()

    def _begin_first(self) -> None:
        self._cluster.network.at(self._cluster.network.now + self._queue[0][1], self._end_first)

    def _end_first(self) -> None:
        if not self.is_up:
            return
        self._queue[0][0]()
        self._queue.popleft()
        if self._queue:
            self._begin_first()

    def _load(self, wanted: LoadPlan) -> None:
        self._loads += 1
        self._load_later(wanted, self._loads, FETCH_TRIES)

    def _load_later(self, wanted: LoadPlan, number: int, tries: int) -> None:
        seconds = self._cluster.between(self._cluster.pace.load_s)
        network = self._cluster.network
        network.at(network.now + seconds, lambda: self._try_load(wanted, number, tries))

    def _try_load(self, wanted: LoadPlan, number: int, tries: int) -> None:
        if not self.is_up or number != self._loads:
            return  # a later plan has come
        plan = wanted.plan
        if self._cluster.fetch(self, plan.model_root, self._span_of(wanted)):
            model = self._cluster.model_of(plan.model_root)
            self._enqueue(lambda: self._install(wanted, model), 0.0)
        elif tries > 1:
            network = self._cluster.network
            network.at(
                network.now + FETCH_WAIT_S, lambda: self._load_later(wanted, number, tries - 1)
            )
        else:
            error = TransferError("no device that can be reached has the layers")
            self._act(lambda now: self.core.plan_failed(plan.epoch, error, now))

    def _span_of(self, wanted: LoadPlan) -> range:
        stage = wanted.plan.stage_of(self.node)
        assert stage is not None
        return range(*wanted.plan.stages[stage].span)

    def _install(self, wanted: LoadPlan, model: FakeModel) -> None:
        self.engine.install_span(model, wanted.plan, self.node)
        if wanted.plan.home == self.node:
            self._tokenizer = FakeTokenizer()
        self._act(lambda now: self.core.plan_loaded(wanted.plan.epoch, now))
