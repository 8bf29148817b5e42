"""Join codes as people say and type them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import MisuseError
from edgellama.wire.join_code import WORDS, JoinCode, make_code, parse_code


def test_the_words_differ_early_and_are_as_many_as_a_byte_has_values() -> None:
    assert len(WORDS) == 256
    assert len({word[:4] for word in WORDS}) == 256
    assert all(word.isascii() and word.isalpha() and word == word.lower() for word in WORDS)


@given(st.binary(min_size=3, max_size=3))
@settings(max_examples=100)
def test_a_code_is_read_as_it_is_shown_and_as_people_type_it(entropy: bytes) -> None:
    code = make_code(lambda count: entropy[:count])
    shown = str(code)
    assert parse_code(shown) == code
    assert parse_code(f"  {shown.upper().replace('-', '  ')}\n") == code
    short = f"{code.slot}-{code.first[:4]}-{code.second[:4]}"
    assert parse_code(short) == code


def test_all_of_the_entropy_is_in_the_words() -> None:
    codes = {make_code(lambda _, n=n: bytes([0]) + n.to_bytes(2, "big")) for n in range(1 << 16)}
    assert len(codes) == 1 << 16


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", "amber-otter", "7-amber", "0-amber-otter", "10-amber-otter"),
        *("7-amber-otter-fox", "7-amberx-otter", "7-amb-otter", "7-ambush-otter"),
        *("\u0667-amber-otter", "7-amber-\0", "x" * 999),
    ],
)
def test_what_is_no_code_is_named(text: str) -> None:
    with pytest.raises(MisuseError, match="is no join code"):
        parse_code(text)


def test_the_example_that_people_are_shown_is_a_code() -> None:
    assert parse_code("7-amber-otter") == JoinCode(7, "amber", "otter")
