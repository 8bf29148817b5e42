"""RoPE table: right, the same bits everywhere, and filled in any order."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.model.rope import (
    CHUNK_POSITIONS,
    CHUNKS_MAX,
    PI,
    RopeTable,
    cosine_and_sine,
    turns_per_position,
)
from edgellama.model.rope_settings import Rope

HEAD_WIDTH = 64
ROPE = Rope(base=10000.0, dimensions=HEAD_WIDTH, scale=1.0, factors=(1.0,) * 32)
ERROR_MAX = 3.1e-8  # half a unit of float32 below 1, and the polynomial's own


def expected(rope: Rope, position: int, pair: int) -> tuple[float, float]:
    """Cosine and sine from an angle brought below one turn with 50 digits, by another route."""
    with localcontext() as context:
        context.prec = 50
        rate = Decimal(rope.base) ** (Decimal(-2 * pair) / rope.dimensions)
        rate /= Decimal(rope.scale) * Decimal(rope.factors[pair])
        angle = float((rate * position) % (2 * PI))
    return math.cos(angle), math.sin(angle)


@pytest.mark.parametrize("base", [10000.0, 500000.0, 1e6])
def test_cosines_and_sines_are_right_to_the_last_bit_of_float32(base: float) -> None:
    rope = replace(ROPE, base=base)
    table = RopeTable(rope, HEAD_WIDTH)
    for position in (0, 1, 2, 63, 64, 255, 256, 257, 5000, 131071):
        row = table.rows(position, 1)[0]
        for pair in range(32):
            cosine, sine = expected(rope, position, pair)
            assert abs(float(row[0, pair]) - cosine) <= ERROR_MAX, (position, pair)
            assert abs(float(row[1, pair]) - sine) <= ERROR_MAX, (position, pair)


def test_linear_scaling_and_factors_divide_the_turns() -> None:
    factors = tuple(1.0 + index / 4 for index in range(32))
    rope = replace(ROPE, scale=4.0, factors=factors)
    row = RopeTable(rope, HEAD_WIDTH).rows(777, 1)[0]
    for pair in range(32):
        cosine, sine = expected(rope, 777, pair)
        assert abs(float(row[0, pair]) - cosine) <= ERROR_MAX
        assert abs(float(row[1, pair]) - sine) <= ERROR_MAX


def test_pairs_beyond_the_rotated_dimensions_stay() -> None:
    rope = replace(ROPE, dimensions=16, factors=(1.0,) * 8)
    table = RopeTable(rope, HEAD_WIDTH).rows(0, 300)
    assert (table[:, 0, 8:] == 1).all()
    assert (table[:, 1, 8:] == 0).all()
    np.testing.assert_array_equal(table[:, :, :8], RopeTable(rope, 16).rows(0, 300))


def test_a_magnitude_is_that_of_the_rotated_pairs_alone() -> None:
    rope = replace(ROPE, dimensions=16, factors=(1.0,) * 8)
    plain = RopeTable(rope, HEAD_WIDTH).rows(0, 300)
    larger = RopeTable(replace(rope, magnitude=1.25), HEAD_WIDTH).rows(0, 300)
    np.testing.assert_allclose(larger[:, :, :8], plain[:, :, :8] * 1.25, rtol=3e-7, atol=1e-8)
    np.testing.assert_array_equal(larger[:, :, 8:], plain[:, :, 8:])


def test_quarter_turns_are_exact() -> None:
    quarters = np.array([0, 1 << 62, 2 << 62, 3 << 62], np.uint64)
    cosines, sines = cosine_and_sine(quarters)
    assert cosines.tolist() == [1, 0, -1, 0]
    assert sines.tolist() == [0, 1, 0, -1]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**64 - 1))
def test_any_angle_is_right_and_lies_on_the_circle(angle: int) -> None:
    cosines, sines = cosine_and_sine(np.array([angle], np.uint64))
    radians = float(Decimal(angle) / 2**64 * 2 * PI)
    assert abs(float(cosines[0]) - math.cos(radians)) <= ERROR_MAX
    assert abs(float(sines[0]) - math.sin(radians)) <= ERROR_MAX


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 400)), min_size=1, max_size=5))
def test_order_of_asking_changes_nothing(asked: list[tuple[int, int]]) -> None:
    whole = RopeTable(ROPE, HEAD_WIDTH).rows(0, 1399)
    table = RopeTable(ROPE, HEAD_WIDTH)
    for position, count in asked:
        np.testing.assert_array_equal(
            table.rows(position, count), whole[position : position + count]
        )


def test_what_is_kept_is_bounded_and_what_is_dropped_comes_back_equal() -> None:
    table = RopeTable(ROPE, HEAD_WIDTH)
    first = table.rows(0, 5).copy()
    for chunk in range(3 * CHUNKS_MAX):
        table.rows(chunk * CHUNK_POSITIONS, 1)
        assert len(table._chunks) <= CHUNKS_MAX
    np.testing.assert_array_equal(table.rows(0, 5), first)


def test_turns_wrap_where_a_factor_makes_more_than_one_a_position() -> None:
    slow = turns_per_position(Rope(10000.0, 2, 1.0, (1.0,)))
    fast = turns_per_position(Rope(10000.0, 2, 0.125, (1.0,)))
    assert int(fast[0]) == pytest.approx(int(slow[0]) * 8 % 2**64, abs=8)


def test_bits_are_those_of_every_other_machine() -> None:
    table = RopeTable(ROPE, HEAD_WIDTH).rows(0, 2048)
    digest = hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
    assert digest == "7779050348d097cbe88e6c0df85fd83de47a451e710ed1d2416dc8b9a029f0d8"
