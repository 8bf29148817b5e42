"""What an asker sends: the text, what the model shall be, and the asker's day."""

from __future__ import annotations

import struct
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.values import ASSISTANT, USER, SamplingSettings, Turn
from edgellama.wire.messages import (
    HISTORY_CHARACTERS_MAX,
    SYSTEM_CHARACTERS_MAX,
    TURNS_MAX,
    Ask,
    decode,
    encode,
)

ASK = Ask(
    7, SamplingSettings(), 16, False, False, (1, 2), "Be brief.", 739_682, (), *(0, 0, 0), "Hello"
)
SAID = (Turn(USER, "Hi"), Turn(ASSISTANT, "Hello!"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@settings(deadline=None)
@given(
    system=TEXT,
    prompt=TEXT,
    today=st.integers(0, 2**32 - 1),
    raw=st.booleans(),
    history=st.lists(st.builds(Turn, st.sampled_from([USER, ASSISTANT]), TEXT), max_size=5),
)
def test_it_comes_back(
    system: str, prompt: str, today: int, raw: bool, history: list[Turn]
) -> None:
    ask = replace(ASK, system=system, prompt=prompt, today=today, raw=raw, history=tuple(history))
    assert decode(encode(ask)) == ask


def test_the_longest_system_text() -> None:
    ask = replace(ASK, system="\U0001f642" * SYSTEM_CHARACTERS_MAX)
    assert decode(encode(ask)) == ask


def test_a_longer_one_is_refused() -> None:
    data = encode(replace(ASK, system="x"))
    (length,) = struct.unpack_from("<I", data)
    header = msgpack.unpackb(data[4 : 4 + length])
    header[header.index("x")] = "x" * (SYSTEM_CHARACTERS_MAX + 1)
    longer = msgpack.packb(header)
    with pytest.raises(WireError, match="a text of at most 65536 characters"):
        decode(struct.pack("<I", len(longer)) + longer + data[4 + length :])


def test_the_longest_history() -> None:
    turn = Turn(USER, "\U0001f642" * (HISTORY_CHARACTERS_MAX // 2))
    for history in [(turn, turn), (SAID * (TURNS_MAX // 2))]:
        ask = replace(ASK, history=history)
        assert decode(encode(ask)) == ask


def test_longer_ones_are_refused() -> None:
    turn = Turn(USER, "x" * (HISTORY_CHARACTERS_MAX // 2))
    with pytest.raises(WireError, match="a history of 1048578 characters"):
        decode(encode(replace(ASK, history=(turn, turn, *[Turn(ASSISTANT, "y")] * 2))))
    with pytest.raises(WireError, match="expected a list of 0 to 1024 items"):
        decode(with_history([[0, "x"]] * (TURNS_MAX + 1)))
    with pytest.raises(WireError, match="expected a text of at most 1048576 characters"):
        decode(with_history([[0, "x" * (HISTORY_CHARACTERS_MAX + 1)]]))


def test_only_two_sides_speak() -> None:
    with pytest.raises(WireError, match="expected one of user, assistant"):
        decode(with_history([[2, "x"]]))


@pytest.mark.parametrize("scored_from", [1, 2])
def test_a_text_to_be_scored_must_have_a_token_for_it(scored_from: int) -> None:
    assert decode(encode(replace(ASK, tokens=(1, 2, 3), scored_from=1))).scored_from == 1  # type: ignore[union-attr]
    with pytest.raises(WireError, match="without a token to be scored"):
        decode(encode(replace(ASK, tokens=(1, 2), scored_from=scored_from)))


def with_history(packed: list[object]) -> bytes:
    data = encode(replace(ASK, history=SAID))
    (length,) = struct.unpack_from("<I", data)
    header = msgpack.unpackb(data[4 : 4 + length])
    header[header.index([[0, "Hi"], [1, "Hello!"]])] = packed
    longer = msgpack.packb(header)
    return struct.pack("<I", len(longer)) + longer + data[4 + length :]
