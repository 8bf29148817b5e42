"""Who speaks over a link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellama.values import Address, NodeId


@dataclass(frozen=True)
class Identity:
    """A node, and which of its lives it is in.

    A greater incarnation of the same node voids every connection of a lesser one. A guest asks,
    but is no member of the mesh; it has a node id of its own.
    """

    node: NodeId
    incarnation: int
    guest: bool = False


@dataclass(frozen=True)
class PeerInfo:
    """What is known of a connected peer."""

    identity: Identity
    address: Address
    round_trip_s: float | None  # smoothed; None before the first measurement
    silent_since: float  # when the last authenticated packet came
    bytes_per_s: int = 0  # carried when the link was last in full use; 0: never seen
