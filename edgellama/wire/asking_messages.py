"""A request and its answer, between whoever asks, the gateway and home."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, WireError
from edgellama.values import (
    ASSISTANT,
    NODE_ID_DIGITS,
    USER,
    LinkCounters,
    Route,
    SamplingSettings,
    Turn,
)
from edgellama.wire.membership_messages import MEMBERS_MAX, REASON, SPAN
from edgellama.wire.schema import (
    Choice,
    Flag,
    Hexadecimal,
    Kind,
    Many,
    Real,
    Record,
    Text,
    Unsigned,
)
from edgellama.wire.step_messages import COUNTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENS_MAX: Final = 1 << 17
PROMPT_BYTES_MAX: Final = 4 << 20
PROMPT_TOKENS_MAX: Final = PROMPT_BYTES_MAX + 2  # a token for each byte, BOS and EOS
SYSTEM_CHARACTERS_MAX: Final = 1 << 16
TURNS_MAX: Final = 1 << 10
HISTORY_CHARACTERS_MAX: Final = 1 << 20  # of all turns together
TEXT_CHARACTERS_MAX: Final = 1 << 16
FINISH_REASONS: Final = ("stop", "length")


@dataclass(frozen=True)
class Ask:
    """A prompt to be continued; ``tokens`` are those of the answer that are known already.

    ``history`` is what was said before. Unless ``raw``, home puts ``system``, ``history`` and
    ``prompt`` into the model's chat template, if it has one; else each is a line of one text.
    ``today`` is the asker's date as Python's proleptic ordinal: some templates print it, and
    another home that takes over on another day must make the same prompt of it. ``attempt`` counts
    the gateways that the asker has had before: the latest one's word counts. ``wait_s`` is how long
    the asker waits for devices that are missing, before its answer has begun.

    With ``tokens_max`` 0 the tokens of the prompt are all that is wanted, however many they are.
    With ``scored_from`` there is no prompt: ``Finished`` says how well the model foretells each
    of ``tokens`` after that position.
    """

    request: int
    sampling: SamplingSettings
    tokens_max: int
    ignore_end: bool
    raw: bool
    tokens: tuple[int, ...]
    system: str
    today: int
    history: tuple[Turn, ...]
    scored_from: int
    attempt: int
    wait_s: int
    prompt: str


@dataclass(frozen=True)
class Piece:
    """The tokens of an answer from ``index`` on, and the text that they complete.

    They answer the question after the last ``turns_kept`` of its history: more did not fit. Not
    ``is_templated`` where the model has no chat template, so that it continues a text.
    """

    request: int
    index: int
    tokens: tuple[int, ...]
    text: str
    turns_kept: int = TURNS_MAX
    is_templated: bool = True


@dataclass(frozen=True)
class Finished:
    """An answer of ``tokens_count`` tokens is complete; ``text`` is what was held back of it.

    Times are in microseconds, the counters are those of all nodes of the ring. ``nlls`` are
    negative log-likelihoods in nats, where they were asked for.
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
    nlls: tuple[float, ...] = ()


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


AskingMessage = Ask | Piece | Finished | Failure | Notice | Cancel

_U8, _U16, _U32, _U64 = (Unsigned(bits) for bits in (8, 16, 32, 64))
_TOKENS = Many(_U32, TOKENS_MAX)
_SAMPLING = Record(
    SamplingSettings,
    *(Real(0.0, 1000.0), _U32, Real(0.0, 1.0), Real(0.0, 1.0), Real(0.01, 100.0), _U32, _U64),
)
_TEXT = Text(TEXT_CHARACTERS_MAX)
_TURN = Record(Turn, Choice(USER, ASSISTANT), Text(HISTORY_CHARACTERS_MAX))
_ROUTE = Many(Record(Route, Hexadecimal(NODE_ID_DIGITS), Text(64), SPAN), MEMBERS_MAX)

# By the numbers that are written on the wire; see ``messages``.
ASKING_MESSAGES: Final[dict[int, Kind]] = {
    12: Kind(
        Ask,
        (
            *(_U64, _SAMPLING, _U32, Flag(), Flag(), _TOKENS, Text(SYSTEM_CHARACTERS_MAX), _U32),
            *(Many(_TURN, TURNS_MAX), _U32, _U16, _U16),
        ),
        "prompt",
    ),
    13: Kind(Piece, (_U64, _U32, _TOKENS, _TEXT, _U32, Flag())),
    14: Kind(
        Finished,
        (
            *(_U64, Choice(*FINISH_REASONS), _U32, _TEXT, Many(_U32, PROMPT_TOKENS_MAX)),
            *(_U64, _U64, _ROUTE, COUNTERS, Many(Real(0.0, math.inf), TOKENS_MAX)),
        ),
    ),
    15: Kind(Failure, (_U64, _U8, REASON)),
    16: Kind(Notice, (_U64, REASON)),
    17: Kind(Cancel, (_U64,)),
}


class NestedAsk(Record):
    """A question within another message: its prompt first, so that the rest can grow."""

    def __init__(self) -> None:
        *names, prompt = (field.name for field in fields(Ask))
        self._names = (prompt, *names)
        self._shapes = (Text(PROMPT_BYTES_MAX), *ASKING_MESSAGES[12].header)
        self._build = lambda prompt, *rest: Ask(*(*rest, prompt))


def with_turns_kept(ask: Ask, count: int) -> Ask:
    """Return the question with the last ``count`` of its turns."""
    first = max(0, len(ask.history) - count)
    return replace(ask, history=ask.history[first:]) if first else ask


def bounded_history(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return the turns without the first exchanges of what no question could carry."""
    first, characters = 0, sum(len(turn.content) for turn in turns)
    while len(turns) - first > TURNS_MAX or characters > HISTORY_CHARACTERS_MAX:
        characters -= sum(len(turn.content) for turn in turns[first : first + 2])
        first += 2
    return tuple(turns[first:])


def check_ask(ask: Ask) -> None:
    """Refuse a conversation that is too long as a whole: WireError says how long."""
    characters = sum(len(turn.content) for turn in ask.history)
    if characters > HISTORY_CHARACTERS_MAX:
        raise WireError(f"a history of {characters} characters")
    if ask.scored_from and ask.scored_from + 2 > len(ask.tokens):
        raise WireError("a text without a token to be scored")
