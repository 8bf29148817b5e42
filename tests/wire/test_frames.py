"""Frames as bytes and back, and bytes that are no frames."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.wire.datagram import FRAMES_BYTES_BASE, FRAMES_BYTES_MAX
from edgellama.wire.frames import (
    FRAGMENT_BYTES_BASE,
    MESSAGE_BYTES_MAX,
    PING_FRAME,
    RANGES_MAX,
    Acknowledgement,
    Close,
    CloseCode,
    Fragment,
    Parity,
    Ping,
    acknowledgement_ranges_max,
    fragment_bytes,
    fragment_count,
    pack_acknowledgement,
    pack_close,
    pack_fragment,
    pack_parity,
    parity_of,
    parse_frames,
)


def test_the_frames_are_laid_out_as_the_specification_draws_them() -> None:
    assert pack_fragment(1, 0x01020304, 2, 3, 7, b"z") == bytes(
        [0x11, 1, 2, 3, 4, 0, 2, 0, 3, 0, 0, 0, 7, ord("z")]
    )
    assert pack_acknowledgement(0.016, 166, [(7, 9), (1, 4)]) == bytes(
        [2, 2, 1000 >> 8, 1000 & 255, 0, 166, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 0, 2, 0, 3]
    )
    assert pack_parity(1, 0x01020304, 3, 7, b"xyz") == bytes(
        [0x15, 1, 2, 3, 4, 0, 3, 0, 0, 0, 7, *b"xyz"]
    )
    assert PING_FRAME == b"\x01"
    assert pack_close(CloseCode.UNHEARD) == b"\x04\x02"
    assert FRAGMENT_BYTES_BASE == 1155


@pytest.mark.parametrize(
    "message_bytes",
    [0, 1, 1154, 1155, 1156, 2310, 2311, 4096, 4136, 1155 * 3000 - 1, 1 << 20, MESSAGE_BYTES_MAX],
)
def test_the_fragments_of_a_message_are_its_bytes_once(message_bytes: int) -> None:
    count = fragment_count(message_bytes)
    size = fragment_bytes(message_bytes, count)
    assert size <= FRAGMENT_BYTES_BASE
    assert count == max(1, -(-message_bytes // FRAGMENT_BYTES_BASE)), "no datagram too many"
    last = message_bytes - (count - 1) * size
    assert (1 if message_bytes else 0) <= last <= size
    assert count <= 0xFFFF


@given(data=st.data(), message_bytes=st.integers(0, MESSAGE_BYTES_MAX))
@settings(deadline=None, max_examples=100)
def test_a_fragment_survives_the_wire(data: st.DataObject, message_bytes: int) -> None:
    count = fragment_count(message_bytes)
    index = data.draw(st.integers(0, count - 1))
    size = fragment_bytes(message_bytes, count)
    payload = bytes(min(size, message_bytes - index * size))
    frame = pack_fragment(2, 77, index, count, message_bytes, payload)
    assert len(frame) <= FRAMES_BYTES_BASE
    expected = Fragment(2, 77, index, count, message_bytes, payload)
    assert parse_frames(frame) == [expected]
    assert parse_frames(PING_FRAME + frame + PING_FRAME) == [Ping(), expected, Ping()]


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    """The closed ranges of a set, newest first."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers, reverse=True):
        if ranges and ranges[-1][0] == number + 1:
            ranges[-1] = (number, ranges[-1][1])
        else:
            ranges.append((number, number))
    return ranges


@given(numbers=st.sets(st.integers(0, 200), min_size=1), start=st.sampled_from([0, 2**40]))
@settings(deadline=None, max_examples=200)
def test_an_acknowledgement_says_what_was_put_in(numbers: set[int], start: int) -> None:
    ranges = ranges_of({start + number for number in numbers})[:RANGES_MAX]
    frame = pack_acknowledgement(0.25, 166, ranges)
    assert acknowledgement_ranges_max(len(frame)) == len(ranges)
    assert acknowledgement_ranges_max(len(frame) - 1) == len(ranges) - 1
    assert parse_frames(frame) == [Acknowledgement(0.25, 166, tuple(ranges))]


@given(
    numbers=st.lists(st.integers(0, 2**18), min_size=2, max_size=12, unique=True),
)
@settings(deadline=None, max_examples=200)
def test_an_acknowledgement_never_names_a_packet_that_did_not_come(numbers: list[int]) -> None:
    edges = sorted(numbers, reverse=True)
    pairs = [(low, high) for high, low in zip(edges[::2], edges[1::2], strict=False)]
    ranges = [pairs[0]]
    for low, high in pairs[1:]:
        if high + 1 < ranges[-1][0]:
            ranges.append((low, high))
    (parsed,) = parse_frames(pack_acknowledgement(0.0, 166, ranges))
    assert isinstance(parsed, Acknowledgement)
    assert parsed.ranges[0][1] == ranges[0][1]
    for low, high in parsed.ranges:
        assert any(whole[0] <= low <= high <= whole[1] for whole in ranges)


