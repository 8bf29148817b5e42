"""What nodes say to each other: frozen values, bounded, checked once where bytes come in.

A message is ``u32 length of the header | msgpack list [kind, fields ...] | raw bytes``; only
``Step`` and ``Ask`` carry raw bytes, so that no tensor and no prompt is copied through msgpack.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

import msgpack

from edgellama.errors import WireError
from edgellama.wire.activations import PAYLOAD_BYTES_MAX
from edgellama.wire.asking_messages import (
    ASKING_MESSAGES,
    FINISH_REASONS,
    HISTORY_CHARACTERS_MAX,
    PROMPT_BYTES_MAX,
    PROMPT_TOKENS_MAX,
    SYSTEM_CHARACTERS_MAX,
    TOKENS_MAX,
    TURNS_MAX,
    Ask,
    AskingMessage,
    Cancel,
    Failure,
    Finished,
    Notice,
    Piece,
    bounded_history,
    check_ask,
    with_turns_kept,
)
from edgellama.wire.key_messages import (
    KEY_MESSAGES,
    KeyMessage,
)
from edgellama.wire.measurement_messages import MEASUREMENT_MESSAGES, MeasurementMessage
from edgellama.wire.membership_messages import (
    ALIVE,
    DEAD,
    EPOCH_PAST,
    LAYERS_MAX,
    LEAVES,
    LEFT,
    MEMBER_STATES,
    MEMBERS_MAX,
    MEMBERSHIP_MESSAGES,
    MODELS_MAX,
    PLAN_SESSIONS_MAX,
    RESTS,
    ROOT_DIGITS,
    STAYS,
    VERSION_PAST,
    Gossip,
    Heartbeat,
    MemberRecord,
    MembershipMessage,
    PlanAnnouncement,
    StageFailed,
    StageReady,
    check_announcement,
)
from edgellama.wire.reaching_messages import (
    REACHING_MESSAGES,
    Doubt,
    Heard,
    NotRelayed,
    ReachingMessage,
    Relayed,
    Trial,
    Trials,
)
from edgellama.wire.session_messages import (
    SESSION_MESSAGES,
    AskInSession,
    Conversation,
    ForgetSession,
    KeepSession,
    SessionForgotten,
    SessionMessage,
    SessionQuery,
    SessionReply,
    Summary,
    check_conversations,
)
from edgellama.wire.status_messages import (
    STATUS_MESSAGES,
    MemberStatus,
    StatusMessage,
    StatusQuery,
    StatusReply,
)
from edgellama.wire.step_messages import (
    STEP_MESSAGES,
    CloseSession,
    OpenSession,
    SessionClosed,
    Step,
    StepFailed,
    StepMessage,
    StepNeeded,
    StepStale,
    check_step,
)
from edgellama.wire.weight_messages import WEIGHT_MESSAGES, TokenTook, WeightMessage

if TYPE_CHECKING:
    from edgellama.wire.schema import Kind

__all__ = [
    "ALIVE",
    "DEAD",
    "EPOCH_PAST",
    "FINISH_REASONS",
    "HISTORY_CHARACTERS_MAX",
    "LAYERS_MAX",
    "LEAVES",
    "LEFT",
    "MEMBERS_MAX",
    "MEMBER_STATES",
    "MODELS_MAX",
    "PLAN_SESSIONS_MAX",
    "PROMPT_BYTES_MAX",
    "RESTS",
    "ROOT_DIGITS",
    "STAYS",
    "SYSTEM_CHARACTERS_MAX",
    "TOKENS_MAX",
    "TURNS_MAX",
    "VERSION_PAST",
    "Ask",
    "AskInSession",
    "Cancel",
    "CloseSession",
    "Conversation",
    "Doubt",
    "Failure",
    "Finished",
    "ForgetSession",
    "Gossip",
    "Heard",
    "Heartbeat",
    "KeepSession",
    "MemberRecord",
    "MemberStatus",
    "Message",
    "NotRelayed",
    "Notice",
    "OpenSession",
    "Piece",
    "PlanAnnouncement",
    "Relayed",
    "SessionClosed",
    "SessionForgotten",
    "SessionQuery",
    "SessionReply",
    "StageFailed",
    "StageReady",
    "StatusQuery",
    "StatusReply",
    "Step",
    "StepFailed",
    "StepNeeded",
    "StepStale",
    "Summary",
    "TokenTook",
    "Trial",
    "Trials",
    "bounded_history",
    "decode",
    "encode",
    "with_turns_kept",
]

Message = (
    AskingMessage
    | KeyMessage
    | MeasurementMessage
    | ReachingMessage
    | MembershipMessage
    | StatusMessage
    | StepMessage
    | WeightMessage
    | SessionMessage
)

_HEADER_LENGTH: Final = struct.Struct("<I")
# The numbers are written on the wire: one is never given to another message.
_KINDS: Final = {
    **MEMBERSHIP_MESSAGES,
    **STEP_MESSAGES,
    **ASKING_MESSAGES,
    **STATUS_MESSAGES,
    **KEY_MESSAGES,
    **WEIGHT_MESSAGES,
    **REACHING_MESSAGES,
    **MEASUREMENT_MESSAGES,
    **SESSION_MESSAGES,
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
        check_step(message)
    elif isinstance(message, Ask):
        check_ask(message)
    elif isinstance(message, PlanAnnouncement):
        check_announcement(message)
    elif isinstance(message, AskInSession | KeepSession):
        check_conversations((message.conversation,))
    elif isinstance(message, SessionReply):
        check_conversations(message.found)
    return message


def _unpacked(header: memoryview) -> list[Any]:
    try:
        packed = msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            max_str_len=HISTORY_CHARACTERS_MAX * 4,
            max_bin_len=ROOT_DIGITS,
            # Room is made for as many as are promised, before they are there.
            max_array_len=min(PROMPT_TOKENS_MAX, len(header)),
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, RecursionError) as error:
        raise WireError("a message header that is not msgpack within the limits") from error
    if type(packed) is not list or not packed:
        raise WireError("a message header that is no list")
    return packed


def _body(kind: Kind, body: memoryview) -> str | memoryview:
    if kind.build is Step:
        if len(body) > PAYLOAD_BYTES_MAX:
            raise WireError(f"a step of {len(body)} bytes")
        return body
    if kind.build is Relayed:
        return body  # decoded where it is for
    if len(body) > PROMPT_BYTES_MAX:
        raise WireError(f"a prompt of {len(body)} bytes, more than {PROMPT_BYTES_MAX}")
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("a prompt that is not UTF-8") from error
