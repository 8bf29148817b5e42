"""What nodes say to each other: frozen values, bounded, checked once where bytes come in.

A message is ``u32 length of the header | msgpack list [kind, fields ...] | raw bytes``; only
``Step`` and ``Ask`` carry raw bytes, so that no tensor and no prompt is copied through msgpack.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import msgpack

from edgellama.errors import EdgellamaError, WireError
from edgellama.values import (
    NODE_ID_DIGITS,
    LinkCounters,
    ModelFacts,
    NodeId,
    Plan,
    Route,
    SamplingSettings,
    Span,
    StagePlacement,
)
from edgellama.wire.activations import PAYLOAD_BYTES_MAX, ROWS_MAX, WIDTH_MAX
from edgellama.wire.key_messages import KEY_MESSAGES, KeyMessage
from edgellama.wire.schema import (
    Choice,
    Flag,
    Hexadecimal,
    Host,
    Many,
    Real,
    Record,
    Shape,
    Text,
    Unsigned,
    Whole,
)

MEMBERS_MAX: Final = 1024
LAYERS_MAX: Final = 1024
MODELS_MAX: Final = 16
TOKENS_MAX: Final = 1 << 17
PROMPT_BYTES_MAX: Final = 4 << 20
PLAN_SESSIONS_MAX: Final = 64
VERSION_PAST: Final = 1 << 63  # of a record, and of epochs: far beyond any that is ever reached,
EPOCH_PAST: Final = 1 << 63  # so that there is always a next one
SYSTEM_CHARACTERS_MAX: Final = 1 << 16
ROOT_DIGITS: Final = 64

ALIVE: Final = "alive"
LEFT: Final = "left"
DEAD: Final = "dead"
MEMBER_STATES: Final = (ALIVE, DEAD, LEFT)
FINISH_REASONS: Final = ("stop", "length")


class MemberRecord(NamedTuple):
    """What a member says of itself, under a version that only it raises.

    ``model_root`` names the model whose file the member offers, or is empty.
    ``context`` is the context it asks for, 0 when it leaves that to others.
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
    """

    plan: Plan
    model: ModelFacts
    active: bool
    lives: tuple[int, ...]


@dataclass(frozen=True)
class StageReady:
    """My span under this epoch is loaded."""

    epoch: int


@dataclass(frozen=True)
class StageFailed:
    """My span under this epoch cannot be loaded, for this reason."""

    epoch: int
    reason: str


@dataclass(frozen=True)
class Step:
    """Rows of hidden state for one stage: a step is named by (session, epoch, position).

    ``stage`` is the index of the stage that shall compute; the number of stages means home,
    which then makes the next token of the last row. ``count`` positions are computed from
    ``position`` on; ``rows`` of them travel in ``payload``: all between stages, and back to
    home only as many as it ``wanted``.
    """

    epoch: int
    session: int
    position: int
    count: int
    stage: int
    wanted: int
    rows: int
    codec: int
    payload: bytes | memoryview


@dataclass(frozen=True)
class StepNeeded:
    """I hold the session up to ``length`` only: say the steps from there again."""

    epoch: int
    session: int
    length: int


@dataclass(frozen=True)
class StepStale:
    """The step's epoch is over; this one is in force here."""

    epoch: int


@dataclass(frozen=True)
class StepFailed:
    """The stage could not compute the session's step, for this reason."""

    epoch: int
    session: int
    reason: str


@dataclass(frozen=True)
class CloseSession:
    """Home is done with the session: free its KV cache."""

    epoch: int
    session: int


@dataclass(frozen=True)
class SessionClosed:
    """The session is freed; what my links carried while it lived."""

    epoch: int
    session: int
    counters: LinkCounters


@dataclass(frozen=True)
class Ask:
    """A prompt to be continued; ``tokens`` are those of the answer that are known already.

    Unless ``raw``, home puts ``system`` and ``prompt`` into the model's chat template, if it has
    one. ``today`` is the asker's date as Python's proleptic ordinal: some templates print it, and
    another home that takes over on another day must make the same prompt of it.
    """

    request: int
    sampling: SamplingSettings
    tokens_max: int
    ignore_end: bool
    raw: bool
    tokens: tuple[int, ...]
    system: str
    today: int
    prompt: str


@dataclass(frozen=True)
class Piece:
    """The tokens of an answer from ``index`` on, and the text that they complete."""

    request: int
    index: int
    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Finished:
    """An answer of ``tokens_count`` tokens is complete; ``text`` is what was held back of it.

    Times are in microseconds, the counters are those of all nodes of the ring.
    """

    request: int
    reason: str
    tokens_count: int
    text: str
    prompt_tokens: tuple[int, ...]
    prompt_us: int
    predicted_us: int
    route: tuple[Route, ...]
    counters: LinkCounters


