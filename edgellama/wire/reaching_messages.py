"""Whether a member is heard, and what goes by way of one that hears both: said among members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgellama.values import NODE_ID_DIGITS, NodeId
from edgellama.wire.schema import Hexadecimal, Kind, Unsigned


@dataclass(frozen=True)
class Doubt:
    """I do not hear ``subject`` any more: say whether you do."""

    subject: NodeId


@dataclass(frozen=True)
class Heard:
    """I heard ``subject`` so many milliseconds ago."""

    subject: NodeId
    silence_ms: int


@dataclass(frozen=True)
class Relayed:
    """A message of ``origin`` for ``target``, by way of a member that is linked to both."""

    origin: NodeId
    target: NodeId
    message: bytes | memoryview


@dataclass(frozen=True)
class NotRelayed:
    """I have no link to ``target``: what came for it is lost."""

    target: NodeId


ReachingMessage = Doubt | Heard | Relayed | NotRelayed

_NODE: Final = Hexadecimal(NODE_ID_DIGITS)

# By the numbers that are written on the wire; see ``messages``.
REACHING_MESSAGES: Final[dict[int, Kind]] = {
    26: Kind(Doubt, (_NODE,)),
    27: Kind(Heard, (_NODE, Unsigned(32))),
    28: Kind(Relayed, (_NODE, _NODE), "message"),
    29: Kind(NotRelayed, (_NODE,)),
}
