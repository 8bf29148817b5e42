"""Which source is asked for which chunks next: the decisions of a fetch, without its sockets.

A chunk is taken from the device that has the model's file only where nobody else has it: so each
byte leaves that device once, however many devices want it, and those who have it share the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.net.transfer_protocol import CHUNKS_PER_REQUEST_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edgellama.net.chunk_bitmap import ChunkBitmap
    from edgellama.net.supply import WeightSource

SOURCES_MAX: Final = 16  # known to one fetch: far more than one can use
FAILURES_MAX: Final = 3  # in a row, of one source's connections, without a chunk between them
RETRY_S: Final = 0.2  # after a failure
LOOK_AGAIN_S: Final = 0.25  # what a source has may have grown since it was asked
SURVEY_S: Final = 1.0  # how long the original waits until the others have said what they have
INSIST_S: Final = 3.0  # a chunk given to another device is there by then, or lost with it
NEVER: Final = float("-inf")


class Batch(NamedTuple):
    """Neighbouring chunks to ask for; ``anyway``: also if another device was given them."""

    indexes: list[int]
    anyway: bool


@dataclass
class _State:
    """What is known of one source. ``fault`` follows its name in a message."""

    source: WeightSource
    available: ChunkBitmap | None = None  # as far as it was asked
    asked_at: float = NEVER
    lanes: int = 0  # connections to it
    failures: int = 0  # in a row
    retry_at: float = NEVER
    dropped: bool = False
    fault: str = "has no more of it"


class FetchSchedule:
    """The chunks that a fetch still wants, and what is known of those who may have them.

    ``now`` is in seconds and never goes back. Not safe for threads.
    """

    def __init__(self, wanted: Iterable[int], now: float) -> None:
        self._wanted = sorted(wanted)  # what a connection has taken is not in it
        self._out = 0  # taken, and neither here nor put back
        self._states: dict[WeightSource, _State] = {}
        self._given_at: dict[int, float] = {}  # chunks that the original gave to another device
        self._survey_until = now + SURVEY_S

    @property
    def left(self) -> int:
        """How many chunks are wanted and not here."""
        return len(self._wanted) + self._out

    def know(self, sources: Sequence[WeightSource]) -> None:
        """Take these for the sources there are now."""
        for source in sources[:SOURCES_MAX]:
            self._states.setdefault(source, _State(source))
        for source in self._states.keys() - set(sources[:SOURCES_MAX]):
            if not self._states[source].lanes and not self._states[source].dropped:
                del self._states[source]

    def choose(self, now: float) -> WeightSource | None:
        """Return whom the next free connection shall go to; ``release`` gives it back."""
        if not self._wanted:
            return None
        useful = [state for state in self._live() if self._is_useful(state, now)]
        if not useful:
            return None
        # Whoever has not said yet what it has; then the least busy, the original last.
        best = min(useful, key=lambda each: (each.available is not None, *self._cost(each)))
        best.lanes += 1
        return best.source

    def release(self, source: WeightSource) -> None:
        """Take note that a connection to the source is over."""
        self._states[source].lanes -= 1

    def surveyed(self, source: WeightSource, available: ChunkBitmap, now: float) -> None:
        """Take note of what a source has."""
        state = self._states[source]
        state.available, state.asked_at = available, now
        if not len(available):
            state.fault = "does not have the model"

    def take(
        self, source: WeightSource, now: float, chunks_max: int = CHUNKS_PER_REQUEST_MAX
    ) -> Batch | None:
        """Take neighbouring chunks that the source shall give off the list; None: nothing now."""
        state = self._states[source]
        gives = self._giving(state, now)
        start = next((at for at, index in enumerate(self._wanted) if gives(index)), None)
        if state.dropped or start is None:
            return None
        batch = [self._wanted[start]]
        anyway = source.original and batch[0] in self._given_at
        for index in self._wanted[start + 1 : start + chunks_max]:
            same = (source.original and index in self._given_at) == anyway
            if index != batch[-1] + 1 or not same or not gives(index):
                break
            batch.append(index)
        del self._wanted[start : start + len(batch)]
        self._out += len(batch)
        return Batch(batch, anyway)

    def arrived(self, source: WeightSource) -> None:
        """Take note that one of the chunks taken is here."""
        self._out -= 1
        self._states[source].failures = 0

    def given(self, index: int, now: float) -> None:
        """Take note that the original has given this chunk, which was taken, to another device."""
        self._given_at[index] = now
        self.put_back([index])

    def put_back(self, indexes: Iterable[int]) -> None:
        """Want again what was taken and did not come."""
        indexes = list(indexes)
        self._out -= len(indexes)
        self._wanted = sorted([*self._wanted, *indexes])

    def failed(self, source: WeightSource, fault: str, now: float, *, for_good: bool) -> None:
        """Take note that a connection to the source ended with a fault."""
        state = self._states[source]
        if now >= state.retry_at:  # connections that fail together count once
            state.failures += 1
        state.fault = fault
        state.retry_at = now + RETRY_S
        state.dropped = state.dropped or for_good or state.failures >= FAILURES_MAX

    def is_hopeless(self, now: float) -> bool:
        """Return whether nothing that may still happen brings what is wanted."""
        if not self._wanted or self._out:
            return False
        return not any(self._may_help(state, now) for state in self._live())

    def faults(self) -> dict[WeightSource, str]:
        """Return what each source's fault is, for a person."""
        return {source: state.fault for source, state in self._states.items()}

    def _live(self) -> list[_State]:
        return [state for state in self._states.values() if not state.dropped]

    def _cost(self, state: _State) -> tuple[int, bool, int]:
        return state.lanes, state.source.original, state.failures

    def _is_useful(self, state: _State, now: float) -> bool:
        """Return whether a connection to the source could bring or tell something now."""
        if now < state.retry_at:
            return False
        if state.available is None:
            return state.lanes == 0  # one connection asks; more follow when it has an answer
        if any(map(self._giving(state, now), self._wanted)):
            return True
        may_have_more = not state.source.original and now >= state.asked_at + LOOK_AGAIN_S
        return may_have_more and not state.lanes and self._waits()

    def _may_help(self, state: _State, now: float) -> bool:
        if now < state.retry_at or state.available is None:
            return True
        available = state.available
        return any(index in available for index in self._wanted)

    def _waits(self) -> bool:
        """Return whether a wanted chunk was given to another device, which will soon have it."""
        return any(index in self._given_at for index in self._wanted)

    def _giving(self, state: _State, now: float) -> Callable[[int], bool]:
        """Return what tells whether the source shall be asked for a chunk now."""
        available = state.available
        if available is None:
            return lambda _: False
        if not state.source.original:
            return available.__contains__
        others = [each for each in self._live() if not each.source.original and not each.failures]
        if now < self._survey_until and any(each.available is None for each in others):
            return lambda _: False
        elsewhere = [each.available for each in others if each.available is not None]

        def gives(index: int) -> bool:
            if index not in available or any(index in bitmap for bitmap in elsewhere):
                return False
            return now >= self._given_at.get(index, NEVER) + INSIST_S

        return gives
