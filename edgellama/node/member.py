"""A device in the mesh: builds the parts, carries out what the mesh decides, owns the threads.

Threads: one for datagrams, which also runs the mesh's decisions; one that computes; one that
loads; those of the weight server and of mDNS. They meet in queues only.
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import edgellama
from edgellama.errors import DuplicateIdentityError, EdgellamaError
from edgellama.link.endpoint import Connected, Event, Identity
from edgellama.link.links import UDP
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import (
    Administer,
    Dial,
    DropEpochsBefore,
    Effect,
    GiveUp,
    HandedOver,
    HangUp,
    Job,
    JobResult,
    LoadPlan,
    RemoveConversation,
    Run,
    Send,
    StoreConversation,
    Tell,
    TokenCame,
)
from edgellama.net.discovery import Candidate, Discovery
from edgellama.net.interfaces import interfaces_for_discovery
from edgellama.net.mesh_key import MeshKeyFile
from edgellama.net.packed import PackedCache
from edgellama.net.peers import RememberedPeers
from edgellama.net.session_files import SessionFiles
from edgellama.net.store import Store
from edgellama.net.supply import WeightSource
from edgellama.net.throttle import Throttle
from edgellama.net.transfer_server import WeightServer
from edgellama.node.compute import ComputeThread
from edgellama.node.engine import Engine, LoadedSpan
from edgellama.node.join_settings import JoinSettings, bound_socket
from edgellama.node.key_holder import Invitation, KeyHolder
from edgellama.node.key_requests import KeyRequests
from edgellama.node.linking import linking
from edgellama.node.load_thread import LoadThread
from edgellama.node.loading import Progress, SpanLoader, own_model_facts
from edgellama.node.measuring import RATE_PAST, link_facts
from edgellama.node.memory_offer import CHECK_S
from edgellama.node.session_thread import SessionThread
from edgellama.values import Address, LinkCounters, LinkFacts, ModelFacts, NodeId
from edgellama.wire.activations import lz4_available
from edgellama.wire.messages import ALIVE, LEAVES, MemberRecord, StatusReply, encode

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from edgellama_kernels import Kernels

    from edgellama.mesh.home_session import Vocabulary
    from edgellama.net.paths import StatePaths
    from edgellama.net.record_stream import RecordStream
    from edgellama.node.kernels import DeviceKernels
    from edgellama.values import DeviceSpeed

SESSIONS_MAX: Final = 2
STOP_WAIT_S: Final = 5.0


class _LinkHandler:
    """Runs the mesh's decisions on the I/O thread."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def handle_event(self, event: Event, now: float) -> None:
        self._member.link_event(event, now)

    def next_timer(self) -> float | None:
        return self._member.core.next_timer()

    def handle_timer(self, now: float) -> None:
        self._member.timer(now)


