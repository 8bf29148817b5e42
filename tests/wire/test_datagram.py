"""The header and the handshake, as bytes and back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.wire.datagram import (
    DATAGRAM_BYTES_BASE,
    DATAGRAM_BYTES_MAX,
    EPHEMERAL_BYTES,
    FRAMES_BYTES_MAX,
    HEADER_BYTES,
    PROTOCOL_VERSION,
    TAG_BYTES,
    DatagramType,
    Handshake,
    pack_handshake,
    pack_header,
    parse_handshake,
    parse_header,
)

HANDSHAKES = st.builds(
    Handshake,
    node=st.binary(min_size=16, max_size=16).map(bytes.hex),
    incarnation=st.integers(0, 2**64 - 1),
    number=st.integers(0, 2**64 - 1),
    receiver_index=st.integers(1, 2**32 - 1),
    established_index=st.integers(0, 2**32 - 1),
    window_packets=st.integers(4, 2**16 - 1),
    guest=st.booleans(),
)


def test_the_header_is_laid_out_as_the_specification_draws_it() -> None:
    header = pack_header(DatagramType.DATA, 0x01020304, 0x05060708090A0B0C)
    assert header == bytes([3, 3, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    parsed = parse_header(header + bytes(TAG_BYTES + 1))
    assert parsed == (DatagramType.DATA, PROTOCOL_VERSION, 0x01020304, 0x05060708090A0B0C)


@pytest.mark.parametrize("size", [0, 1, 16, 32, DATAGRAM_BYTES_MAX + 1, 65507])
def test_what_cannot_be_a_datagram_has_no_header(size: int) -> None:
    assert parse_header(bytes(size)) is None


@pytest.mark.parametrize("kind", [DatagramType.INITIATION, DatagramType.RESPONSE])
@given(handshake=HANDSHAKES)
@settings(deadline=None, max_examples=50)
def test_a_handshake_survives_the_wire(kind: DatagramType, handshake: Handshake) -> None:
    body = pack_handshake(handshake, kind)
    assert parse_handshake(body, kind) == handshake
    # A later version may add fields: what follows is left alone.
    assert parse_handshake(body + b"more", kind) == handshake


@given(handshake=HANDSHAKES)
@settings(deadline=None, max_examples=20)
def test_no_answer_is_longer_than_its_question(handshake: Handshake) -> None:
    initiation = pack_handshake(handshake, DatagramType.INITIATION)
    response = pack_handshake(handshake, DatagramType.RESPONSE)
    assert HEADER_BYTES + EPHEMERAL_BYTES + len(initiation) + TAG_BYTES == DATAGRAM_BYTES_BASE
    assert len(response) <= len(initiation)


def test_a_short_initiation_gets_no_answer_that_could_be_longer() -> None:
    handshake = Handshake("ab" * 16, 1, 1, 1, 0, 100, guest=False)
    response_body = pack_handshake(handshake, DatagramType.RESPONSE)
    with pytest.raises(WireError):
        parse_handshake(response_body, DatagramType.INITIATION)


@pytest.mark.parametrize(("index", "window"), [(0, 100), (1, 0), (1, 3)])
def test_a_handshake_that_could_not_work_is_refused(index: int, window: int) -> None:
    handshake = Handshake("ab" * 16, 1, 1, index, 0, window, guest=False)
    with pytest.raises(WireError):
        parse_handshake(pack_handshake(handshake, DatagramType.RESPONSE), DatagramType.RESPONSE)


@given(body=st.binary(max_size=FRAMES_BYTES_MAX))
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_a_handshake_or_a_wire_error(body: bytes) -> None:
    with contextlib.suppress(WireError):
        parse_handshake(body, DatagramType.RESPONSE)
