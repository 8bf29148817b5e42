"""From the options of ``join`` to a running member, and back to a clean end."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgellama.net.facts import device_name
from edgellama.net.paths import StatePaths
from edgellama.net.power import power_sources
from edgellama.node.join_settings import JoinSettings
from edgellama.node.kernels import DeviceKernels
from edgellama.node.member import Member
from edgellama.node.memory_offer import MemoryOffer
from edgellama.node.power_watch import PowerWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellama.values import Address


@dataclass(frozen=True)
class JoinOptions:
    """What a person said to ``join``; None leaves it to the device."""

    mesh_key: bytes
    key_is_kept: bool  # in this device's key file, so that the mesh may change it
    model: Path | None
    name: str | None
    ram_bytes: int | None
    port: int | None
    listen: str | None
    peers: tuple[Address, ...]
    context: int
    mdns: bool
    backend: str
    threads: int | None
    kv_kind: str  # empty: as the mesh does
    wire: str  # empty: as the other end of each link asks
    transport: str
    split: str = ""  # empty: as the mesh does
    sessions: int = 0  # 0: as the mesh does
    stays: bool = False  # whatever the battery and the heat


class Audience(Protocol):
    """Whoever is told what happens; called from any thread."""

    def tell(self, text: str) -> None:
        """Take a line that a person would want to know."""

    def progress(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        """Take how far something long has come."""


@contextmanager
def joined(options: JoinOptions, audience: Audience) -> Iterator[Member]:
    """Run a member while the block lasts; raise what ended it by itself.

    Raises what a bad model file, a taken port, a home in use and missing kernels raise.
    """
    paths = StatePaths.locate()
    paths.make()
    with ExitStack() as stack:
        stack.callback(paths.lock().release)
        kernels = DeviceKernels(options.backend, options.threads, paths, audience.tell)
        settings = JoinSettings(
            options.mesh_key,
            options.key_is_kept,
            options.model,
            device_name(options.name or ""),
            MemoryOffer(options.ram_bytes, kernels.overhead_bytes),
            options.port,
            options.listen,
            options.peers,
            options.context,
            options.mdns,
            kv_kind=options.kv_kind,
            wire=options.wire,
            transport=options.transport,
            split=options.split,
            sessions=options.sessions,
        )
        member = Member(settings, paths, kernels, audience.tell, audience.progress)
        try:
            member.start()
            if not options.stays:
                watch = PowerWatch(power_sources(), _rest_when(member, audience.tell))
                stack.callback(watch.stop)
                watch.start()
            yield member
        finally:
            member.stop()


def _rest_when(member: Member, tell: Callable[[str], None]) -> Callable[[str], None]:
    """Return what lets a member rest while there is a reason to."""

    def changed(reason: str) -> None:
        text = f"this device rests, others take its layers: {reason}"
        tell(text if reason else "this device takes layers again")
        member.act(lambda now: member.core.rest(now, resting=bool(reason)))

    return changed