class Member:
    """One running device of a mesh. ``tell`` and ``progress`` may be called from any thread."""

    def __init__(
        self,
        settings: JoinSettings,
        paths: StatePaths,
        kernels: DeviceKernels,
        tell: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._tell = tell
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._tokenizer: Vocabulary | None = None
        self._sources: tuple[WeightSource, ...] = ()
        self._sources_at = self._look_at_memory_at = -1.0
        self._peers = RememberedPeers(paths.peers)

        self._store = Store(paths.store)
        facts = self._offered(progress)
        self._throttle = Throttle()
        self._loader = SpanLoader(
            *(self._store, PackedCache(paths.packed), settings.mesh_key, tell, progress),
            *(self._throttle, self._weights_came),
        )
        self._kernels = kernels
        self._compute = ComputeThread(Engine(kernels.now), self._job_done, self._end)
        self._compute.start()
        kernel_digest = self._compute.prove()

        key_file = MeshKeyFile(paths.mesh_key) if settings.key_is_kept else None
        self._keys = KeyHolder(settings.mesh_key, key_file, self._use_key, self._announce, tell)
        self._discovery: Discovery | None = None
        self.addresses = interfaces_for_discovery(settings.listen)
        self._socket = bound_socket(settings)
        node = paths.node_id()
        incarnation = paths.next_incarnation(time.time_ns() // 1_000_000)
        identity, handler = Identity(node, incarnation), _LinkHandler(self)
        self._links, self._stream_sockets, self._driver = linking(
            identity, settings.mesh_key, self._socket, handler, settings.transport
        )
        self._server = WeightServer(
            *(settings.listen or "0.0.0.0", self._socket.address.port),
            *(settings.mesh_key, self._store.source),
            admit=self._admit,
            link=None if settings.transport == UDP else self._take_over,
            throttle=self._throttle,
        )
        host = self.addresses[0] if self.addresses else ""
        self.address = Address(host, self._socket.address.port)
        me = self._own_record(facts, kernel_digest, identity)
        self._sessions = SessionThread(SessionFiles(paths.sessions), tell)
        kept, open_mesh = self._sessions.kept(), not settings.mesh_key
        self.core = MeshNode(me, facts, SESSIONS_MAX, self, open_mesh=open_mesh, kept=kept)
        self.core.stage.row_codec = kernels.now.row_codec
        self._key_requests = KeyRequests(self._keys, self._links, self.core, self.invite)
        self._link_thread = threading.Thread(
            target=self._run_link, name="edgellama-link", daemon=True
        )
        self._speed: DeviceSpeed | None = None  # as the last trial has shown it
        self._is_doubled = False  # a person has been told
        self._tried_root = ""  # the model whose layers have shown their speed here
        self._loads = LoadThread(self._load, self._loaded, self._report_load, self._end)

    def _own_record(
        self, facts: ModelFacts | None, kernel_digest: str, identity: Identity
    ) -> MemberRecord:
        """Return what this device says of itself in this life."""
        settings, kernels = self._settings, self._kernels.now
        return MemberRecord(
            *(identity.node, identity.incarnation, 1, ALIVE, settings.name, self.address.host),
            *(self.address.port, self._server.port, settings.offer.told_bytes, settings.context),
            *(kernels.name, kernel_digest, facts.root if facts else "", lz4_available()),
            edgellama.__version__,
            kv_kind=settings.kv_kind,
            wire=settings.wire,
            split=settings.split,
            sessions=settings.sessions,
        )

    def _offered(self, progress: Progress) -> ModelFacts | None:
        """Return the facts of the model whose file the person named, if any."""
        path = self._settings.model
        if path is None:
            return None
        own = self._store.adopt(
            path, lambda done, total: progress("reading the model", done, total)
        )
        return own_model_facts(own, path)

    def start(self) -> None:
        """Begin to find others and to serve."""
        # Kernels that will be replaced in a moment need no trial: plans would be made by it.
        self._kernels.watch(
            self._better_kernels, lambda: self._compute.try_speed(self._speed_tried)
        )
        known = [peer.address for peer in self._peers.all()]
        self.core.membership.seed([*self._settings.peers, *known])
        self._link_thread.start()
        self._loads.start()
        self._sessions.start()
        self._paths.write_run_file(
            Address(self._settings.listen or "127.0.0.1", self._socket.address.port)
        )
        if self._settings.mdns:
            # Without --listen, mDNS follows the device from one network to the next.
            interfaces = self.addresses if self._settings.listen else None
            self._discovery = Discovery(
                self._settings.mesh_key, self._found, interfaces, self._join_port, self._doubled
            )
            self._discovery.browse()
            me = self.core.membership.me
            host = self._settings.listen or "0.0.0.0"
            self._discovery.announce(
                me.node, me.incarnation, Address(host, self._socket.address.port)
            )

    def wait(self, timeout_s: float) -> bool:
        """Return whether the node has ended by itself within ``timeout_s``."""
        return self._ended.wait(timeout_s)

    def stop(self) -> None:
        """Leave the mesh, end the threads; raise the error that ended the node, if one did."""
        self._paths.remove_run_file()
        self._loads.cancel()
        self._driver.post(self._leave)
        self._driver.stop()
        self._link_thread.join(STOP_WAIT_S)
        self._loads.join(STOP_WAIT_S)
        self._sessions.stop(STOP_WAIT_S)
        self._compute.stop(STOP_WAIT_S)
        if self._discovery is not None:
            self._discovery.close()
        self._server.close()
        self._socket.close()
        self._store.close()
        if self._error is not None:
            raise self._error

    def invite(self) -> Invitation:
        """Open an invitation for one more device; MisuseError in an open mesh."""
        host = self.addresses[0] if self.addresses else "127.0.0.1"
        return self._keys.invite(Address(host, self._server.port))

    def status(self, timeout_s: float = 1.0) -> StatusReply | None:
        """Return how the mesh stands, None when the I/O thread does not say in time."""
        answer: SimpleQueue[StatusReply] = SimpleQueue()
        self._driver.post(lambda _: answer.put(self.core.status()))
        try:
            return answer.get(timeout=timeout_s)
        except Exception:
            return None

    @property
    def discovery_note(self) -> str | None:
        """Why mDNS does not work here, for a person; None when it does."""
        return self._discovery.note if self._discovery else None

    def heard_at(self, node: NodeId) -> float | None:
        """Return when anything last came from a peer; on the I/O thread."""
        peer = self._links.peers().get(node)
        return None if peer is None else peer.silent_since

    def counters(self, node: NodeId | None) -> LinkCounters:
        """Return what has gone over one link or all; on the I/O thread."""
        if node is None:
            return self._links.total_counters()
        try:
            return self._links.counters(node)
        except KeyError:
            return LinkCounters()

    def transport(self, node: NodeId) -> str:
        """Return what carries the link to a node, empty without one; on the I/O thread."""
        return self._links.transport_of(node)

    def links(self) -> list[LinkFacts]:
        """Return what the links to other members have measured; on the I/O thread."""
        me = self.core.membership.me.node
        return link_facts(me, self._links.peers(), self._links.counters)

    def clock_ms(self) -> int:
        """Return this device's clock, milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def vocabulary(self) -> Vocabulary | None:
        """Return the tokenizer of the span loaded last."""
        return self._tokenizer

    def link_event(self, event: Event, now: float) -> None:
        """Take an event of the link; on the I/O thread."""
        if isinstance(event, Connected) and not event.identity.guest:
            self._remember(event)
        self.core.handle_event(event, now)
        self._carry_out(now)

    def timer(self, now: float) -> None:
        """Do what is due; on the I/O thread."""
        if now >= self._look_at_memory_at:
            self._look_at_memory_at = now + CHECK_S
            held_bytes = self.core.planning.held_bytes()
            self._offer_again(self._settings.offer.shrunk_below(held_bytes), now)
        self.core.handle_timer(now)
        self._carry_out(now)

    def act(self, call: Callable[[float], None]) -> None:
        """Have the I/O thread run ``call(now)``, and do what comes of it."""

        def act(now: float) -> None:
            call(now)
            self._carry_out(now)

        self._driver.post(act)

    def _carry_out(self, now: float) -> None:
        while effects := self.core.effects():
            for effect in effects:
                self._do(effect, now)
            if self._sources_at != self.core.membership.changed_at:
                self._sources_at = self.core.membership.changed_at
                self._sources = self._weight_sources()
                intents = {each.intent for each in self.core.membership.living()}
                self._throttle.is_urgent = LEAVES in intents
                # A plan may follow: it shall be made of what there is now.
                self._offer_again(self._settings.offer.changed(), now)

    def _offer_again(self, ram_bytes: int | None, now: float) -> None:
        if ram_bytes is not None:
            self.core.membership.set_offer(ram_bytes, now)

    def _do(self, effect: Effect, now: float) -> None:
        match effect:
            case Send() | Dial() | HangUp():
                self._do_on_links(effect, now)
            case Run():
                self._compute.run(effect.job)
            case LoadPlan():
                self._loads.load(effect)
            case DropEpochsBefore():
                self._compute.drop_before(effect.epoch)
            case TokenCame():
                self._throttle.token_came(effect.delay)
            case StoreConversation() | RemoveConversation():
                self._sessions.carry_out(effect)
            case Tell():
                self._tell(effect.text)
            case Administer():
                self._key_requests.administer(effect, now)
            case HandedOver():
                self._ended.set()
            case GiveUp():
                self._end(effect.error)

    def _do_on_links(self, effect: Send | Dial | HangUp, now: float) -> None:
        match effect:
            case Send():
                if effect.node in self._links.peers():
                    data = encode(effect.message)
                    self._links.send(effect.node, data, effect.priority, now)
            case Dial():
                self._links.dial(effect.address, now, self._stream_address(effect.address))
            case HangUp():
                self._links.give_up(effect.node, now)

    def _stream_address(self, address: Address) -> Address | None:
        """Return where a member listens for TCP whose datagrams go to an address."""
        for record in self.core.membership.records():
            if (record.host, record.port) == address:
                return Address(record.host, record.transfer_port)
        return None

    def _take_over(self, connection: socket.socket) -> None:
        """Take a connection over which somebody wants a link; on a thread of the server's."""
        self._driver.post(lambda now: self._stream_sockets.accept(connection, now))

    def _use_key(self, key: bytes) -> None:
        """Put another key to use; on the I/O thread."""
        self._links.set_mesh_key(key)
        self._server.mesh_key = key
        self._loader.mesh_key = key
        if self._discovery is not None:
            self._discovery.set_mesh_key(key)

    def _admit(self, stream: RecordStream) -> None:
        me = self.core.membership.me
        self._keys.admit(stream, me.node, me.name, me.port)

    def _announce(self) -> None:
        if self._discovery is not None:
            self._discovery.refresh()

    def _join_port(self) -> int:
        return self._server.port if self._keys.is_inviting() else 0

    def _weight_sources(self) -> tuple[WeightSource, ...]:
        """Return where weights can be had: whoever has the file, and those after this device."""
        me = self.core.membership.me.node
        others = [each for each in self.core.membership.living() if each.node != me]
        others.sort(key=lambda each: (not each.model_root, each.node < me, each.node))
        return tuple(
            WeightSource(
                # Whom this device reached by TCP it reaches there for weights, too.
                self._links.stream_address(each.node) or Address(each.host, each.transfer_port),
                each.name,
                bool(each.model_root),
                f"{each.node} {each.incarnation}",
            )
            for each in others
        )

    def _run_link(self) -> None:
        try:
            self._driver.run()
        except BaseException as error:
            self._end(error)

    def _load(self, wanted: LoadPlan, cancelled: threading.Event) -> LoadedSpan:
        me = self.core.membership.me.node
        return self._loader.load(wanted.plan, me, self._sources_now, cancelled)

    def _loaded(self, wanted: LoadPlan, loaded: LoadedSpan) -> None:
        speed, root = self._speed, wanted.facts.root
        if speed is not None and self._tried_root != root:
            self._tried_root = root
            self._compute.try_span(loaded, wanted.facts, speed, self._speed_tried)
        self._compute.install(loaded, lambda: self._installed(loaded))

    def _speed_tried(self, speed: DeviceSpeed) -> None:
        self._speed = speed
        self._driver.post(lambda now: self.core.speed_tried(speed, now))

    def _weights_came(self, source: WeightSource, bytes_per_s: int) -> None:
        rate = min(bytes_per_s, RATE_PAST - 1)
        self._driver.post(lambda _: self.core.measurements.rates.fetched(source.node, rate))

    def _sources_now(self) -> Sequence[WeightSource]:
        return self._sources

    def _report_load(self, wanted: LoadPlan, error: EdgellamaError) -> None:
        self._tell(str(error))
        self.act(lambda now: self.core.plan_failed(wanted.plan.epoch, error, now))

    def _installed(self, loaded: LoadedSpan) -> None:
        def installed(now: float) -> None:
            if loaded.tokenizer is not None:
                self._tokenizer = loaded.tokenizer
            self.core.plan_loaded(loaded.plan.epoch, now)

        self.act(installed)

    def _job_done(self, job: Job, result: JobResult | EdgellamaError, elapsed_ns: int) -> None:
        def done(now: float) -> None:
            self.core.job_timed(job, elapsed_ns)
            self.core.job_done(job, result, now)

        self.act(done)

    def _better_kernels(self, kernels: Kernels) -> None:
        def used(now: float) -> None:
            self.core.stage.row_codec = kernels.row_codec
            self.core.membership.set_backend(kernels.name, now)

        self._compute.use(kernels, lambda: self.act(used))
        self._compute.try_speed(self._speed_tried)

    def _leave(self, now: float) -> None:
        self.core.leave(now)
        self._carry_out(now)
        for node in list(self._links.peers()):
            self._links.disconnect(node, now)

    def _found(self, candidate: Candidate) -> None:
        if candidate.node != self.core.membership.me.node:
            self._dial(candidate.address)

    def _doubled(self, double: Candidate) -> None:
        """Give up where another device has this one's identity and has started later."""
        error = DuplicateIdentityError.of(str(double.address))
        if double.incarnation > self.core.membership.me.incarnation:
            self._end(error)
        elif not self._is_doubled:
            self._is_doubled = True
            self._tell(str(error))

    def _dial(self, address: Address) -> None:
        self._driver.post(lambda now: self._links.dial(address, now))

    def _remember(self, event: Connected) -> None:
        if not event.address.port:
            return  # it came by TCP, from where nobody listens
        self._peers.remember(event.identity.node, event.address, time.time_ns() // 1_000_000)
        try:
            self._peers.save()
        except EdgellamaError as error:
            self._tell(str(error))

    def _end(self, error: BaseException) -> None:
        self._error = self._error or error
        self._ended.set()
