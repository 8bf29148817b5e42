"""What a person said to ``join``, as a running member takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama.errors import NetworkError
from edgellama.link.links import AUTO
from edgellama.net.peers import DEFAULT_PORT
from edgellama.net.udp import UdpSocket

if TYPE_CHECKING:
    from pathlib import Path

    from edgellama.node.memory_offer import MemoryOffer
    from edgellama.values import Address


@dataclass(frozen=True)
class JoinSettings:
    """What a person said to ``join``; see there. ``port`` None takes the usual or a free one."""

    mesh_key: bytes
    key_is_kept: bool
    model: Path | None
    name: str
    offer: MemoryOffer
    port: int | None
    listen: str | None
    peers: tuple[Address, ...]
    context: int
    mdns: bool
    kv_kind: str = ""  # empty: as the mesh does
    wire: str = ""  # empty: as the other end of each link asks
    split: str = ""  # empty: as the mesh does
    sessions: int = 0  # 0: as the mesh does
    transport: str = AUTO


def bound_socket(settings: JoinSettings) -> UdpSocket:
    """Return the node's socket: at the port that was said, or the usual one, or a free one."""
    host = settings.listen or "0.0.0.0"
    if settings.port is not None:
        return UdpSocket(host, settings.port)
    try:
        return UdpSocket(host, DEFAULT_PORT)
    except NetworkError:
        return UdpSocket(host, 0)  # announced, so nobody has to know it
