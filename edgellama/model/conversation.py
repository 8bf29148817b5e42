"""What was said on both sides, as a model reads it, and as much of it as its context holds."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from edgellama.values import SYSTEM, USER, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def conversation(system: str, history: Sequence[Turn], prompt: str) -> list[Turn]:
    """Return the messages that a chat template is given; an empty ``system`` is left out."""
    return [*([Turn(SYSTEM, system)] if system else []), *history, Turn(USER, prompt)]


def continued(history: Sequence[Turn], prompt: str) -> str:
    """Return the text that a model without a chat template continues: a line for each turn."""
    return "\n".join([*(turn.content for turn in history), prompt])


def fitting(
    tokens_of: Callable[[Sequence[Turn]], list[int]],
    history: Sequence[Turn],
    context: int,
    room: int,
) -> tuple[list[int], int]:
    """Return the tokens of a question after ``history``, and how many of its turns are kept.

    ``tokens_of`` makes the tokens of the question after a part of the history. Where not all of it
    leaves ``room`` tokens for an answer, or a quarter of ``context`` if that is less, the first
    turns are left out until half the context is free. So it is not the next question already
    that outgrows it again, and what is kept begins with a question.
    """
    tokens = tokens_of(history)
    if not history or len(tokens) + min(room, context // 4) <= context:
        return tokens, len(history)
    begins = [place for place, turn in enumerate(history) if place and turn.role == USER]
    free = [*begins, len(history)]
    kept = bisect_left(free, True, key=lambda at: len(tokens_of(history[at:])) <= context // 2)
    first = free[min(kept, len(free) - 1)]
    return tokens_of(history[first:]), len(history) - first
