"""What devices have measured of themselves and of their links: for the planner and for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgellama.values import (
    KV_F16,
    KV_KINDS,
    NODE_ID_DIGITS,
    SPLITS,
    WIRES,
    DeviceFacts,
    DeviceSpeed,
    LinkCounters,
    LinkFacts,
    ModelFacts,
    NodeId,
)
from edgellama.wire.membership_messages import MEMBERS_MAX, MODEL
from edgellama.wire.schema import Choice, Hexadecimal, Kind, Many, Record, Text, Unsigned
from edgellama.wire.step_messages import COUNTERS

LINKS_TOLD_MAX: Final = 16  # by one device: the nearest, which are those that a ring would use
LINKS_KNOWN_MAX: Final = MEMBERS_MAX * LINKS_TOLD_MAX


@dataclass(frozen=True)
class Measured:
    """What the sender has measured: of itself, of its stage of a plan, and of its links.

    ``stage_ns`` and ``head_ns`` are what its layers, and at home the head, take for one token
    under the plan of ``epoch``; 0 before the first. ``speed`` is empty before it is measured.
    """

    speed: tuple[DeviceSpeed, ...]
    epoch: int
    stage_ns: int
    head_ns: int
    links: tuple[LinkFacts, ...]


@dataclass(frozen=True)
class RateProbe:
    """Nothing: so much of it that the link's rate shows. No answer is needed."""

    filler: str


@dataclass(frozen=True)
class FactsQuery:
    """Tell me all that a plan is made of."""

    request: int


@dataclass(frozen=True)
class FactsReply:
    """All that the answering node would make a plan of; ``model`` is empty when there is none."""

    request: int
    model: tuple[ModelFacts, ...]
    context: int
    sessions_max: int
    split: str
    devices: tuple[DeviceFacts, ...]
    links: tuple[LinkFacts, ...]
    kv_kind: str = KV_F16


@dataclass(frozen=True)
class MeterQuery:
    """Tell me what you have counted."""

    request: int


@dataclass(frozen=True)
class LinkMeter:
    """One of a member's links and what it has carried so far."""

    facts: LinkFacts
    counters: LinkCounters


@dataclass(frozen=True)
class MeterReply:
    """What a member has counted since it started: two of them tell what happened in between.

    ``steps`` single tokens have taken ``stage_ns`` in its layers, ``heads`` tokens ``head_ns`` in
    its head. ``clock_ms`` is its clock, in milliseconds since 1970.
    """

    request: int
    node: NodeId
    release: str
    clock_ms: int
    epoch: int
    steps: int
    stage_ns: int
    heads: int
    head_ns: int
    links: tuple[LinkMeter, ...]


MeasurementMessage = Measured | RateProbe | FactsQuery | FactsReply | MeterQuery | MeterReply

_U16, _U32, _U48, _U64 = (Unsigned(bits) for bits in (16, 32, 48, 64))
_NODE = Hexadecimal(NODE_ID_DIGITS)
_SPEED = Many(Record(DeviceSpeed, _U32, _U32, _U32), 1)


class _OptionalSpeed:
    """A speed or None, as a list of at most one."""

    def pack(self, value: DeviceSpeed | None) -> list[object]:
        """Return the list."""
        return _SPEED.pack(() if value is None else (value,))

    def unpack(self, packed: object) -> DeviceSpeed | None:
        """Return the speed, if there is one."""
        speed: DeviceSpeed | None = next(iter(_SPEED.unpack(packed)), None)
        return speed


_LINK = Record(LinkFacts, _NODE, _NODE, _U32, _U48, _U16)
_DEVICE = Record(DeviceFacts, _NODE, Text(64), _U48, _OptionalSpeed(), Choice("", *WIRES))

# By the numbers that are written on the wire; see ``messages``.
MEASUREMENT_MESSAGES: Final[dict[int, Kind]] = {
    35: Kind(Measured, (_SPEED, _U64, _U64, _U64, Many(_LINK, LINKS_TOLD_MAX))),
    36: Kind(FactsQuery, (_U64,)),
    37: Kind(
        FactsReply,
        (
            *(_U64, Many(MODEL, 1), _U32, _U16, Choice(*SPLITS), Many(_DEVICE, MEMBERS_MAX)),
            *(Many(_LINK, LINKS_KNOWN_MAX), Choice(*KV_KINDS)),
        ),
    ),
    38: Kind(MeterQuery, (_U64,)),
    39: Kind(
        MeterReply,
        (
            *(_U64, _NODE, Text(32), _U64, _U64, _U64, _U64, _U64, _U64),
            Many(Record(LinkMeter, _LINK, COUNTERS), MEMBERS_MAX),
        ),
    ),
    60: Kind(RateProbe, (), "filler"),
}
