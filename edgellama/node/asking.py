"""Ways to an answer: from a mesh as a guest, or on this device alone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from edgellama.errors import NoMeshError
from edgellama.mesh.ordering import AnswerOrder
from edgellama.net.facts import device_name, ram_offer_bytes
from edgellama.net.packed import PackedCache
from edgellama.net.peers import RememberedPeers
from edgellama.net.store import Store
from edgellama.node.alone import answer_alone
from edgellama.node.guest import GatewayLostError, Guest
from edgellama.node.kernels import DeviceKernels
from edgellama.node.loading import SpanLoader, own_model_facts
from edgellama.values import Address
from edgellama.wire.messages import (
    Ask,
    Cancel,
    Failure,
    Finished,
    Message,
    Notice,
    Piece,
    StatusQuery,
    StatusReply,
)

if TYPE_CHECKING:
    from pathlib import Path

    from edgellama_kernels import Kernels

    from edgellama.net.paths import StatePaths
    from edgellama.wire.key_messages import Forget, InviteQuery

STATUS_WAIT_S: Final = 5.0

Answer = Iterator[Piece | Finished | Notice]


@dataclass(frozen=True)
class LocalSettings:
    """How this device computes when it answers alone; None leaves it to the device or model."""

    threads: int | None
    backend: str
    context: int | None


def answer_from_mesh(
    ask: Ask, named: Sequence[Address], mesh_key: bytes, paths: StatePaths
) -> Answer:
    """Find a mesh and return the messages of its answer.

    ``named`` are addresses that a person gave; without any, the node on this device, remembered
    peers and mDNS are tried. Raises NoMeshError at once where no member answers; the iterator
    raises what the mesh says went wrong.
    """
    guest = _connected(named, mesh_key, paths)
    guest.send(ask)
    guest.send(StatusQuery(secrets.randbits(64)))  # who else can be asked, should it be needed
    return _answer_messages(guest, ask)


def ask_for_status(named: Sequence[Address], mesh_key: bytes, paths: StatePaths) -> StatusReply:
    """Return what a member says of its mesh. Raises NoMeshError when none answers."""
    guest = _connected(named, mesh_key, paths)
    try:
        guest.send(StatusQuery(secrets.randbits(64)))
        for message in guest.messages(STATUS_WAIT_S):
            if isinstance(message, StatusReply):
                return message
    finally:
        guest.close()
    raise NoMeshError("no device of a mesh answered")


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


def answer_on_this_device(
    ask: Ask, model: Path, local: LocalSettings, paths: StatePaths, tell: Callable[[str], None]
) -> Answer:
    """Yield the messages of an answer that this device makes alone from a GGUF file."""
    paths.make()
    store = Store(paths.store)
    try:
        own = store.adopt(model)
        facts = own_model_facts(own, model)
        kernels = DeviceKernels(local.backend, local.threads, paths, tell)
        better: SimpleQueue[Kernels] = SimpleQueue()
        kernels.watch(better.put)
        yield from answer_alone(
            ask,
            facts,
            SpanLoader(store, PackedCache(paths.packed), b"", tell),
            kernels.now,
            node=secrets.token_hex(16),
            name=device_name(),
            ram_bytes=ram_offer_bytes(kernels.overhead_bytes),
            context=min(local.context or 0, facts.context_max),
            better_kernels=better,
        )
    finally:
        store.close()


def _connected(named: Sequence[Address], mesh_key: bytes, paths: StatePaths) -> Guest:
    here = paths.running()
    remembered: list[Address] = []
    if not named:
        peers = RememberedPeers(paths.peers).all()
        remembered = [here] if here else [peer.address for peer in peers]
    guest = Guest(mesh_key)
    guest.start()
    try:
        guest.connect(named, remembered, mdns=not named and here is None)
    except BaseException:
        guest.close()
        raise
    return guest


def _answer_messages(guest: Guest, ask: Ask) -> Answer:
    """Yield an answer in its order; where the member that was asked is gone, from another one."""
    order = AnswerOrder()
    members: list[Address] = []
    try:
        while True:
            try:
                yield from _from_one_gateway(guest, order, members)
            except GatewayLostError:
                guest.reconnect(members)
            else:
                return
            order = AnswerOrder(order.tokens)
            guest.send(replace(ask, tokens=tuple(order.tokens)))
            guest.send(StatusQuery(secrets.randbits(64)))
    except (KeyboardInterrupt, GeneratorExit):
        guest.send(Cancel(ask.request))
        raise
    finally:
        guest.close()


def _from_one_gateway(guest: Guest, order: AnswerOrder, members: list[Address]) -> Answer:
    """Yield what one member says of the answer; note where the other members are."""
    for message in guest.messages():
        if isinstance(message, Failure):
            raise message.error()
        if isinstance(message, StatusReply):
            records = [member.record for member in message.members]
            members[:] = [Address(each.host, each.port) for each in records if each.host]
        elif isinstance(message, Notice):
            yield message
        elif isinstance(message, Piece | Finished):
            for due in order.accept(message):
                yield due
                if isinstance(due, Finished):
                    return
