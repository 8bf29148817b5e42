"""Each number is taken once; the oracle is a set."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.link.replay_window import PACKETS, ReplayWindow


@given(
    size=st.sampled_from([1, 8, 64, 2048]),
    numbers=st.lists(st.integers(0, 200) | st.integers(0, 6000) | st.integers(0, 2**64 - 1)),
)
@settings(deadline=None, max_examples=200)
def test_a_number_is_fresh_once_and_only_near_the_highest(size: int, numbers: list[int]) -> None:
    window, taken = ReplayWindow(size), set()
    for number in numbers:
        near = number > max(taken, default=-1) - size
        assert window.is_fresh(number) == (near and number not in taken)
        if window.is_fresh(number):
            window.take(number)
            taken.add(number)


def test_packets_reordered_within_the_window_all_count_and_beyond_it_none() -> None:
    window = ReplayWindow(PACKETS)
    window.take(PACKETS)
    for number in range(PACKETS, 0, -1):
        assert window.is_fresh(number) == (number != PACKETS)
    assert not window.is_fresh(0)
