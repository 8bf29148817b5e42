"""How much of a conversation a question brings along."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellama.model.conversation import continued, conversation, fitting
from edgellama.values import ASSISTANT, SYSTEM, USER, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTION = [9] * 10


def tokens_of(history: Sequence[Turn]) -> list[int]:
    """Return a token for each character, and the question's."""
    return [1] * sum(len(turn.content) for turn in history) + QUESTION


def exchanges(*lengths: int) -> tuple[Turn, ...]:
    return tuple(
        turn
        for length in lengths
        for turn in (Turn(USER, "u" * (length // 2)), Turn(ASSISTANT, "a" * (length // 2)))
    )


@pytest.mark.parametrize(
    ("history", "context", "room", "kept"),
    [
        ((), 5, 100, 0),  # too long by itself: whoever asked is told
        (exchanges(20, 20), 100, 50, 4),
        (exchanges(40, 24), 100, 50, 4),  # 74 tokens, a quarter is free
        (exchanges(40, 26), 100, 50, 2),  # 76 tokens
        (exchanges(40, 26), 100, 24, 4),  # as much as is wanted is free
        (exchanges(20, 20, 20, 20), 100, 50, 4),  # half is free after it
        (exchanges(10, 100), 100, 50, 0),
        (exchanges(2) * 50, 100, 50, 40),
        (exchanges(30), 12, 50, 0),  # the question alone takes more than half
        ((Turn(ASSISTANT, "a" * 50), *exchanges(10)), 64, 50, 2),
        (exchanges(60)[1:], 64, 50, 1),
        ((Turn(USER, "u" * 50), Turn(USER, "u" * 10)), 64, 50, 1),
    ],
)
def test_the_first_turns_are_left_out(
    history: tuple[Turn, ...], context: int, room: int, kept: int
) -> None:
    tokens, turns_kept = fitting(tokens_of, history, context, room)
    assert turns_kept == kept
    assert tokens == tokens_of(history[len(history) - kept :])


@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    context=st.integers(20, 200),
    room=st.integers(1, 300),
)
def test_what_is_kept_begins_with_a_question_and_leaves_room(
    lengths: list[int], context: int, room: int
) -> None:
    history = exchanges(*lengths)
    tokens, kept = fitting(tokens_of, history, context, room)
    assert kept % 2 == 0
    assert tokens == tokens_of(history[len(history) - kept :])
    assert len(tokens) + min(room, context // 4) <= context or kept == 0
    if kept < len(history):
        assert len(tokens) <= max(context // 2, len(QUESTION))
        longer = tokens_of(history[len(history) - kept - 2 :])
        assert len(longer) > context // 2


def test_a_template_is_given_every_side() -> None:
    said = exchanges(2)
    assert conversation("", (), "q") == [Turn(USER, "q")]
    assert conversation("s", said, "q") == [Turn(SYSTEM, "s"), *said, Turn(USER, "q")]


def test_a_text_goes_on_line_by_line() -> None:
    assert continued((), "q") == "q"
    assert continued(exchanges(2), "q") == "u\na\nq"
