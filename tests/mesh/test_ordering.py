"""Pieces of an answer come out in their order and once, whatever order they come in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.mesh.ordering import EARLY_PIECES_MAX, AnswerOrder
from edgellama.values import LinkCounters
from edgellama.wire.messages import Finished, Piece


def piece(index: int) -> Piece:
    return Piece(7, index, (100 + index,), f"<{index}>")


def finished(count: int) -> Finished:
    return Finished(7, "stop", count, "", (), 0, 0, (), LinkCounters())


@settings(deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.data())
def test_any_order_with_repeats(count: int, known: int, data: st.DataObject) -> None:
    known = min(known, count)
    said = [*map(piece, range(count)), finished(count)]
    extra = data.draw(st.lists(st.sampled_from(said[:-1]))) if count else []
    order = AnswerOrder([100 + index for index in range(known)])
    due = []
    for message in data.draw(st.permutations([*said, *extra])):
        due += order.accept(message)
    assert due == said[known:]
    assert order.tokens == [100 + index for index in range(count)]


def test_the_end_waits_for_the_last_piece() -> None:
    order = AnswerOrder()
    assert order.accept(finished(1)) == []
    assert order.accept(piece(0)) == [piece(0), finished(1)]


def test_a_piece_of_several_tokens() -> None:
    order = AnswerOrder()
    several = Piece(7, 0, (1, 2, 3), "abc")
    assert order.accept(several) == [several]
    assert order.accept(piece(2)) == []
    assert order.accept(piece(3)) == [piece(3)]


@pytest.mark.parametrize("beyond", [0, 1, 100])
def test_early_pieces_have_a_bound(beyond: int) -> None:
    order = AnswerOrder()
    for index in range(1, EARLY_PIECES_MAX + 1 + beyond):
        assert order.accept(piece(index)) == []
    assert len(order.accept(piece(0))) == EARLY_PIECES_MAX + 1
