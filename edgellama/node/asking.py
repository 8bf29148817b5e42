"""Ways to an answer: from a mesh as a guest, or on this device alone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from edgellama.errors import NoMeshError
from edgellama.mesh.ordering import AnswerOrder
from edgellama.net.facts import device_name, ram_offer_bytes
from edgellama.net.packed import PackedCache
from edgellama.net.peers import RememberedPeers
from edgellama.net.store import Store
from edgellama.node.alone import answer_alone
from edgellama.node.guest import Guest
from edgellama.node.kernels import DeviceKernels
from edgellama.node.loading import SpanLoader, own_model_facts
from edgellama.wire.messages import (
    Ask,
    Cancel,
    Failure,
    Finished,
    Notice,
    Piece,
    StatusQuery,
    StatusReply,
)

if TYPE_CHECKING:
    from pathlib import Path

    from edgellama_kernels import Kernels

    from edgellama.net.paths import StatePaths
    from edgellama.values import Address

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
    order = AnswerOrder()
    try:
        for message in guest.messages():
            if isinstance(message, Failure):
                raise message.error()
            if isinstance(message, Notice):
                yield message
            elif isinstance(message, Piece | Finished):
                for due in order.accept(message):
                    yield due
                    if isinstance(due, Finished):
                        return
    except (KeyboardInterrupt, GeneratorExit):
        guest.send(Cancel(ask.request))
        raise
    finally:
        guest.close()
