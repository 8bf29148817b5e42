"""Rows of hidden state on their way round the ring, and what comes back about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgellama.errors import WireError
from edgellama.values import LinkCounters
from edgellama.wire.activations import ROWS_MAX
from edgellama.wire.membership_messages import REASON
from edgellama.wire.schema import Flag, Kind, Record, Unsigned


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
    """I hold the session up to ``length`` only: say the steps from there again.

    With a position in ``past``, an answer goes on under a new plan, and just the rows up to there
    are needed.
    """

    epoch: int
    session: int
    length: int
    past: int = 0


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
class OpenSession:
    """Under this epoch the answer ``key`` is this session, and stands at ``length``.

    What is held of its KV cache serves up to there; what is lacking is asked of the stage before.
    Where nothing is held of it, the first ``shared`` positions of the ended answer ``continues``
    serve instead: they are of the same tokens.
    """

    epoch: int
    session: int
    key: int
    length: int
    continues: int = 0
    shared: int = 0


@dataclass(frozen=True)
class CloseSession:
    """Home is done with the session: free its KV cache, or ``keep`` it for what comes next."""

    epoch: int
    session: int
    keep: bool = False


@dataclass(frozen=True)
class SessionClosed:
    """The session is freed; what my links carried while it lived."""

    epoch: int
    session: int
    counters: LinkCounters


StepMessage = (
    Step | StepNeeded | StepStale | StepFailed | OpenSession | CloseSession | SessionClosed
)

_U8, _U16, _U32, _U64 = (Unsigned(bits) for bits in (8, 16, 32, 64))
COUNTERS: Final = Record(LinkCounters, *[_U64] * 5)

# By the numbers that are written on the wire; see ``messages``.
STEP_MESSAGES: Final[dict[int, Kind]] = {
    6: Kind(Step, (_U64, _U64, _U32, _U16, _U16, _U16, _U16, _U8), "payload"),
    7: Kind(StepNeeded, (_U64, _U64, _U32, _U32)),
    8: Kind(StepStale, (_U64,)),
    9: Kind(StepFailed, (_U64, _U64, REASON)),
    10: Kind(CloseSession, (_U64, _U64, Flag())),
    11: Kind(SessionClosed, (_U64, _U64, COUNTERS)),
    25: Kind(OpenSession, (_U64, _U64, _U64, _U32, _U64, _U32)),
}


def check_step(step: Step) -> None:
    """Refuse a step that contradicts itself: WireError says why."""
    if not 1 <= step.count <= ROWS_MAX:
        raise WireError(f"a step of {step.count} positions")
    if step.wanted > step.count or step.rows > step.count:
        raise WireError("a step that carries or wants more rows than it computes")
