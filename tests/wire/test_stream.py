"""Records and frames of a link over TCP: as they were, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.wire.frames import MESSAGE_BYTES_MAX
from edgellama.wire.sealing import Sequence
from edgellama.wire.stream import (
    KEYS_USED_FRAME,
    PING_FRAME,
    PONG_FRAME,
    RECORD_BYTES_MAX,
    Close,
    FirstPiece,
    KeysAsked,
    KeysGiven,
    KeysUsed,
    NextPiece,
    Ping,
    Pong,
    pack_first_piece,
    pack_keys_asked,
    pack_keys_given,
    pack_next_piece,
    pack_record,
    pack_stream_close,
    parse_stream_frames,
    record_bytes,
)

KEY = bytes(range(32))


def test_every_frame_there_and_back() -> None:
    packed = b"".join(
        [
            *(PING_FRAME, PONG_FRAME, pack_stream_close(2)),
            *(pack_keys_asked(b"ask"), pack_keys_given(b""), KEYS_USED_FRAME),
            *(pack_first_piece(1, 5, b"abc"), pack_next_piece(1, b"de")),
            pack_first_piece(0, 0, b""),
        ]
    )
    assert parse_stream_frames(packed) == [
        *(Ping(), Pong(), Close(2), KeysAsked(b"ask"), KeysGiven(b""), KeysUsed()),
        *(FirstPiece(1, 5, b"abc"), NextPiece(1, b"de"), FirstPiece(0, 0, b"")),
    ]


def test_the_layout() -> None:
    assert pack_first_piece(3, 70_000, b"xy").hex(" ") == "13 00 01 11 70 00 02 78 79"
    assert pack_next_piece(1, b"z").hex(" ") == "21 00 01 7a"
    record = pack_record(b"\x01", Sequence(KEY))
    assert record[:2] == b"\x00\x11"
    assert len(record) == 2 + 1 + 16


def test_a_record_opens_once_and_in_its_place() -> None:
    sealing, opening = Sequence(KEY), Sequence(KEY)
    first, second = pack_record(b"\x01", sealing), pack_record(b"\x02", sealing)
    assert record_bytes(first) == len(first)
    assert opening.open(first[2:], first[:2]) == b"\x01"
    assert opening.open(first[2:], first[:2]) is None  # and now the count is wrong for good
    assert opening.open(second[2:], second[:2]) is None
    assert sealing.records == 2


def test_the_length_is_covered_by_the_tag() -> None:
    record = pack_record(b"\x01", Sequence(KEY))
    assert Sequence(KEY).open(record[2:], b"\x00\x12") is None


@pytest.mark.parametrize("length", [0, 1, 16, RECORD_BYTES_MAX + 17, 0xFFFF])
def test_a_length_that_no_record_has_is_refused_before_anything_is_read(length: int) -> None:
    with pytest.raises(WireError, match=f"record of {length} bytes"):
        record_bytes(length.to_bytes(2, "big"))


@pytest.mark.parametrize("data", [b"", b"\x00"])
def test_a_length_that_has_not_come(data: bytes) -> None:
    assert record_bytes(data) == 0


@pytest.mark.parametrize(
    "frames",
    [
        b"\x04",
        b"\x05\x00",
        b"\x05\x00\x02a",
        b"\x10\x00\x00\x00\x01",
        b"\x10\x00\x00\x00\x03\x00\x03ab",
        b"\x10\x00\x00\x00\x01\x00\x02ab",
        pack_first_piece(0, MESSAGE_BYTES_MAX + 1, b""),
        b"\x20\x00\x00",
        b"\x20\x00\x02a",
        b"\x00",
        b"\x14",
        b"\x24\x00\x01a",
        b"\xff",
    ],
    ids=lambda frames: frames.hex(),
)
def test_what_breaks_a_rule_is_refused(frames: bytes) -> None:
    with pytest.raises(WireError):
        parse_stream_frames(PING_FRAME + frames)


@given(st.binary(max_size=60))
def test_any_bytes(frames: bytes) -> None:
    try:
        parsed = parse_stream_frames(frames)
    except WireError:
        return
    assert len(parsed) <= len(frames)
