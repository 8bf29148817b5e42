"""Rows kept for a stage that may be lost: without gaps, and within a bound."""

from __future__ import annotations

import numpy as np
import pytest
from mesh_building import WIDTH, rows_of

from edgellama.mesh.kept_rows import PIECE_OVERHEAD_BYTES, KeptRows

ROW_BYTES = 2 * WIDTH + 1


def numbers(kept: KeptRows, key: int, layer: int, position: int, past: int) -> list[int] | None:
    """Return the rows by the number that ``rows_of`` has made each of."""
    rows = kept.get(key, layer, position, past)
    return None if rows is None else [int(number) for number in rows.halves[:, 0]]


def filled(*counts: int) -> KeptRows:
    kept = KeptRows()
    position = 0
    for count in counts:
        kept.add(1, 4, position, rows_of(count, position))
        position += count
    return kept


@pytest.mark.parametrize(
    ("position", "past", "expected"),
    [
        (0, 7, [0, 1, 2, 3, 4, 5, 6]),
        (2, 5, [2, 3, 4]),
        (3, 4, [3]),
        (6, 99, [6]),
        (7, 99, None),
        (5, 5, None),
    ],
)
def test_any_rows_can_be_had_up_to_where_they_end(
    position: int, past: int, expected: list[int] | None
) -> None:
    assert numbers(filled(3, 1, 1, 2), 1, 4, position, past) == expected


def test_rows_are_of_one_answer_and_one_boundary() -> None:
    kept = filled(3)
    kept.add(1, 6, 0, rows_of(2, 50))
    kept.add(2, 4, 0, rows_of(2, 60))
    assert numbers(kept, 1, 4, 0, 9) == [0, 1, 2]
    assert numbers(kept, 1, 6, 0, 9) == [50, 51]
    assert numbers(kept, 2, 4, 0, 9) == [60, 61]
    kept.forget_other(1, range(5, 7))
    assert numbers(kept, 1, 4, 0, 9) is None
    assert numbers(kept, 1, 6, 0, 9) == [50, 51]
    kept.forget(1)
    kept.forget(2)
    assert kept.bytes == 0


def test_what_is_known_is_passed_over() -> None:
    kept = filled(4)
    kept.add(1, 4, 2, rows_of(4, 2))
    assert numbers(kept, 1, 4, 0, 9) == [0, 1, 2, 3, 4, 5]
    kept.add(1, 4, 0, rows_of(3, 90))
    assert numbers(kept, 1, 4, 0, 9) == [0, 1, 2, 3, 4, 5]


def test_a_gap_can_be_filled_later() -> None:
    kept = filled(2)
    kept.add(1, 4, 7, rows_of(2, 7))
    kept.add(1, 4, 4, rows_of(1, 4))
    assert numbers(kept, 1, 4, 0, 9) == [0, 1]
    assert numbers(kept, 1, 4, 4, 9) == [4]
    assert numbers(kept, 1, 4, 2, 9) is None
    assert numbers(kept, 1, 4, 7, 9) == [7, 8]
    kept.add(1, 4, 1, rows_of(9, 1))
    assert numbers(kept, 1, 4, 0, 99) == list(range(10))
    assert kept.bytes == 6 * PIECE_OVERHEAD_BYTES + 10 * ROW_BYTES


def test_the_oldest_answers_first_rows_go_first() -> None:
    piece = ROW_BYTES + PIECE_OVERHEAD_BYTES
    kept = KeptRows(4 * piece)
    for position in range(3):
        kept.add(1, 4, position, rows_of(1, position))
    for position in range(3):
        kept.add(2, 4, position, rows_of(1, position))
    assert kept.bytes == 4 * piece
    assert numbers(kept, 1, 4, 2, 9) == [2]
    assert numbers(kept, 1, 4, 1, 9) is None
    assert numbers(kept, 2, 4, 0, 9) == [0, 1, 2]
    for position in range(3, 9):
        kept.add(2, 4, position, rows_of(1, position))
    assert numbers(kept, 1, 4, 2, 9) is None
    assert numbers(kept, 2, 4, 5, 9) == [5, 6, 7, 8]


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    kept = KeptRows(100)
    kept.add(1, 4, 0, rows_of(20))
    assert kept.bytes == 0
    assert numbers(kept, 1, 4, 0, 9) is None


def test_kept_rows_do_not_hold_on_to_what_they_are_a_part_of() -> None:
    kept = KeptRows()
    rows = rows_of(2)
    kept.add(1, 4, 0, rows)
    rows.halves[:] = 7
    found = kept.get(1, 4, 0, 2)
    assert found is not None
    assert np.array_equal(found.halves, rows_of(2).halves)
