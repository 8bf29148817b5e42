"""Fragments in any order make each message once, in bounded memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.link.reassembly import (
    LARGE_MESSAGES_MAX,
    STARTED_MESSAGES_MAX,
    Fate,
    Reassembly,
)
from edgellama.wire.frames import (
    FRAGMENT_BYTES_BASE,
    MESSAGE_BYTES_MAX,
    Fragment,
    Parity,
    fragment_bytes,
    fragment_count,
    parity_of,
)


def fragments(
    message_id: int, message: bytes, fragment_bytes_max: int = FRAGMENT_BYTES_BASE
) -> list[Fragment]:
    count = fragment_count(len(message), fragment_bytes_max)
    size = fragment_bytes(len(message), count)
    return [
        Fragment(1, message_id, index, count, len(message), message[index * size :][:size])
        for index in range(count)
    ]


def parity(pieces: list[Fragment]) -> Parity:
    first = pieces[0]
    payload = parity_of([piece.payload for piece in pieces], len(first.payload))
    return Parity(1, first.message_id, len(pieces), first.message_bytes, payload)


@given(
    sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=12), seed=st.integers(0, 2**32 - 1)
)
@settings(deadline=None, max_examples=60)
def test_every_message_comes_out_whole_and_once_in_any_order(sizes: list[int], seed: int) -> None:
    dice = random.Random(seed)
    messages = [dice.randbytes(size) for size in sizes]
    pieces = [
        piece for number, message in enumerate(messages) for piece in fragments(number, message)
    ]
    pieces = pieces + dice.choices(pieces, k=len(pieces))
    dice.shuffle(pieces)
    reassembly = Reassembly()
    whole = [out for piece in pieces if isinstance(out := reassembly.accept(piece), bytes)]
    assert sorted(whole) == sorted(messages)
    assert all(reassembly.accept(piece) is Fate.DUPLICATE for piece in pieces)


def test_the_empty_message_is_a_message() -> None:
    reassembly = Reassembly()
    assert reassembly.accept(*fragments(0, b"")) == b""
    assert reassembly.accept(*fragments(0, b"")) is Fate.DUPLICATE


def test_memory_is_bounded_by_what_an_honest_sender_may_have_under_way() -> None:
    reassembly = Reassembly()
    size = MESSAGE_BYTES_MAX
    large = [Fragment(3, number, 0, fragment_count(size), size, b"x" * 1155) for number in range(9)]
    assert [reassembly.accept(piece) for piece in large] == [Fate.KEPT] * LARGE_MESSAGES_MAX + [
        Fate.REFUSED
    ] * (9 - LARGE_MESSAGES_MAX)
    small = [fragments(100 + number, bytes(2000)) for number in range(STARTED_MESSAGES_MAX)]
    fates = [reassembly.accept(first) for first, _ in small]
    kept = STARTED_MESSAGES_MAX - LARGE_MESSAGES_MAX
    assert fates == [Fate.KEPT] * kept + [Fate.REFUSED] * LARGE_MESSAGES_MAX
    # Nothing under way is held up by that, and what was refused may come again.
    assert reassembly.accept(small[0][1]) == bytes(2000)
    assert reassembly.accept(small[-1][0]) is Fate.KEPT


def test_a_sender_at_its_limits_is_never_refused() -> None:
    # Every other message is complete: the most gaps that what is under way can leave.
    reassembly = Reassembly()
    for number in range(0, 2 * (STARTED_MESSAGES_MAX - 1), 2):
        assert reassembly.accept(fragments(number, bytes(2000))[0]) is Fate.KEPT
        assert reassembly.accept(*fragments(number + 1, b"done")) == b"done"
    for number in range(0, 2 * (STARTED_MESSAGES_MAX - 1), 2):
        assert reassembly.accept(fragments(number, bytes(2000))[1]) == bytes(2000)


def test_scattered_message_numbers_do_not_grow_the_memory_without_bound() -> None:
    reassembly = Reassembly()
    fates = [reassembly.accept(*fragments(2 * number, b"")) for number in range(1000)]
    assert fates.count(b"") == STARTED_MESSAGES_MAX + 2
    assert fates[-1] is Fate.REFUSED


def test_two_lengths_for_one_message_are_the_peers_fault() -> None:
    reassembly = Reassembly()
    reassembly.accept(fragments(0, bytes(5000))[0])
    with pytest.raises(WireError):
        reassembly.accept(fragments(0, bytes(4999))[1])


@given(size=st.integers(2, 9000), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_parity_makes_one_lost_fragment_good_in_any_order(size: int, seed: int) -> None:
    dice = random.Random(seed)
    message = dice.randbytes(size)
    pieces = fragments(0, message, min(1155, size - 1))
    frames = [*pieces, parity(pieces)]
    del frames[dice.randrange(len(frames))]
    dice.shuffle(frames)
    reassembly = Reassembly()
    outcomes = [
        reassembly.accept_parity(frame) if isinstance(frame, Parity) else reassembly.accept(frame)
        for frame in frames
    ]
    assert outcomes == [Fate.KEPT] * (len(frames) - 1) + [message]
    assert all(reassembly.accept(piece) is Fate.DUPLICATE for piece in pieces)
    assert reassembly.accept_parity(parity(pieces)) is Fate.DUPLICATE


def test_parity_does_not_make_two_lost_fragments_good() -> None:
    message = bytes(range(250)) * 20
    pieces = fragments(0, message)
    reassembly = Reassembly()
    assert reassembly.accept_parity(parity(pieces)) is Fate.KEPT
    assert reassembly.accept_parity(parity(pieces)) is Fate.DUPLICATE
    assert [reassembly.accept(piece) for piece in pieces[2:-1]] == [Fate.KEPT] * (len(pieces) - 3)
    assert reassembly.accept(pieces[1]) is Fate.KEPT
    assert reassembly.accept(pieces[0]) == message


def test_parity_needs_room_as_a_fragment_does() -> None:
    reassembly = Reassembly()
    for number in range(STARTED_MESSAGES_MAX):
        assert reassembly.accept(fragments(number, bytes(2000))[0]) is Fate.KEPT
    assert reassembly.accept_parity(parity(fragments(999, bytes(2000)))) is Fate.REFUSED


def test_a_message_cut_anew_into_more_fragments_is_taken_from_its_beginning() -> None:
    message = bytes(range(256)) * 20
    long, short = fragments(0, message, 1427), fragments(0, message, 1155)
    assert len(long) < len(short)
    reassembly = Reassembly()
    assert [reassembly.accept(piece) for piece in long[1:]] == [Fate.KEPT] * (len(long) - 1)
    assert [reassembly.accept(piece) for piece in short[1:]] == [Fate.KEPT] * (len(short) - 1)
    assert reassembly.accept(long[0]) is Fate.DUPLICATE, "late, and of no use any more"
    assert reassembly.accept_parity(parity(long)) is Fate.DUPLICATE
    assert reassembly.accept(short[0]) == message
    assert reassembly.accept(long[0]) is Fate.DUPLICATE