@dataclass(frozen=True)
class Failure:
    """The request failed: a line for a person and the exit code of the command."""

    request: int
    exit_code: int
    text: str

    def error(self) -> EdgellamaError:
        """Return the error that the failure stands for, with its exit code."""
        error = EdgellamaError(self.text)
        error.exit_code = self.exit_code
        return error


@dataclass(frozen=True)
class Notice:
    """What the asker is waiting for, for a person."""

    request: int
    text: str


@dataclass(frozen=True)
class Cancel:
    """Whoever asked does not want the answer any more."""

    request: int


@dataclass(frozen=True)
class StatusQuery:
    """Tell me how the mesh stands."""

    request: int


@dataclass(frozen=True)
class MemberStatus:
    """A member as the answering node sees it."""

    record: MemberRecord
    span: Span
    home: bool
    counters: LinkCounters


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


Message = (
    Heartbeat
    | Gossip
    | PlanAnnouncement
    | StageReady
    | StageFailed
    | Step
    | StepNeeded
    | StepStale
    | StepFailed
    | CloseSession
    | SessionClosed
    | Ask
    | Piece
    | Finished
    | Failure
    | Notice
    | Cancel
    | StatusQuery
    | StatusReply
    | KeyMessage
)

_U8, _U16, _U32, _U48, _U64 = (Unsigned(bits) for bits in (8, 16, 32, 48, 64))
_NODE = Hexadecimal(NODE_ID_DIGITS)
_ROOT = Hexadecimal(ROOT_DIGITS)
_TOKENS = Many(_U32, TOKENS_MAX)
_SPAN = Record(Span, _U16, _U16)
_COUNTERS = Record(LinkCounters, *[_U64] * 5)
_MEMBER = Record(
    MemberRecord,
    *(_NODE, _U64, Whole(0, VERSION_PAST - 1), Choice(*MEMBER_STATES), Text(64), Host()),
    *(_U16, _U16, _U48, _U32),
    *(Text(16), Text(64), Hexadecimal(ROOT_DIGITS, optional=True), Flag(), Text(32)),
)
_MODEL = Record(
    *(ModelFacts, _ROOT, Text(128), _U48, Whole(1, WIDTH_MAX), Whole(1, (1 << 32) - 1)),
    *(Many(_U48, LAYERS_MAX, 1), _U48, _U32, _U48),
)
_PLAN = Record(
    *(Plan, _U64, _NODE, _ROOT, Whole(1, (1 << 32) - 1), Whole(1, PLAN_SESSIONS_MAX)),
    Many(Record(StagePlacement, _NODE, _SPAN), MEMBERS_MAX, 1),
)
_SAMPLING = Record(
    SamplingSettings,
    *(Real(0.0, 1000.0), _U32, Real(0.0, 1.0), Real(0.0, 1.0), Real(0.01, 100.0), _U32, _U64),
)
_REASON = Text(500)
_TEXT_CHARACTERS_MAX: Final = 1 << 16
_TEXT = Text(_TEXT_CHARACTERS_MAX)
_ROUTE = Many(Record(Route, _NODE, Text(64), _SPAN), MEMBERS_MAX)
_HEADER_LENGTH: Final = struct.Struct("<I")


class _Kind(NamedTuple):
    build: type[Any]
    header: tuple[Shape, ...]  # of the fields in their order
    body: str = ""  # the last field, where it travels raw behind the header


