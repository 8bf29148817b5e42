"""Conversations that are kept: asked in, copied from device to device, looked up and removed.

A person calls such a conversation a session. Its record is all that it takes to go on with it on
any device: what was said, the last question with its settings, and how far its answer has come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edgellama.errors import WireError
from edgellama.values import ASSISTANT, KV_F16, KV_Q8, NODE_ID_DIGITS, USER, NodeId, Turn
from edgellama.wire.asking_messages import Ask, NestedAsk, check_ask
from edgellama.wire.membership_messages import MEMBERS_MAX, ROOT_DIGITS
from edgellama.wire.schema import Choice, Hexadecimal, Kind, Many, Record, Text, Unsigned

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME_CHARACTERS_MAX: Final = 64
IDENTITY_DIGITS: Final = 32
ANSWER_CHARACTERS_MAX: Final = 1 << 20
SUMMARIES_MAX: Final = 1024

OPEN: Final = "open"  # being answered, or interrupted
STOP: Final = "stop"
LENGTH: Final = "length"
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True)
class Conversation:
    """The record of a session. ``text`` is what the tokens of ``ask`` have completed so far.

    ``identity`` tells it from an older one of the same name, ``question`` counts what was asked
    in it from 1, ``asked_ms`` is when, by the asker's clock. ``state`` is OPEN, or why the last
    answer ended. ``model_root`` and ``kv_kind`` are what the answer's tokens depend on besides;
    they are empty where that was not known when it was asked.
    """

    name: str
    identity: str
    question: int
    asked_ms: int
    model_root: str
    model_name: str
    kv_kind: str
    state: str
    text: str
    ask: Ask

    @property
    def is_complete(self) -> bool:
        """Whether the last question is answered to its end."""
        return self.state != OPEN

    def turns(self) -> tuple[Turn, ...]:
        """Return all that was said, the last answer as far as it came."""
        return (*self.ask.history, Turn(USER, self.ask.prompt), Turn(ASSISTANT, self.text))

    def is_newer_than(self, other: Conversation | Summary | None) -> bool:
        """Return whether this record knows more than another one of the same name."""
        if other is None or self.name != other.name:
            return other is None
        return self.summary().rank > (
            other.rank if isinstance(other, Summary) else other.summary().rank
        )

    def summary(self) -> Summary:
        """Return what a list shows of it."""
        return Summary(
            *(self.name, self.identity, self.question, self.asked_ms, self.model_name),
            *(self.state, len(self.ask.tokens)),
        )


class Summary(NamedTuple):
    """What a list shows of a session; ``tokens`` are those of its last answer so far."""

    name: str
    identity: str
    question: int
    asked_ms: int
    model_name: str
    state: str
    tokens: int

    @property
    def rank(self) -> tuple[int, str, int, int, bool]:
        """What is greater for the later of two records of one name.

        Of two conversations the one that was asked something last; of one, what has come further.
        """
        return self.asked_ms, self.identity, self.question, self.tokens, self.state != OPEN


@dataclass(frozen=True)
class AskInSession:
    """The question of the conversation, to be answered and kept; a guest says it."""

    conversation: Conversation


@dataclass(frozen=True)
class KeepSession:
    """Keep this record, unless you have a newer one."""

    conversation: Conversation


@dataclass(frozen=True)
class SessionQuery:
    """Tell me what you have of the session of this name; with an empty name, which you know."""

    request: int
    name: str


@dataclass(frozen=True)
class SessionReply:
    """The record that was asked for, or none; or what is known of every session."""

    request: int
    found: tuple[Conversation, ...]
    known: tuple[Summary, ...]


@dataclass(frozen=True)
class ForgetSession:
    """Remove the session of this name."""

    request: int
    name: str


@dataclass(frozen=True)
class SessionForgotten:
    """These nodes have removed it."""

    request: int
    nodes: tuple[NodeId, ...]


SessionMessage = (
    AskInSession | KeepSession | SessionQuery | SessionReply | ForgetSession | SessionForgotten
)

_U32, _U64 = Unsigned(32), Unsigned(64)


class SessionName(Text):
    """The name of a session."""

    def unpack(self, packed: Any) -> str:
        """Return the name, its form checked."""
        name = super().unpack(packed)
        if not is_session_name(name):
            raise WireError("expected the name of a session")
        return name


def is_session_name(text: str) -> bool:
    """Tell whether a session may have this name: one line of 1 to 64 printable characters."""
    return (
        len(text) <= NAME_CHARACTERS_MAX
        and text == text.strip()
        and _NAME.fullmatch(text) is not None
    )


_ANY_NAME = Text(NAME_CHARACTERS_MAX)
_NAME_TEXT = SessionName(NAME_CHARACTERS_MAX)
_STATE = Choice(OPEN, STOP, LENGTH)
_IDENTITY = Hexadecimal(IDENTITY_DIGITS)
_CONVERSATION = Record(
    Conversation,
    *(_NAME_TEXT, _IDENTITY, _U32, _U64, Hexadecimal(ROOT_DIGITS, optional=True), Text(128)),
    *(Choice("", KV_F16, KV_Q8), _STATE, Text(ANSWER_CHARACTERS_MAX), NestedAsk()),
)
_SUMMARY = Record(Summary, _NAME_TEXT, _IDENTITY, _U32, _U64, Text(128), _STATE, _U32)

# By the numbers that are written on the wire; see ``messages``.
SESSION_MESSAGES: Final[dict[int, Kind]] = {
    46: Kind(AskInSession, (_CONVERSATION,)),
    47: Kind(KeepSession, (_CONVERSATION,)),
    48: Kind(SessionQuery, (_U64, _ANY_NAME)),
    49: Kind(SessionReply, (_U64, Many(_CONVERSATION, 1), Many(_SUMMARY, SUMMARIES_MAX))),
    50: Kind(ForgetSession, (_U64, _ANY_NAME)),
    51: Kind(SessionForgotten, (_U64, Many(Hexadecimal(NODE_ID_DIGITS), MEMBERS_MAX))),
}


def check_conversations(conversations: Sequence[Conversation]) -> None:
    """Refuse records with more than a question may hold: WireError says what."""
    for each in conversations:
        check_ask(each.ask)


def latest(summaries: Sequence[Summary]) -> dict[str, Summary]:
    """Return the latest of each name, the one that was asked last first."""
    found: dict[str, Summary] = {}
    for each in sorted(summaries, key=lambda each: each.rank):
        found[each.name] = each
    return dict(sorted(found.items(), key=lambda item: item[1].rank, reverse=True))


def grown(conversation: Conversation, ask: Ask, text: str) -> Conversation:
    """Return the conversation with its answer as far as it has come."""
    return replace(conversation, ask=ask, text=text[:ANSWER_CHARACTERS_MAX])
