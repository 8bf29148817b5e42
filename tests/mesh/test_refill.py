"""What a stage computes again after a change of plans: every order of it ends with a full stage."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.mesh.refill import CHUNK_ROWS, WINDOW_BYTES, WINDOW_ROWS, Chunk, Refill, window_rows
from edgellama.values import Span

SPAN = Span(4, 8)


def test_a_full_stage_has_nothing_to_do() -> None:
    refill = Refill(SPAN, (9, 9, 9, 9), 9)
    assert refill.is_full
    assert refill.next_chunk() is None


@pytest.mark.parametrize(
    ("lengths", "target", "expected"),
    [
        # Layers above those held: from the rows before layer 6, up to the highest that lacks any.
        ((50, 50, 0, 0), 50, Chunk(6, 8, 0, 50)),
        ((50, 50, 0, 50), 50, Chunk(6, 7, 0, 50)),
        ((0, 0, 50, 50), 50, Chunk(4, 6, 0, 50)),
        # One at both ends: what lies between is computed again.
        ((0, 50, 50, 0), 50, Chunk(4, 8, 0, 50)),
        # In chunks, and only as far as the same layers lack it.
        ((0, 0, 0, 0), 500, Chunk(4, 8, 0, CHUNK_ROWS)),
        ((10, 10, 0, 0), 500, Chunk(6, 8, 0, 10)),
        ((10, 10, 10, 10), 11, Chunk(4, 8, 10, 11)),
    ],
)
def test_what_comes_first(lengths: tuple[int, ...], target: int, expected: Chunk) -> None:
    assert Refill(SPAN, lengths, target).next_chunk() == expected


def test_what_the_next_stage_asks_for_is_computed_to_the_end() -> None:
    refill = Refill(SPAN, (50, 50, 50, 50), 50)
    refill.want(10, 30)
    assert refill.next_chunk() == Chunk(7, 8, 10, 30)
    refill.gave(20)
    assert refill.next_chunk() == Chunk(7, 8, 20, 30)
    refill.gave(30)
    assert refill.next_chunk() is None


def test_what_is_lacking_and_what_is_asked_for_are_computed_together() -> None:
    refill = Refill(SPAN, (0, 50, 50, 50), 50)
    refill.want(20, 40)
    assert refill.next_chunk() == Chunk(4, 5, 0, 20)
    refill.filled(Span(4, 5), 20)
    assert refill.next_chunk() == Chunk(4, 8, 20, 40)
    refill.filled(Span(4, 8), 40)
    refill.gave(40)
    assert refill.next_chunk() == Chunk(4, 5, 40, 50)


def test_what_is_asked_for_beyond_the_target_is_not_known() -> None:
    refill = Refill(SPAN, (50, 50, 50, 50), 50)
    refill.want(40, 99)
    assert refill.wanted == (40, 50)
    refill.gave(50)
    refill.want(60, 99)
    assert refill.next_chunk() is None


@pytest.mark.parametrize(
    "order", [((10, 30), (30, 40)), ((30, 40), (10, 30)), ((10, 40), (20, 30))]
)
def test_one_question_does_not_take_the_place_of_another(
    order: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    refill = Refill(SPAN, (50, 50, 50, 50), 50)
    for wanted in order:
        refill.want(*wanted)
    assert refill.wanted == (10, 40)


@pytest.mark.parametrize("lengths", [(1, 1, 1), (1, 1, 1, 11)])
def test_a_cache_that_is_not_as_the_plan_says_is_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(WireError, match="KV cache"):
        Refill(SPAN, lengths, 10)


def test_a_wide_model_is_asked_for_fewer_rows() -> None:
    assert window_rows(2048) == WINDOW_ROWS
    assert window_rows(65_536) * 2 * 65_536 == WINDOW_BYTES


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=5),
    st.integers(0, 200),
    st.tuples(st.integers(0, 200), st.integers(0, 200)),
    st.data(),
)
def test_every_layer_is_filled_in_order_and_every_row_given(
    lengths: list[int], target: int, wanted: tuple[int, int], data: st.DataObject
) -> None:
    """Each chunk finds the past of its layers there, whatever the rows at hand allow."""
    span = Span(3, 3 + len(lengths))
    held = [min(length, target) for length in lengths]
    refill = Refill(span, tuple(held), target)
    refill.want(*wanted)
    given_rows: list[int] = []
    for _ in range(1000):
        chunk = refill.next_chunk()
        if chunk is None:
            break
        assert span.first <= chunk.lowest <= chunk.past <= span.past
        assert chunk.position < chunk.position_past <= chunk.position + CHUNK_ROWS
        first = data.draw(st.integers(span.first, chunk.lowest))
        past = data.draw(st.integers(chunk.position + 1, chunk.position_past))
        for layer in range(first, chunk.past):
            assert held[layer - span.first] >= chunk.position
            held[layer - span.first] = max(held[layer - span.first], past)
        refill.filled(Span(first, chunk.past), past)
        if chunk.past == span.past and chunk.position <= refill.wanted[0] < past:
            given_rows += range(refill.wanted[0], past)
            refill.gave(past)
    assert held == [target] * len(lengths)
    assert refill.is_full
    assert given_rows[: max(0, min(wanted[1], target) - wanted[0])] == list(
        range(wanted[0], min(wanted[1], target))
    )
