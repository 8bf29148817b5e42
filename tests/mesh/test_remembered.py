"""Which ended answer a new question goes on from."""

from __future__ import annotations

import pytest

from edgellama.mesh.remembered import Ended, Remembered

LATER = 100.0


def remembered(*answers: tuple[int, ...]) -> Remembered:
    """Return answers with the keys 1, 2, ..."""
    made = Remembered()
    for key, tokens in enumerate(answers, 1):
        made.add(key, Ended(tokens, LATER), 10)
    return made


@pytest.mark.parametrize(
    ("answers", "tokens", "taken"),
    [
        ([], (1, 2), (0, 0)),
        ([(1, 2, 3)], (1, 2, 3, 4), (1, 3)),
        ([(1, 2, 3)], (1, 2), (1, 2)),
        ([(1, 2, 3)], (2, 2, 3), (0, 0)),
        ([(1, 2, 3), (1, 2, 3, 4), (1, 2)], (1, 2, 3, 4, 5), (2, 4)),
        ([(1, 2, 3), (1, 2, 4)], (1, 2, 5), (1, 2)),
        ([(1, 2, 3, 4, 5, 6, 7, 8)], (1, 2), (1, 2)),  # a fourth is enough
        ([(1, 2, 3, 4, 5, 6, 7, 8, 9)], (1, 2), (0, 0)),  # less is left to who may go on
        ([(1, 2)], (), (0, 0)),
    ],
)
def test_the_one_that_begins_most_like_it(
    answers: list[tuple[int, ...]], tokens: tuple[int, ...], taken: tuple[int, int]
) -> None:
    assert remembered(*answers).take(tokens, 0.0) == taken


def test_one_that_is_taken_is_gone() -> None:
    answers = remembered((1, 2, 3), (1, 2))
    assert answers.take((1, 2, 3), 0.0) == (1, 3)
    assert answers.take((1, 2, 3), 0.0) == (2, 2)
    assert answers.take((1, 2, 3), 0.0) == (0, 0)


def test_one_whose_time_is_over_is_not_taken() -> None:
    assert remembered((1, 2)).take((1, 2), LATER - 1) == (1, 2)
    assert remembered((1, 2)).take((1, 2), LATER) == (0, 0)


def test_the_oldest_go_where_there_are_many() -> None:
    answers = remembered((1,), (2,), (3,))
    answers.add(1, Ended((1, 1), LATER), 2)
    assert answers.take((2,), 0.0) == (0, 0)
    assert answers.take((3,), 0.0) == (3, 1)
    answers.keep(0)
    assert answers.take((1, 1), 0.0) == (0, 0)


def test_forgetting() -> None:
    answers = remembered((1,))
    answers.forget(1)
    answers.forget(7)
    assert answers.take((1,), 0.0) == (0, 0)
