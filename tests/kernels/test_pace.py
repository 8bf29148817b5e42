"""The number of threads follows what runs take, on made-up times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from edgellama_kernels.pace import PROBE_RUNS_MAX, WARM_UP_TRIES, Pace

if TYPE_CHECKING:
    from collections.abc import Callable


def play(pace: Pace, runs: int, seconds: Callable[[int], float]) -> list[int]:
    """Let ``runs`` runs take what ``seconds`` says for their number of threads."""
    chosen = []
    for _ in range(runs):
        threads = pace.next_threads()
        pace.learn(threads, seconds(threads))
        chosen.append(threads)
    return chosen


def test_one_thread_is_never_a_question() -> None:
    assert set(play(Pace(1), 1000, lambda threads: 1.0)) == {1}


@pytest.mark.parametrize("best", [1, 2, 3, 4])
def test_the_warm_up_tries_all_and_keeps_the_fastest(best: int) -> None:
    pace = Pace(4)
    chosen = play(pace, 4 * WARM_UP_TRIES + 1, lambda threads: 1.0 + abs(threads - best))
    assert sorted(chosen[:-1]) == sorted([1, 2, 3, 4] * WARM_UP_TRIES)
    assert chosen[-1] == best


def test_a_sure_choice_is_seldom_questioned() -> None:
    pace = Pace(2)
    play(pace, 500, lambda threads: 1 / threads)
    chosen = play(pace, 4 * PROBE_RUNS_MAX, lambda threads: 1 / threads)
    assert chosen.count(1) <= 5


def test_a_busy_device_drops_a_thread_and_takes_it_back() -> None:
    pace = Pace(2)
    play(pace, 1000, lambda threads: 1 / threads)
    busy = play(pace, 100, lambda threads: 1.2 if threads == 1 else 3.0)
    assert busy.count(2) < 15
    assert busy[-1] == 1
    quiet = play(pace, 2 * PROBE_RUNS_MAX, lambda threads: 1 / threads)
    assert quiet[-1] == 2


def test_one_slow_run_changes_little() -> None:
    pace = Pace(2)
    play(pace, 100, lambda threads: 1 / threads)
    pace.learn(2, 50.0)
    assert play(pace, 30, lambda threads: 1 / threads)[-1] == 2
