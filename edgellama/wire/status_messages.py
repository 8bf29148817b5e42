"""How the mesh stands, for a person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgellama.values import (
    KV_F16,
    KV_KINDS,
    NODE_ID_DIGITS,
    RAM,
    SPLITS,
    WIRE_F16,
    WIRES,
    LinkCounters,
    ModelFacts,
    NodeId,
    Span,
    StageTimes,
)
from edgellama.wire.membership_messages import (
    MEMBER,
    MEMBERS_MAX,
    MODEL,
    NOT_MEASURED,
    REASON,
    SPAN,
    STAGE_TIMES,
    MemberRecord,
)
from edgellama.wire.schema import Choice, Flag, Hexadecimal, Kind, Many, Record, Unsigned
from edgellama.wire.step_messages import COUNTERS


@dataclass(frozen=True)
class StatusQuery:
    """Tell me how the mesh stands."""

    request: int


@dataclass(frozen=True)
class MemberStatus:
    """A member as the answering node sees it.

    ``predicted`` is what its stage was expected to take when the plan was made, ``measured`` what
    it takes.
    """

    record: MemberRecord
    span: Span
    home: bool
    counters: LinkCounters
    wire: str = WIRE_F16  # how it sends hidden states on under the plan
    predicted: StageTimes = NOT_MEASURED
    measured: StageTimes = NOT_MEASURED
    transport: str = ""  # what carries the link to it: "udp", "tcp", or nothing
    trial_s: int = 0  # it came and went, and is to hold no layers for so long


@dataclass(frozen=True)
class StatusReply:
    """How the mesh stands, as the answering node sees it.

    ``model`` is empty when no device offers one; ``trouble`` says why the mesh is not ready.
    """

    request: int
    node: NodeId
    ready: bool
    epoch: int
    model: tuple[ModelFacts, ...]
    context: int
    members: tuple[MemberStatus, ...]
    trouble: str
    open_mesh: bool
    kv_kind: str = KV_F16
    split: str = RAM


StatusMessage = StatusQuery | StatusReply

_U32, _U64 = Unsigned(32), Unsigned(64)

# By the numbers that are written on the wire; see ``messages``.
STATUS_MESSAGES: Final[dict[int, Kind]] = {
    18: Kind(StatusQuery, (_U64,)),
    19: Kind(
        StatusReply,
        (
            *(_U64, Hexadecimal(NODE_ID_DIGITS), Flag(), _U64, Many(MODEL, 1), _U32),
            Many(
                Record(
                    *(MemberStatus, MEMBER, SPAN, Flag(), COUNTERS, Choice(*WIRES)),
                    *(STAGE_TIMES, STAGE_TIMES, Choice("", "udp", "tcp"), _U32),
                ),
                MEMBERS_MAX,
            ),
            *(REASON, Flag(), Choice(*KV_KINDS), Choice(*SPLITS)),
        ),
    ),
}
