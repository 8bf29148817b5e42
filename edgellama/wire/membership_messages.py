"""Who is there, and which plan holds: said among members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from edgellama.errors import WireError
from edgellama.values import (
    KV_KINDS,
    NODE_ID_DIGITS,
    RAM,
    SPLITS,
    WIRES,
    ModelFacts,
    NodeId,
    Plan,
    Span,
    StagePlacement,
    StageTimes,
)
from edgellama.wire.activations import WIDTH_MAX
from edgellama.wire.schema import (
    Choice,
    Flag,
    Hexadecimal,
    Host,
    Kind,
    Many,
    Record,
    Text,
    Unsigned,
    Whole,
)

MEMBERS_MAX: Final = 1024
LAYERS_MAX: Final = 1024
MODELS_MAX: Final = 16
PLAN_SESSIONS_MAX: Final = 64
VERSION_PAST: Final = 1 << 63  # of a record, and of epochs: far beyond any that is ever reached,
EPOCH_PAST: Final = 1 << 63  # so that there is always a next one
ROOT_DIGITS: Final = 64
REASON: Final = Text(500)
NOT_MEASURED: Final = StageTimes()

ALIVE: Final = "alive"
LEFT: Final = "left"
DEAD: Final = "dead"
MEMBER_STATES: Final = (ALIVE, DEAD, LEFT)

STAYS: Final = ""
RESTS: Final = "rests"
LEAVES: Final = "leaves"
INTENTS: Final = (STAYS, RESTS, LEAVES)


class MemberRecord(NamedTuple):
    """What a member says of itself, under a version that only it raises.

    ``model_root`` names the model whose file the member offers, or is empty.
    ``context`` is the context it asks for, 0 when it leaves that to others; ``split`` what the
    layers shall be split by, or empty; ``kv_kind`` how keys and values shall be kept, or empty;
    ``wire`` how its links shall carry hidden states, or empty where others may say so.
    ``sessions`` is how many answers at once it asks to have room for, 0 when others may say so.
    ``intent`` is STAYS, or it wants no layers from the next plan on: RESTS, or LEAVES as it goes.
    """

    node: NodeId
    incarnation: int
    version: int
    state: str
    name: str
    host: str
    port: int
    transfer_port: int
    ram_bytes: int
    context: int
    backend: str
    kernel_digest: str
    model_root: str
    reads_lz4: bool
    release: str
    split: str = ""
    kv_kind: str = ""
    wire: str = ""
    sessions: int = 0
    intent: str = STAYS


@dataclass(frozen=True)
class Heartbeat:
    """I live, this is the digest of what I know, and these are my greatest epochs."""

    view_digest: str
    epoch_seen: int
    epoch_active: int


@dataclass(frozen=True)
class Gossip:
    """All that I know of members and of the models that they offer."""

    members: tuple[MemberRecord, ...]
    models: tuple[ModelFacts, ...]


@dataclass(frozen=True)
class PlanAnnouncement:
    """A plan, proposed (load your span, then say Ready) or active (steps may flow).

    ``lives`` holds the incarnation of each stage's node: a later life of a node has no part in it.
    ``split`` says what the plan was made by, ``predicted`` what each stage was expected to take.
    """

    plan: Plan
    model: ModelFacts
    active: bool
    lives: tuple[int, ...]
    split: str = RAM
    predicted: tuple[StageTimes, ...] = ()


@dataclass(frozen=True)
class StageReady:
    """My span under this epoch is loaded."""

    epoch: int


@dataclass(frozen=True)
class StageFailed:
    """My span under this epoch cannot be loaded, for this reason."""

    epoch: int
    reason: str


MembershipMessage = Heartbeat | Gossip | PlanAnnouncement | StageReady | StageFailed

_U16, _U32, _U48, _U64 = (Unsigned(bits) for bits in (16, 32, 48, 64))
_NODE = Hexadecimal(NODE_ID_DIGITS)
_ROOT = Hexadecimal(ROOT_DIGITS)
SPAN: Final = Record(Span, _U16, _U16)
MEMBER: Final = Record(
    MemberRecord,
    *(_NODE, _U64, Whole(0, VERSION_PAST - 1), Choice(*MEMBER_STATES), Text(64), Host()),
    *(_U16, _U16, _U48, _U32),
    *(Text(16), Text(64), Hexadecimal(ROOT_DIGITS, optional=True), Flag(), Text(32)),
    *(Choice("", *SPLITS), Choice("", *KV_KINDS), Choice("", *WIRES)),
    *(Whole(0, PLAN_SESSIONS_MAX), Choice(*INTENTS)),
)
MODEL: Final = Record(
    *(ModelFacts, _ROOT, Text(128), _U48, Whole(1, WIDTH_MAX), Whole(1, (1 << 32) - 1)),
    *(Many(_U48, LAYERS_MAX, 1), _U48, _U32, _U48, _U32),
)
STAGE_TIMES: Final = Record(StageTimes, _U64, _U64, _U48)
_PLAN = Record(
    *(Plan, _U64, _NODE, _ROOT, Whole(1, (1 << 32) - 1), Whole(1, PLAN_SESSIONS_MAX)),
    *(Many(Record(StagePlacement, _NODE, SPAN), MEMBERS_MAX, 1), Choice(*KV_KINDS)),
    Many(Choice(*WIRES), MEMBERS_MAX),
)

# By the numbers that are written on the wire; see ``messages``.
MEMBERSHIP_MESSAGES: Final[dict[int, Kind]] = {
    1: Kind(Heartbeat, (Hexadecimal(16), _U64, _U64)),
    2: Kind(Gossip, (Many(MEMBER, MEMBERS_MAX), Many(MODEL, MODELS_MAX))),
    3: Kind(
        PlanAnnouncement,
        (
            *(_PLAN, MODEL, Flag(), Many(_U64, MEMBERS_MAX)),
            *(Choice(*SPLITS), Many(STAGE_TIMES, MEMBERS_MAX)),
        ),
    ),
    4: Kind(StageReady, (_U64,)),
    5: Kind(StageFailed, (_U64, REASON)),
}


def check_announcement(announcement: PlanAnnouncement) -> None:
    """Refuse a plan that is no plan: WireError says why."""
    plan, model = announcement.plan, announcement.model
    if plan.epoch >= EPOCH_PAST or len(announcement.lives) != len(plan.stages):
        raise WireError("a plan of an epoch out of reach, or without a life for each stage")
    if len(announcement.predicted) not in (0, len(plan.stages)):
        raise WireError("a plan that foretells other stages than its own")
    if plan.model_root != model.root or plan.context > model.context_max:
        raise WireError("a plan that does not fit its model")
    if len(plan.wires) not in (0, len(plan.stages)):
        raise WireError("a plan that does not say of each stage how it sends")
    if len({stage.node for stage in plan.stages}) != len(plan.stages):
        raise WireError("a plan that names a node twice")
    past = 0
    for index, stage in enumerate(plan.stages):
        if stage.span.first != past or stage.span.past < past + min(index, 1):
            raise WireError("a plan whose spans are not all layers in their order")
        past = stage.span.past
    if past != model.layers:
        raise WireError("a plan whose spans are not all layers in their order")
