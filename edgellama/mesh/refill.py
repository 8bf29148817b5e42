"""What a stage computes again after a change of plans, and in which order.

Of an answer under way a stage may hold some layers up to a position and others not at all. It
fills those that lack something, chunk by chunk, and computes on to its end where the next stage
asks for the rows there. Where the rows for a chunk come from is for the caller to find: the
nearest boundary before the lowest layer that lacks them will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.errors import WireError

if TYPE_CHECKING:
    from edgellama.values import Span

CHUNK_ROWS: Final = 64
WINDOW_ROWS: Final = 256  # asked for of the stage before at once: enough to keep both computing
WINDOW_BYTES: Final = 4 << 20  # and less of them where a model is so wide that they weigh more


class Chunk(NamedTuple):
    """Positions to compute: rows before layer ``lowest`` or below serve, layers up to ``past``."""

    lowest: int
    past: int
    position: int
    position_past: int


def window_rows(width: int) -> int:
    """Return how many rows of a model are asked for at once."""
    return max(1, min(WINDOW_ROWS, WINDOW_BYTES // (2 * width)))


class Refill:
    """One answer's state at one stage: how far each layer is, and how far it must be."""

    def __init__(self, span: Span, lengths: tuple[int, ...], target: int) -> None:
        """``lengths`` are the positions that each layer of ``span`` holds, up to ``target``."""
        if len(lengths) != span.layers or any(length > target for length in lengths):
            raise WireError("a KV cache that is not as the plan says")
        self.span = span
        self.target = target
        self._lengths = list(lengths)
        self._wanted = (0, 0)  # positions whose rows the next stage asks for

    @property
    def is_full(self) -> bool:
        """Whether every layer holds what it must."""
        return all(length >= self.target for length in self._lengths)

    @property
    def wanted(self) -> tuple[int, int]:
        """The positions, first and past, of which the next stage still lacks the rows."""
        return self._wanted

    def want(self, first: int, past: int) -> None:
        """Take what the next stage asks for, besides what it still lacks of earlier questions.

        It asks for more before it has everything, and questions may overtake each other.
        """
        past = max(first, min(past, self.target))
        if self._wanted[0] < self._wanted[1]:
            first, past = min(first, self._wanted[0]), max(past, self._wanted[1])
        self._wanted = (first, past)

    def gave(self, past: int) -> None:
        """Note that the next stage has been given the rows up to there."""
        self._wanted = (past, max(past, self._wanted[1]))

    def next_chunk(self) -> Chunk | None:
        """Return what to compute next; None when nothing is lacking here or asked for."""
        first, past = self._wanted
        is_asked = first < past
        position = min([*self._lengths, self.target, *([first] if is_asked else [])])
        lacking = [
            layer
            for layer, length in zip(range(*self.span), self._lengths, strict=True)
            if length <= position < self.target
        ]
        serves = is_asked and first <= position
        if not lacking and not serves:
            return None
        # Up to where other layers lack something too, or the next stage wants something.
        ends = [position + CHUNK_ROWS, past if serves else self.target]
        ends += [length for length in self._lengths if length > position]
        if is_asked and not serves:
            ends.append(first)
        top = self.span.past if serves else lacking[-1] + 1
        lowest = lacking[0] if lacking else max(self.span.first, self.span.past - 1)
        return Chunk(lowest, top, position, min(ends))

    def filled(self, span: Span, past: int) -> None:
        """Note that these layers have computed all positions before ``past``."""
        for layer in range(*span):
            index = layer - self.span.first
            self._lengths[index] = max(self._lengths[index], past)