# The numbers are written on the wire: one is never given to another message.
_KINDS: Final = {
    1: _Kind(Heartbeat, (Hexadecimal(16), _U64, _U64)),
    2: _Kind(Gossip, (Many(_MEMBER, MEMBERS_MAX), Many(_MODEL, MODELS_MAX))),
    3: _Kind(PlanAnnouncement, (_PLAN, _MODEL, Flag(), Many(_U64, MEMBERS_MAX))),
    4: _Kind(StageReady, (_U64,)),
    5: _Kind(StageFailed, (_U64, _REASON)),
    6: _Kind(Step, (_U64, _U64, _U32, _U16, _U16, _U16, _U16, _U8), "payload"),
    7: _Kind(StepNeeded, (_U64, _U64, _U32)),
    8: _Kind(StepStale, (_U64,)),
    9: _Kind(StepFailed, (_U64, _U64, _REASON)),
    10: _Kind(CloseSession, (_U64, _U64)),
    11: _Kind(SessionClosed, (_U64, _U64, _COUNTERS)),
    12: _Kind(
        Ask,
        (_U64, _SAMPLING, _U32, Flag(), Flag(), _TOKENS, Text(SYSTEM_CHARACTERS_MAX), _U32),
        "prompt",
    ),
    13: _Kind(Piece, (_U64, _U32, _TOKENS, _TEXT)),
    14: _Kind(
        Finished,
        (_U64, Choice(*FINISH_REASONS), _U32, _TEXT, _TOKENS, _U64, _U64, _ROUTE, _COUNTERS),
    ),
    15: _Kind(Failure, (_U64, _U8, _REASON)),
    16: _Kind(Notice, (_U64, _REASON)),
    17: _Kind(Cancel, (_U64,)),
    18: _Kind(StatusQuery, (_U64,)),
    19: _Kind(
        StatusReply,
        (
            *(_U64, _NODE, Flag(), _U64, Many(_MODEL, 1), _U32),
            Many(Record(MemberStatus, _MEMBER, _SPAN, Flag(), _COUNTERS), MEMBERS_MAX),
            *(_REASON, Flag()),
        ),
    ),
    **{number: _Kind(*kind) for number, kind in KEY_MESSAGES.items()},
}
_NUMBERS: Final = {kind.build: number for number, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    number = _NUMBERS[type(message)]
    kind = _KINDS[number]
    values = [getattr(message, field.name) for field in fields(message)]
    header: bytes = msgpack.packb(
        [number, *(shape.pack(value) for shape, value in zip(kind.header, values, strict=False))]
    )
    prefix = _HEADER_LENGTH.pack(len(header))
    if not kind.body:
        return prefix + header
    body = values[-1]
    return b"".join((prefix, header, body.encode() if isinstance(body, str) else body))


def decode(data: bytes) -> Message:
    """Return the message that ``data`` holds; WireError says what does not fit."""
    if len(data) < _HEADER_LENGTH.size:
        raise WireError("a message without a header")
    (header_bytes,) = _HEADER_LENGTH.unpack_from(data)
    past = _HEADER_LENGTH.size + header_bytes
    if past > len(data):
        raise WireError("a message shorter than its header")
    packed = _unpacked(memoryview(data)[_HEADER_LENGTH.size : past])
    kind = _KINDS.get(packed[0]) if type(packed[0]) is int else None
    if kind is None:
        raise WireError(f"unknown message kind {packed[0]!r:.20}")
    if len(packed) <= len(kind.header):
        raise WireError(f"a {kind.build.__name__} with too few fields")
    values = [shape.unpack(each) for shape, each in zip(kind.header, packed[1:], strict=False)]
    if kind.body:
        values.append(_body(kind, memoryview(data)[past:]))
    message: Message = kind.build(*values)
    if isinstance(message, Step):
        _check_step(message)
    elif isinstance(message, PlanAnnouncement):
        _check_announcement(message)
    return message


def _unpacked(header: memoryview) -> list[Any]:
    try:
        packed = msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            max_str_len=_TEXT_CHARACTERS_MAX * 4,
            max_bin_len=ROOT_DIGITS,
            # Room is made for as many as are promised, before they are there.
            max_array_len=min(TOKENS_MAX, len(header)),
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, RecursionError) as error:
        raise WireError("a message header that is not msgpack within the limits") from error
    if type(packed) is not list or not packed:
        raise WireError("a message header that is no list")
    return packed


def _body(kind: _Kind, body: memoryview) -> str | memoryview:
    if kind.build is Step:
        if len(body) > PAYLOAD_BYTES_MAX:
            raise WireError(f"a step of {len(body)} bytes")
        return body
    if len(body) > PROMPT_BYTES_MAX:
        raise WireError(f"a prompt of {len(body)} bytes, more than {PROMPT_BYTES_MAX}")
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("a prompt that is not UTF-8") from error


def _check_step(step: Step) -> None:
    if not 1 <= step.count <= ROWS_MAX:
        raise WireError(f"a step of {step.count} positions")
    if step.wanted > step.count or step.rows > step.count:
        raise WireError("a step that carries or wants more rows than it computes")


def _check_announcement(announcement: PlanAnnouncement) -> None:
    plan, model = announcement.plan, announcement.model
    if plan.epoch >= EPOCH_PAST or len(announcement.lives) != len(plan.stages):
        raise WireError("a plan of an epoch out of reach, or without a life for each stage")
    if plan.model_root != model.root or plan.context > model.context_max:
        raise WireError("a plan that does not fit its model")
    if len({stage.node for stage in plan.stages}) != len(plan.stages):
        raise WireError("a plan that names a node twice")
    past = 0
    for index, stage in enumerate(plan.stages):
        if stage.span.first != past or stage.span.past < past + min(index, 1):
            raise WireError("a plan whose spans are not all layers in their order")
        past = stage.span.past
    if past != model.layers:
        raise WireError("a plan whose spans are not all layers in their order")
