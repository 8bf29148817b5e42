"""A mesh of production nodes on a simulated network, computing hashes in virtual time.

Every node is a MeshNode over an Endpoint; what the mesh wants done is carried out as
``edgellama.node.member`` does, with seeded delays for computing and loading. One seed gives one
run, to the last datagram.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, TransferError
from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import (
    Dial,
    DropEpochsBefore,
    Effect,
    GiveUp,
    Job,
    LoadPlan,
    Run,
    Send,
    Tell,
    ToAsker,
)
from edgellama.mesh.ordering import AnswerOrder
from edgellama.testing.fake_model import (
    ExpectedAnswer,
    FakeEngine,
    FakeModel,
    FakeTokenizer,
    expected_answer,
    ram_bytes,
)
from edgellama.testing.network import Conditions, SimulatedHost, SimulatedNetwork
from edgellama.values import Address, LinkCounters, NodeId, SamplingSettings
from edgellama.wire.messages import (
    ALIVE,
    Ask,
    Cancel,
    Failure,
    Finished,
    MemberRecord,
    Message,
    Notice,
    Piece,
    StatusQuery,
    StatusReply,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MESH_KEY: Final = b"simulated mesh"
SESSIONS_MAX: Final = 2
EVENTS_MAX: Final = 400_000
"""In one wait: more means that the mesh talks to itself without end."""

FETCH_TRIES: Final = 3
FETCH_WAIT_S: Final = 1.0
SEEK_S: Final = 5.0
"""How often a node that is alone is found again, as announcements on a network do."""


class ClusterError(AssertionError):
    """The mesh broke a promise."""


@dataclass(frozen=True)
class Pace:
    """How long things take, in seconds: from the first to the second, by chance."""

    compute_s: tuple[float, float] = (0.001, 0.004)
    load_s: tuple[float, float] = (0.05, 0.4)


@dataclass
class Answer:
    """One request as its asker sees it."""

    ask: Ask
    order: AnswerOrder = field(default_factory=AnswerOrder)
    text: str = ""
    finished: Finished | None = None
    failure: Failure | None = None
    notices: list[str] = field(default_factory=list)
    cancelled: bool = False
    abandoned: bool = False  # the device that was asked is gone

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that the asker has."""
        return tuple(self.order.tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected."""
        gone = self.cancelled or self.abandoned
        return gone or self.finished is not None or self.failure is not None

    def take(self, message: Message) -> None:
        """Take a message for this request."""
        if isinstance(message, Notice):
            self.notices.append(message.text)
        elif isinstance(message, Failure):
            self.failure = message
        elif isinstance(message, Piece | Finished):
            if self.ended and not self.cancelled:
                raise ClusterError(f"{message} after the answer's end")
            for due in self.order.accept(message):
                self.text += due.text
                if isinstance(due, Finished):
                    self.finished = due


class ClusterNode:
    """One device: what ``Member`` is, in virtual time."""

    def __init__(
        self, cluster: SimulatedCluster, me: MemberRecord, model: FakeModel | None, host_key: bytes
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
        self.host = SimulatedHost(
            cluster.network,
            Identity(me.node, me.incarnation),
            Address(me.host, me.port),
            host_key,
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

    def counters(self, node: NodeId | None) -> LinkCounters:
        """Return what has gone over one link or all."""
        if node is None:
            return self.host.endpoint.total_counters()
        try:
            return self.host.endpoint.counters(node)
        except KeyError:
            return LinkCounters()

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
            case LoadPlan():
                self._load(effect)
            case DropEpochsBefore():
                self._enqueue(lambda: self.engine.drop_before(effect.epoch), 0.0)
            case ToAsker():
                self._answered(effect.message)
            case Tell():
                self.told.append(effect.text)
            case GiveUp():
                self.error = self.error or effect.error
                self._cluster.network.at(now, self.leave)

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


class ClusterGuest:
    """An asker that is no member: what ``Guest`` is, in virtual time."""

    def __init__(self, cluster: SimulatedCluster, number: int, gateway: ClusterNode) -> None:
        identity = Identity(f"{(1 << 120) + number:032x}", 1, guest=True)
        address = Address(f"10.0.1.{number}", 40_000)
        self.host = SimulatedHost(cluster.network, identity, address, MESH_KEY)
        self.host.handler = self
        self.gateway = gateway
        self.answers: dict[int, Answer] = {}
        self.statuses: list[StatusReply] = []
        self._unsent: list[Message] = []
        self.host.act(lambda now: self.host.endpoint.dial(gateway.address, now))

    def ask(self, ask: Ask) -> Answer:
        """Ask as soon as the gateway is reached."""
        answer = self.answers[ask.request] = Answer(ask)
        self._say(ask)
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer."""
        answer.cancelled = True
        self._say(Cancel(answer.ask.request))

    def query_status(self) -> None:
        """Ask how the mesh stands; the replies gather in ``statuses``."""
        self._say(StatusQuery(len(self.statuses)))

    def vanish(self) -> None:
        """Be gone without a word."""
        self.host.crash()
        for answer in self.answers.values():
            answer.abandoned = True

    def handle_event(self, event: Event, now: float) -> None:
        """Take an event of the link."""
        if isinstance(event, Connected):
            for message in self._unsent:
                self.host.endpoint.send(self.gateway.node, encode(message), Priority.CONTROL, now)
            self._unsent.clear()
        elif isinstance(event, DialFailed):
            self.host.endpoint.dial(self.gateway.address, now)
        elif isinstance(event, Disconnected):
            for answer in self.answers.values():
                answer.abandoned = True
        elif isinstance(event, MessageReceived):
            self._receive(decode(event.message))

    def next_timer(self) -> float | None:
        """Return None: a guest has no timers."""
        return None

    def handle_timer(self, now: float) -> None:
        """Do nothing."""

    def _say(self, message: Message) -> None:
        if self.gateway.node not in self.host.endpoint.peers():
            self._unsent.append(message)
            return
        node, data = self.gateway.node, encode(message)
        self.host.act(lambda now: self.host.endpoint.send(node, data, Priority.CONTROL, now))

    def _receive(self, message: Message) -> None:
        if isinstance(message, StatusReply):
            self.statuses.append(message)
            return
        request = getattr(message, "request", None)
        assert request is not None, message
        self.answers[request].take(message)


class SimulatedCluster:
    """Devices, guests, the network between them and the dice."""

    def __init__(
        self,
        seed: int,
        conditions: Conditions | None = None,
        model: FakeModel | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.dice = random.Random(f"cluster {seed}")  # noqa: S311 - dice, not secrets
        self.network = SimulatedNetwork(seed, conditions)
        self.model = model or FakeModel()
        self.pace = pace or Pace()
        self.nodes: dict[str, ClusterNode] = {}  # the latest life of each, by name
        self.answers: list[Answer] = []
        self._identities: dict[str, tuple[NodeId, Address]] = {}
        self._lives = 0
        self._guests = 0
        self._cuts: set[tuple[Address, Address]] = set()
        self._models = {self.model.facts.root: self.model}
        self._disks: dict[NodeId, set[tuple[str, int]]] = {}  # (root, layer): outlives a node

    # Devices

    def start(
        self,
        name: str,
        layers: float,
        *,
        model: FakeModel | None = None,
        context: int = 0,
        node: NodeId = "",
    ) -> ClusterNode:
        """Start a device that offers memory for so many layers, or start it again.

        ``model`` is the one whose file it offers; ``node`` names its id instead of the dice.
        """
        self._lives += 1
        fresh = Address(f"10.0.0.{len(self._identities) + 1}", 7711)
        node = node or f"{self.dice.getrandbits(128):032x}"
        node, address = self._identities.setdefault(name, (node, fresh))
        disk = self._disks.setdefault(node, set())
        if model is not None:
            root = model.facts.root
            self._models[root] = model
            disk |= {(root, layer) for layer in range(model.layers)}
        me = MemberRecord(
            *(node, 1_000 + self._lives, 1, ALIVE, name, address.host, address.port, 7712),
            *(ram_bytes(layers), context, "hashes", "", model.facts.root if model else ""),
            *(True, "0"),
        )
        started = self.nodes[name] = ClusterNode(self, me, model, MESH_KEY)
        started.host.act(lambda _: None)  # from here on its timers run
        self._seek(started)
        return started

    def up(self) -> list[ClusterNode]:
        """Return the devices that run."""
        return [node for node in self.nodes.values() if node.is_up]

    def guest(self, gateway: ClusterNode) -> ClusterGuest:
        """Return a guest that talks to this device."""
        self._guests += 1
        return ClusterGuest(self, self._guests, gateway)

    def _seek(self, node: ClusterNode) -> None:
        """Let a node find the others, and again where a dial has failed."""
        if not node.is_up:
            return
        connected = node.host.endpoint.peers()
        for other in self.up():
            if other is not node and other.node not in connected:
                node.dial(other.address)
        self.network.at(self.network.now + SEEK_S, lambda: self._seek(node))

    # Weights

    def model_of(self, root: str) -> FakeModel:
        """Return the model of that root."""
        return self._models[root]

    def fetch(self, node: ClusterNode, root: str, layers: Iterable[int]) -> bool:
        """Bring layers to a node's disk from the members that it knows; return whether all came."""
        disk = self._disks[node.node]
        living = {record.node for record in node.core.membership.living()}
        reachable = [
            self._disks[other.node]
            for other in self.up()
            if other.node in living and (other.address, node.address) not in self._cuts
        ]
        wanted = {(root, layer) for layer in layers}
        if not all(any(each in other for other in [disk, *reachable]) for each in wanted):
            return False
        disk |= wanted
        return True

    # Faults

    def partition(self, *sides: Iterable[ClusterNode]) -> None:
        """Let no device of one side hear another side's, nor be heard."""
        groups = [[node.address for node in side] for side in sides]
        for number, group in enumerate(groups):
            for other in groups[:number] + groups[number + 1 :]:
                for source in group:
                    for to in other:
                        self._cuts.add((source, to))
                        self.network.cut(source, to)

    def heal(self) -> None:
        """Let everybody hear everybody again, without loss."""
        self._cuts.clear()
        self.network.heal()
        self.network.set_conditions(Conditions())

    # Asking

    def new_ask(
        self,
        prompt: str = "once",
        tokens_max: int = 16,
        sampling: SamplingSettings | None = None,
        *,
        ignore_end: bool = False,
    ) -> Ask:
        """Return a request with an id of its own."""
        sampling = sampling or SamplingSettings()
        request = self.dice.getrandbits(64)
        return Ask(request, sampling, tokens_max, ignore_end, False, (), "", 1, prompt)

    def ask(self, asker: ClusterNode | ClusterGuest, ask: Ask | None = None) -> Answer:
        """Ask a device, or by a guest, and keep the answer to be checked."""
        answer = asker.ask(ask or self.new_ask())
        self.answers.append(answer)
        return answer

    def expected(self, answer: Answer) -> ExpectedAnswer:
        """Return what a single device would answer."""
        return expected_answer(self.model, answer.ask)

    def check(self, answer: Answer) -> None:
        """Raise ClusterError unless the answer is the single device's, as far as it goes."""
        expected = self.expected(answer)
        if answer.tokens != expected.tokens[: len(answer.tokens)]:
            raise ClusterError(f"tokens {answer.tokens} instead of {expected.tokens}")
        if answer.finished is None:
            return
        got = (answer.finished.prompt_tokens, answer.tokens, answer.text, answer.finished.reason)
        if got != (expected.prompt_tokens, expected.tokens, expected.text, expected.reason):
            raise ClusterError(f"{got} instead of {expected}")

    # Time

    def between(self, bounds: tuple[float, float]) -> float:
        """Return a number of seconds between two."""
        return self.dice.uniform(*bounds)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.network.run(self.network.now + seconds, events_max=EVENTS_MAX)

    def until(self, done: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Let time pass until something is so; ClusterError when it is not in time."""
        if not self.network.run(self.network.now + seconds, done, EVENTS_MAX):
            raise ClusterError(f"after {seconds} s: not {what}; {self.described()}")

    def until_ready(self, stages: int | None = None, seconds: float = 60.0) -> None:
        """Wait until every device follows one active plan of so many stages."""
        self.until(lambda: self._is_ready(stages), "ready", seconds)

    def until_answered(self, *answers: Answer, seconds: float = 60.0) -> None:
        """Wait until the answers have ended, and check them."""
        self.until(lambda: all(each.ended for each in answers), "answered", seconds)
        for answer in answers:
            self.check(answer)

    def until_idle(self, seconds: float = 30.0) -> None:
        """Wait until nothing is kept of any answer, on any device."""
        self.until(lambda: all(map(_is_idle, self.up())), "idle", seconds)

    def described(self) -> str:
        """Return how the devices stand, for a failing test."""
        return "; ".join(
            f"{node.name}: epoch {plan.epoch if plan else 0} of {node.core.planning.epoch_seen}"
            f" {node.core.planning.trouble!r} {_kept(node)}"
            for node in self.up()
            for plan in [node.core.planning.active]
        )

    def _is_ready(self, stages: int | None) -> bool:
        plans = [node.core.planning.active for node in self.up()]
        first = plans[0]
        troubles = [node.core.planning.trouble for node in self.up()]
        if first is None or any(plan != first for plan in plans) or any(troubles):
            return False
        lives = {node.node for node in self.up()}
        if stages is not None and len(first.stages) != stages:
            return False
        return all(placement.node in lives for placement in first.stages) and all(
            set(node.host.endpoint.peers()) >= lives - {node.node} for node in self.up()
        )


def _kept(node: ClusterNode) -> dict[str, int]:
    """Return how much a device keeps for answers, by place."""
    return {
        "gateway": len(node.core.gateway._requests),
        "home": node.core.home.sessions_open,
        "stage": len(node.core.stage._sessions),
        "engine": len(node.engine.sessions_held()),
    }


def _is_idle(node: ClusterNode) -> bool:
    return not any(_kept(node).values())
