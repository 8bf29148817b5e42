"""A set of numbers kept as closed ranges: packets that came, messages that are complete."""

from __future__ import annotations


class Ranges:
    """Whole numbers from 0, added mostly in rising order; memory grows with the gaps alone."""

    __slots__ = ("_ranges",)

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []  # [low, high], rising, never touching

    def __len__(self) -> int:
        return len(self._ranges)

    def __contains__(self, number: int) -> bool:
        for low, high in reversed(self._ranges):
            if number > high:
                return False
            if number >= low:
                return True
        return False

    def newest(self, ranges_max: int) -> list[tuple[int, int]]:
        """Return at most so many ranges (low, high), from the highest down."""
        return [(low, high) for low, high in self._ranges[: -ranges_max - 1 : -1]]

    def add(self, number: int) -> bool:
        """Add a number; return False when it was there already."""
        ranges = self._ranges
        at = len(ranges)
        if at and number == ranges[-1][1] + 1:  # nearly always
            ranges[-1][1] = number
            return True
        while at and ranges[at - 1][0] > number:
            at -= 1
        # The number lies at or above the range before ``at`` and below the one at ``at``.
        if at and number <= ranges[at - 1][1]:
            return False
        touches_below = at > 0 and ranges[at - 1][1] == number - 1
        touches_above = at < len(ranges) and ranges[at][0] == number + 1
        if touches_below and touches_above:
            ranges[at - 1][1] = ranges.pop(at)[1]
        elif touches_below:
            ranges[at - 1][1] = number
        elif touches_above:
            ranges[at][0] = number
        else:
            ranges.insert(at, [number, number])
        return True

    def drop_lowest(self) -> int:
        """Forget the lowest range and return its upper end."""
        return self._ranges.pop(0)[1]