def test_a_delay_beyond_the_field_is_the_longest() -> None:
    (parsed,) = parse_frames(pack_acknowledgement(1e9, 166, [(0, 0)]))
    assert isinstance(parsed, Acknowledgement)
    assert parsed.delay_s == 0xFFFF * 16e-6
    (parsed,) = parse_frames(pack_acknowledgement(-1.0, 166, [(0, 0)]))
    assert isinstance(parsed, Acknowledgement)
    assert parsed.delay_s == 0.0


def test_padding_is_nothing_and_an_unknown_close_code_is_kept() -> None:
    assert parse_frames(bytes(100)) == []
    assert parse_frames(b"\0\x04\xc8\0") == [Close(200)]


@pytest.mark.parametrize(
    "frames",
    [
        b"\x03",  # reserved for a window update
        b"\x14" + bytes(20),  # reserved for parity
        b"\xff",
        b"\x04",
        b"\x02\x01",
        pack_acknowledgement(0.0, 166, [(5, 9), (1, 2)])[:-1],
        b"\x02\x00" + bytes(14),  # no range
        b"\x02\x11" + bytes(200),  # 17 ranges
        b"\x02\x01\0\0\0\xff" + bytes(8) + b"\0\x01",  # 1 packet below packet 0
        b"\x02\x02\0\0\0\xff" + bytes(7) + b"\x09\0\0" + b"\0\0\0\0",  # two ranges that touch
        pack_fragment(0, 1, 3, 3, 3000, b"x" * 1000),
        pack_fragment(0, 1, 0, 0, 0, b""),
        pack_fragment(0, 1, 0, 2, 0, b""),
        pack_fragment(0, 1, 0, 4, 5, b"xx"),  # the last of four would be empty
        pack_fragment(0, 1, 0, 1, MESSAGE_BYTES_MAX + 1, b""),
        pack_fragment(0, 1, 0, 1, 10, b"123456789"),
        pack_fragment(0, 1, 0, 1, 1156, b"x" * 1155),
    ],
)
def test_hostile_frames_are_wire_errors(frames: bytes) -> None:
    with pytest.raises(WireError) as failure:
        parse_frames(frames)
    assert "\n" not in str(failure.value)


@given(frames=st.binary(max_size=FRAMES_BYTES_MAX))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_frames_or_a_wire_error(frames: bytes) -> None:
    with contextlib.suppress(WireError):
        parse_frames(frames)


@given(message=st.binary(min_size=2, max_size=9000), size=st.integers(1, 1400), data=st.data())
@settings(deadline=None, max_examples=100)
def test_parity_and_all_fragments_but_one_give_that_one(
    message: bytes, size: int, data: st.DataObject
) -> None:
    size = fragment_bytes(len(message), fragment_count(len(message), size))
    parts = [message[start : start + size] for start in range(0, len(message), size)]
    lost = data.draw(st.integers(0, len(parts) - 1))
    parity = parity_of(parts, size)
    others = parts[:lost] + parts[lost + 1 :]
    assert parity_of([parity, *others], size) == parts[lost].ljust(size, b"\0")


def test_parity_survives_the_wire_and_may_stand_before_other_frames() -> None:
    frame = pack_parity(0, 9, 3, 2500, b"p" * 834)
    assert parse_frames(frame + PING_FRAME) == [Parity(0, 9, 3, 2500, b"p" * 834), Ping()]


@pytest.mark.parametrize(
    ("count", "message_bytes", "payload_bytes"),
    [
        (1, 100, 100),  # of one fragment there is nothing to be made good
        (17, 1700, 100),
        (3, 2, 1),  # a fragment would be empty
        (4, 5, 2),  # likewise
        (3, MESSAGE_BYTES_MAX + 1, 1000),
        (3, 2500, 833),  # cut short
    ],
)
def test_parity_of_no_message_is_refused(
    count: int, message_bytes: int, payload_bytes: int
) -> None:
    with pytest.raises(WireError):
        parse_frames(pack_parity(1, 0, count, message_bytes, bytes(payload_bytes)))


def test_padding_is_skipped_wherever_it_stands() -> None:
    assert parse_frames(bytes(1000)) == []
    assert parse_frames(bytes(3) + PING_FRAME + bytes(2) + PING_FRAME + b"\0") == [Ping(), Ping()]
