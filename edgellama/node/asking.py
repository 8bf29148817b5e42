"""Who answers: a mesh that is asked as a guest, or this device alone."""

from __future__ import annotations

import secrets
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from edgellama.errors import NoMeshError
from edgellama.link.links import AUTO
from edgellama.mesh.ordering import AnswerOrder
from edgellama.net.facts import device_name, ram_offer_bytes
from edgellama.net.packed import PackedCache
from edgellama.net.peers import RememberedPeers
from edgellama.net.store import Store
from edgellama.node.alone import Alone, AnswerMessage
from edgellama.node.guest import GatewayLostError, Guest
from edgellama.node.kernels import DeviceKernels
from edgellama.node.loading import SpanLoader, own_model_facts
from edgellama.node.session_shelf import Elsewhere
from edgellama.values import KV_F16, Address
from edgellama.wire.measurement_messages import FactsQuery, FactsReply
from edgellama.wire.messages import (
    Ask,
    AskInSession,
    Cancel,
    Conversation,
    Failure,
    Finished,
    ForgetSession,
    Message,
    Notice,
    Piece,
    SessionForgotten,
    SessionQuery,
    SessionReply,
    StatusQuery,
    StatusReply,
    Summary,
    with_turns_kept,
)
from edgellama.wire.session_messages import grown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from threading import Event

    from edgellama_kernels import Kernels

    from edgellama.net.paths import StatePaths
    from edgellama.wire.key_messages import Forget, InviteQuery

STATUS_WAIT_S: Final = 5.0
GATEWAY_LOST: Final = "the device that was asked is lost; looking for another one"

Reply = TypeVar("Reply", StatusReply, FactsReply, SessionReply, SessionForgotten)


@dataclass(frozen=True)
class LocalSettings:
    """How this device computes when it answers alone; None leaves it to the device or model."""

    threads: int | None
    backend: str
    context: int | None
    kv_kind: str = KV_F16


class Asker(Elsewhere, Protocol):
    """What answers one question after another."""

    def answer(
        self, ask: Ask, stop: Event | None = None, session: Conversation | None = None
    ) -> Iterator[AnswerMessage]:
        """Yield the messages of an answer; it ends early when ``stop`` is set.

        Tokens that ``ask`` knows are not told again. What is asked in a ``session`` is kept by
        the mesh, too. Raises what is wrong with the question, or with whoever answers.
        """

    def status(self) -> StatusReply:
        """Return how the mesh that answers stands."""


