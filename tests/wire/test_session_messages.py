"""Records of sessions: which is newer, what a name may be, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import msgpack
import pytest
from session_building import answered, conversation_of

from edgellama.errors import WireError
from edgellama.values import USER, Turn
from edgellama.wire.messages import (
    HISTORY_CHARACTERS_MAX,
    AskInSession,
    KeepSession,
    SessionReply,
    bounded_history,
    decode,
    encode,
)
from edgellama.wire.session_messages import is_session_name, latest

ASKED = conversation_of()


@pytest.mark.parametrize("name", ["a", "trip to Rome", "ä", "旅", "x" * 64, "a/b", "..", "-v"])
def test_names(name: str) -> None:
    assert is_session_name(name)


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "x" * 65, "a\n", "a\tb", "\x7f", "a\ud800"])
def test_what_is_no_name(name: str) -> None:
    assert not is_session_name(name)


@pytest.mark.parametrize(
    "kind", [AskInSession, KeepSession, lambda each: SessionReply(1, (each,), ())]
)
def test_a_record_that_cannot_be_kept_is_refused(kind: object) -> None:
    long = Turn(USER, "x" * (HISTORY_CHARACTERS_MAX // 2 + 1))
    for bad in (
        replace(ASKED, name="two\nlines"),
        replace(ASKED, ask=replace(ASKED.ask, history=(long, long))),
    ):
        with pytest.raises(WireError):
            decode(encode(kind(bad)))  # type: ignore[operator]


def test_what_comes_further_is_newer() -> None:
    """A question that was asked later, whoever's clock; then the answer that has more."""
    again = replace(ASKED, question=2, asked_ms=ASKED.asked_ms + 1)
    rising = [ASKED, answered(ASKED, 1), answered(ASKED, 1, state="length")]
    rising += [answered(ASKED, 1, 2), again, answered(again, 1)]
    for index, older in enumerate(rising):
        assert not older.is_newer_than(older)
        assert older.is_newer_than(None)
        assert not older.is_newer_than(replace(older, name="other"))
        for newer in rising[index + 1 :]:
            assert newer.is_newer_than(older)
            assert not older.is_newer_than(newer.summary())
    summaries = [each.summary() for each in (rising[3], rising[5], rising[0])]
    assert list(latest(summaries).values()) == [rising[5].summary()]


def test_a_history_is_bounded_by_whole_exchanges() -> None:
    turns = [Turn(USER, str(number)) for number in range(1030)]
    assert bounded_history(turns) == tuple(turns[6:])
    assert bounded_history(turns[:4]) == tuple(turns[:4])
    assert bounded_history(()) == ()


def test_a_question_within_a_record_may_grow() -> None:
    data = encode(KeepSession(answered(ASKED, 1, 2)))
    header = msgpack.unpackb(data[4:])
    header[1][-1].append("of a later version")
    header[1].append(7)
    packed = msgpack.packb(header)
    grown = struct.pack("<I", len(packed)) + packed
    assert decode(grown) == KeepSession(answered(ASKED, 1, 2))
    del header[1][-2][3:]
    packed = msgpack.packb(header)
    with pytest.raises(WireError, match="expected a list of at least"):
        decode(struct.pack("<I", len(packed)) + packed)
