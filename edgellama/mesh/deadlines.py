"""Answers that are kept for a while, by their keys, in case somebody goes on with them."""

from __future__ import annotations


class Deadlines:
    """Until when each answer is kept; of more than ``count_max`` the oldest are due at once."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._until: dict[int, float] = {}

    def keys(self) -> set[int]:
        """Return the keys of all that is kept."""
        return set(self._until)

    def add(self, key: int, until: float) -> None:
        """Keep an answer until then."""
        self._until.pop(key, None)
        self._until[key] = until

    def remove(self, key: int) -> None:
        """Somebody goes on with the answer."""
        self._until.pop(key, None)

    def next_timer(self) -> float | None:
        """Return when the first one is due."""
        return min(self._until.values(), default=None)

    def due(self, now: float) -> list[int]:
        """Return whose time is over, and who are too many; they are forgotten here."""
        late = [key for key, until in self._until.items() if now >= until]
        rest = [key for key in self._until if key not in late]
        gone = late + rest[: max(0, len(rest) - self._count_max)]
        for key in gone:
            del self._until[key]
        return gone