class MeshAsker:
    """A guest of a mesh; where the member that it asks is gone, it asks another one."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._members: list[Address] = []  # who else can be asked, should it be needed

    def answer(
        self, ask: Ask, stop: Event | None = None, session: Conversation | None = None
    ) -> Iterator[AnswerMessage]:
        """Yield an answer in its order; see ``Asker``."""
        order = AnswerOrder(ask.tokens)
        text = session.text if session else ""
        is_over = False
        try:
            while not is_over and self._reach(stop):
                ask = replace(ask, tokens=tuple(order.tokens))
                asked = AskInSession(grown(session, ask, text)) if session else ask
                self._guest.send(asked)
                self._guest.send(StatusQuery(secrets.randbits(64)))
                try:
                    for message in self._said(ask.request, order, stop):
                        is_over = isinstance(message, Finished)
                        if isinstance(message, Piece):
                            ask = with_turns_kept(ask, message.turns_kept)
                            text += message.text
                        yield message
                except GatewayLostError:
                    order = AnswerOrder(order.tokens)
                    ask = replace(ask, attempt=ask.attempt + 1)
                    yield Notice(ask.request, GATEWAY_LOST)
                else:
                    return
        finally:
            if not is_over:
                self._guest.send(Cancel(ask.request))

    def status(self) -> StatusReply:
        """Return how the mesh stands; raises NoMeshError when no member says."""
        return self._reply(StatusQuery(secrets.randbits(64)), StatusReply)

    def facts(self) -> FactsReply:
        """Return all that the mesh makes plans of; raises NoMeshError when no member says."""
        return self._reply(FactsQuery(secrets.randbits(64)), FactsReply)

    def session(self, name: str) -> Conversation | None:
        """Return the newest record of a session that a member has."""
        reply = self._reply(SessionQuery(secrets.randbits(64), name), SessionReply)
        return next((each for each in reply.found if each.name == name), None)

    def sessions(self) -> tuple[Summary, ...]:
        """Return what the members know of sessions."""
        return self._reply(SessionQuery(secrets.randbits(64), ""), SessionReply).known

    def forget_session(self, name: str) -> int:
        """Have the members remove a session; return how many did."""
        message = ForgetSession(secrets.randbits(64), name)
        return len(self._reply(message, SessionForgotten).nodes)

    def _reply(
        self, query: StatusQuery | FactsQuery | SessionQuery | ForgetSession, kind: type[Reply]
    ) -> Reply:
        """Return what a member replies; raises NoMeshError when none does."""
        while self._reach():
            self._guest.send(query)
            try:
                for message in self._guest.messages(STATUS_WAIT_S):
                    if isinstance(message, kind) and message.request == query.request:
                        return message
            except GatewayLostError:
                continue
        raise NoMeshError("no device of a mesh answered")

    def _reach(self, stop: Event | None = None) -> bool:
        """Return whether there is a member to ask, another one where the last has gone."""
        return self._guest.is_connected or self._guest.reconnect(self._members, stop)

    def close(self) -> None:
        """Say goodbye."""
        self._guest.close()

    def _said(
        self, request: int, order: AnswerOrder, stop: Event | None
    ) -> Iterator[AnswerMessage]:
        """Yield what one member says of the answer; note where the other members are."""
        for message in self._guest.messages(stop=stop):
            if isinstance(message, StatusReply):
                records = [member.record for member in message.members]
                self._members = [Address(each.host, each.port) for each in records if each.host]
            elif getattr(message, "request", None) != request:
                continue  # of an earlier question, which was stopped
            elif isinstance(message, Failure):
                raise message.error()
            elif isinstance(message, Notice):
                yield message
            elif isinstance(message, Piece | Finished):
                for due in order.accept(message):
                    yield due
                    if isinstance(due, Finished):
                        return


@contextmanager
def mesh_asker(
    named: Sequence[Address], mesh_key: bytes, paths: StatePaths, transport: str = AUTO
) -> Iterator[MeshAsker]:
    """Find a mesh.

    ``named`` are addresses that a person gave; without any, the node on this device, remembered
    peers and mDNS are tried. Raises NoMeshError where no member answers.
    """
    with closing(MeshAsker(_connected(named, mesh_key, paths, transport))) as asker:
        yield asker


def ask_for_status(
    named: Sequence[Address], mesh_key: bytes, paths: StatePaths, transport: str = AUTO
) -> StatusReply:
    """Return what a member says of its mesh. Raises NoMeshError when none answers."""
    with mesh_asker(named, mesh_key, paths, transport) as asker:
        return asker.status()


def ask_for_facts(
    named: Sequence[Address], mesh_key: bytes, paths: StatePaths, transport: str = AUTO
) -> FactsReply:
    """Return all that a mesh makes plans of. Raises NoMeshError when no member answers."""
    with mesh_asker(named, mesh_key, paths, transport) as asker:
        return asker.facts()


def ask_this_device(message: InviteQuery | Forget, mesh_key: bytes, paths: StatePaths) -> Message:
    """Return the answer of the member that runs on this device; raises what it says is wrong.

    Raises NoMeshError when none runs here.
    """
    if paths.running() is None:
        raise NoMeshError("no member of a mesh runs on this device: start edgellama join first")
    guest = _connected((), mesh_key, paths)
    try:
        guest.send(message)
        for answer in guest.messages(STATUS_WAIT_S):
            if isinstance(answer, Failure):
                raise answer.error()
            return answer
    finally:
        guest.close()
    raise NoMeshError("the member on this device gave no answer")


@contextmanager
def device_asker(
    model: Path, local: LocalSettings, paths: StatePaths, tell: Callable[[str], None]
) -> Iterator[Alone]:
    """Load a GGUF file, so that this device answers alone."""
    paths.make()
    store = Store(paths.store)
    try:
        own = store.adopt(model)
        facts = own_model_facts(own, model)
        kernels = DeviceKernels(local.backend, local.threads, paths, tell)
        better: SimpleQueue[Kernels] = SimpleQueue()
        kernels.watch(better.put)
        alone = Alone(
            facts,
            SpanLoader(store, PackedCache(paths.packed), b"", tell),
            kernels.now,
            node=secrets.token_hex(16),
            name=device_name(),
            ram_bytes=ram_offer_bytes(kernels.overhead_bytes),
            context=min(local.context or 0, facts.context_max),
            kv_kind=local.kv_kind,
            better_kernels=better,
        )
        with closing(alone):
            yield alone
    finally:
        store.close()


def _connected(
    named: Sequence[Address], mesh_key: bytes, paths: StatePaths, transport: str = AUTO
) -> Guest:
    here = paths.running()
    remembered: list[Address] = []
    if not named:
        peers = RememberedPeers(paths.peers).all()
        remembered = [here] if here else [peer.address for peer in peers]
    guest = Guest(mesh_key, transport=transport)
    guest.start()
    try:
        guest.connect(named, remembered, mdns=not named and here is None)
    except BaseException:
        guest.close()
        raise
    return guest
