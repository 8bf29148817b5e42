"""Whether a member is heard, how it is reached, and how steadily: said among members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from edgellama.values import NODE_ID_DIGITS, NodeId
from edgellama.wire.membership_messages import MEMBERS_MAX
from edgellama.wire.schema import Hexadecimal, Kind, Many, Record, Unsigned


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


class Trial(NamedTuple):
    """A member that was lost again and again, and for how long it shall hold no layers yet."""

    node: NodeId
    left_ms: int


@dataclass(frozen=True)
class Trials:
    """Who is on trial, as far as I know; perhaps you are, or have been away meanwhile."""

    trials: tuple[Trial, ...]


ReachingMessage = Doubt | Heard | Relayed | NotRelayed | Trials

_NODE: Final = Hexadecimal(NODE_ID_DIGITS)

# By the numbers that are written on the wire; see ``messages``.
REACHING_MESSAGES: Final[dict[int, Kind]] = {
    26: Kind(Doubt, (_NODE,)),
    27: Kind(Heard, (_NODE, Unsigned(32))),
    28: Kind(Relayed, (_NODE, _NODE), "message"),
    29: Kind(NotRelayed, (_NODE,)),
    30: Kind(Trials, (Many(Record(Trial, _NODE, Unsigned(32)), MEMBERS_MAX),)),
}
