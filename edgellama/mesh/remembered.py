"""Ended answers whose KV cache is still there, for a question that begins as they do.

The next question of a conversation begins with all that was said: its tokens are those of the last
prompt, and of the answer as far as they come out alike. Keys and values of a position follow from
the tokens up to there alone, so what was computed of them serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# A question that shares but a little, such as a system text, leaves the rest to whoever may go on.
SHARED_SHARE_MIN: Final = 4  # the least share of an answer that is worth ending it for: a fourth


class Ended(NamedTuple):
    """An ended answer: the tokens of the positions computed, and until when they are kept."""

    tokens: tuple[int, ...]
    until: float


class Remembered:
    """Ended answers by their keys, the oldest first."""

    def __init__(self) -> None:
        self._answers: dict[int, Ended] = {}

    def add(self, key: int, ended: Ended, count_max: int) -> None:
        """Remember an answer; the oldest go where there are more than ``count_max``."""
        self.forget(key)
        self._answers[key] = ended
        self.keep(count_max)

    def keep(self, count_max: int) -> None:
        """Forget the oldest until there are no more than ``count_max``."""
        while len(self._answers) > max(count_max, 0):
            del self._answers[next(iter(self._answers))]

    def forget(self, key: int) -> None:
        """Forget an answer, if it is there."""
        self._answers.pop(key, None)

    def take(self, tokens: Sequence[int], now: float) -> tuple[int, int]:
        """Return the key of the answer that begins most like ``tokens``, and how many they share.

        It is forgotten here. (0, 0) where none shares enough.
        """
        best, shared_most = 0, 0
        for key, ended in self._answers.items():
            shared = _shared(ended.tokens, tokens)
            enough = shared * SHARED_SHARE_MIN >= len(ended.tokens)
            if enough and now < ended.until and shared > shared_most:
                best, shared_most = key, shared
        self.forget(best)
        return best, shared_most


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts have alike, from their beginnings."""
    pairs = zip(first, second, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
