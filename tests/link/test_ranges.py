"""Ranges against a plain set of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.link.ranges import Ranges


@given(numbers=st.lists(st.integers(0, 40)))
@settings(deadline=None, max_examples=300)
def test_ranges_are_a_set_of_numbers(numbers: list[int]) -> None:
    ranges, model = Ranges(), set()
    for number in numbers:
        assert ranges.add(number) == (number not in model)
        model.add(number)
        assert [n in ranges for n in range(42)] == [n in model for n in range(42)]
        kept = ranges.newest(100)
        assert len(kept) == len(ranges)
        assert {n for low, high in kept for n in range(low, high + 1)} == model
        for (low, _), (_, high_below) in pairwise(kept):
            assert high_below < low - 1, "falling, and never touching"


def test_the_newest_ranges_come_first_and_the_lowest_goes_first() -> None:
    ranges = Ranges()
    for number in (1, 2, 5, 9, 8):
        ranges.add(number)
    assert ranges.newest(2) == [(8, 9), (5, 5)]
    assert ranges.newest(0) == []
    assert ranges.drop_lowest() == 2
    assert ranges.newest(9) == [(8, 9), (5, 5)]
