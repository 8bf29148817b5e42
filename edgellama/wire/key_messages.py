"""What is said about the mesh's key: to let a device in, and to shut one out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.values import NODE_ID_DIGITS
from edgellama.wire.schema import Hexadecimal, Kind, Many, Text, Unsigned

if TYPE_CHECKING:
    from edgellama.values import NodeId

MESH_KEY_DIGITS: Final = 64
TOLD_MAX: Final = 1024


@dataclass(frozen=True)
class InviteQuery:
    """Open an invitation for one more device."""

    request: int


@dataclass(frozen=True)
class InviteReply:
    """The invitation's code, where to join with it by TCP, and for how many seconds."""

    request: int
    code: str
    host: str
    port: int
    seconds: int


@dataclass(frozen=True)
class Forget:
    """Give the mesh another key, and this node none of it."""

    request: int
    node: NodeId


@dataclass(frozen=True)
class Forgotten:
    """The mesh has another key; these members were told."""

    request: int
    told: tuple[NodeId, ...]


@dataclass(frozen=True)
class NewKey:
    """The mesh's key from now on, 64 hexadecimal digits, and the node that it is kept from."""

    key: str
    forgotten: NodeId


KeyMessage = InviteQuery | InviteReply | Forget | Forgotten | NewKey

_U16, _U64, _NODE = Unsigned(16), Unsigned(64), Hexadecimal(NODE_ID_DIGITS)

# By the numbers that are written on the wire; see ``messages``.
KEY_MESSAGES: Final[dict[int, Kind]] = {
    20: Kind(InviteQuery, (_U64,)),
    21: Kind(InviteReply, (_U64, Text(64), Text(64), _U16, _U16)),
    22: Kind(Forget, (_U64, _NODE)),
    23: Kind(Forgotten, (_U64, Many(_NODE, TOLD_MAX))),
    24: Kind(NewKey, (Hexadecimal(MESH_KEY_DIGITS), _NODE)),
}
