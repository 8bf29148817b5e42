"""What an asker sends: the text, what the model shall be, and the asker's day."""

from __future__ import annotations

import struct
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.values import SamplingSettings
from edgellama.wire.messages import SYSTEM_CHARACTERS_MAX, Ask, decode, encode

ASK = Ask(7, SamplingSettings(), 16, False, False, (1, 2), "Be brief.", 739_682, "Hello")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@settings(deadline=None)
@given(system=TEXT, prompt=TEXT, today=st.integers(0, 2**32 - 1), raw=st.booleans())
def test_it_comes_back(system: str, prompt: str, today: int, raw: bool) -> None:
    ask = replace(ASK, system=system, prompt=prompt, today=today, raw=raw)
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
