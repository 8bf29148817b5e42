"""What an endpoint tells the layer above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellama.link.identity import Identity
    from edgellama.values import Address, NodeId


@dataclass(frozen=True)
class Connected:
    """A connection to the node stands: messages may be sent."""

    identity: Identity
    address: Address


@dataclass(frozen=True)
class Disconnected:
    """The connection is over; messages under way may or may not have arrived."""

    node: NodeId
    reason: str
    left: bool = False  # the peer ended it of its own will


@dataclass(frozen=True)
class MessageReceived:
    """A whole message, given exactly once."""

    node: NodeId
    message: bytes


@dataclass(frozen=True)
class DialFailed:
    """No connection came of a dial."""

    address: Address
    reason: str


Event = Connected | Disconnected | MessageReceived | DialFailed
