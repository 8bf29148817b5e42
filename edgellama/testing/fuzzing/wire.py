"""Parsers of what comes from the network: datagrams, frames, messages, activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from edgellama_kernels import HiddenRows

from edgellama.errors import WireError
from edgellama.link.reassembly import (
    LARGE_BYTES_MIN,
    LARGE_MESSAGES_MAX,
    STARTED_MESSAGES_MAX,
    Reassembly,
)
from edgellama.model.hidden import check_hidden
from edgellama.testing.fuzzing.examples import message_bytes, packed_examples
from edgellama.testing.fuzzing.feed import Feed
from edgellama.values import WIRE_F16, WIRE_Q8
from edgellama.wire.activations import ROWS_MAX, ActivationEncoder, decode_hidden
from edgellama.wire.datagram import (
    HANDSHAKE_BYTES_MAX,
    DatagramType,
    Handshake,
    pack_handshake,
    pack_header,
    parse_handshake,
    parse_header,
)
from edgellama.wire.frames import (
    Acknowledgement,
    CloseCode,
    Fragment,
    Parity,
    Priority,
    pack_acknowledgement,
    pack_close,
    pack_fragment,
    pack_parity,
    parse_frames,
)
from edgellama.wire.messages import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

_NODE: Final = "ab" * 16
_WIDTH_MAX: Final = 300


def datagrams(data: bytes) -> None:
    """Read the header of a datagram, and what follows as the body of a handshake."""
    header = parse_header(data)
    if header is not None:
        assert pack_header(DatagramType.DATA, header.receiver_index, header.packet_number)
    for kind in (DatagramType.INITIATION, DatagramType.RESPONSE):
        for body in (data, data.ljust(HANDSHAKE_BYTES_MAX, b"\0")):
            try:
                handshake = parse_handshake(body, kind)
            except WireError:
                continue
            assert parse_handshake(pack_handshake(handshake, kind), kind) == handshake


def datagram_seeds() -> Iterator[bytes]:
    """Yield a handshake's body and a datagram's header."""
    for guest in (False, True):
        body = pack_handshake(Handshake(_NODE, 1, 2, 3, 4, 100, guest), DatagramType.RESPONSE)
        yield body
        yield pack_header(DatagramType.DATA, 3, 7) + body


def frames(data: bytes) -> None:
    """Parse frames; put the fragments of each half together, in bounded memory."""
    reassembly, started = Reassembly(), dict[int, int]()
    for half in (data, data[: len(data) // 2], data[len(data) // 2 :]):
        try:
            parsed = parse_frames(half)
        except WireError:
            continue
        for frame in parsed:
            if isinstance(frame, Acknowledgement):
                _check_acknowledgement(frame)
            elif isinstance(frame, Fragment | Parity):
                _reassemble(reassembly, started, frame)


def _check_acknowledgement(frame: Acknowledgement) -> None:
    lows = [low for low, _ in frame.ranges]
    highs = [high for _, high in frame.ranges]
    assert all(0 <= low <= high for low, high in frame.ranges)
    assert all(high + 1 < low for low, high in zip(lows, highs[1:], strict=False))
    packed = pack_acknowledgement(frame.delay_s, frame.window_packets, frame.ranges)
    (again,) = parse_frames(packed)
    assert isinstance(again, Acknowledgement)
    assert again.ranges == frame.ranges


def _reassemble(reassembly: Reassembly, started: dict[int, int], frame: Fragment | Parity) -> None:
    try:
        if isinstance(frame, Fragment):
            outcome = reassembly.accept(frame)
        else:
            outcome = reassembly.accept_parity(frame)
    except WireError:
        return
    if isinstance(outcome, bytes):
        assert len(outcome) == frame.message_bytes
        started.pop(frame.message_id, None)
    elif outcome.value == "kept":
        started[frame.message_id] = frame.message_bytes
    assert len(started) <= STARTED_MESSAGES_MAX
    large = [size for size in started.values() if size >= LARGE_BYTES_MIN]
    assert len(large) <= LARGE_MESSAGES_MAX


def frame_seeds() -> Iterator[bytes]:
    """Yield frames of every type."""
    yield b"\x01\x00" + pack_close(CloseCode.OVERLOADED)
    yield pack_acknowledgement(0.001, 64, [(90, 99), (70, 80), (1, 2)])
    yield pack_fragment(Priority.CONTROL, 1, 0, 1, 4, b"word")
    yield b"".join(pack_fragment(Priority.BULK, 2, i, 3, 9, b"abc") for i in range(3))
    yield pack_fragment(Priority.DECODE, 3, 99, 100, 1000, bytes(10))
    yield pack_parity(Priority.DECODE, 4, 2, 4, b"ac") + pack_fragment(1, 4, 0, 2, 4, b"ab")


def messages(data: bytes) -> None:
    """Decode a message; whatever passes means the same when it is said again."""
    try:
        message = decode(data)
    except WireError:
        return
    assert decode(encode(message)) == message


def message_seeds() -> Iterator[bytes]:
    """Yield a message of every kind."""
    for packed in packed_examples():
        yield message_bytes(packed)
        yield message_bytes(packed, b"body")


def activations(data: bytes) -> None:
    """Decode rows of hidden state; whatever passes is fit for a kernel, and exact where it says."""
    feed = Feed(data)
    codec, rows, width = feed.number(1), feed.number(1), 1 + feed.number(2) % _WIDTH_MAX
    wire = WIRE_Q8 if codec & 0x80 else WIRE_F16
    codec &= 0x7F
    payload = feed.take(len(data))
    try:
        hidden = decode_hidden(codec, rows, width, payload, wire=wire)
    except WireError:
        return
    assert rows <= ROWS_MAX
    if rows:
        check_hidden(hidden, width)
    assert np.isfinite(hidden.halves.view(np.float16)).all()
    codec, payload = ActivationEncoder(peer_reads_lz4=True, wire=wire).encode(hidden)
    copy = decode_hidden(codec, rows, width, payload, wire=wire)
    assert copy.exponents.tobytes() == hidden.exponents.tobytes()
    if wire == WIRE_F16:
        assert copy.halves.tobytes() == hidden.halves.tobytes()


def activation_seeds() -> Iterator[bytes]:
    """Yield rows under every codec."""
    halves = np.linspace(-3, 3, 3 * 64, dtype=np.float16).view(np.uint16).reshape(3, 64)
    ramp = HiddenRows(halves, np.arange(3, dtype=np.uint8))
    zeros = HiddenRows(np.zeros((16, 200), np.uint16), np.zeros(16, np.uint8))
    for hidden, wire, lz4 in ((ramp, WIRE_F16, False), (zeros, WIRE_F16, True), (ramp, WIRE_Q8, 0)):
        codec, payload = ActivationEncoder(peer_reads_lz4=bool(lz4), wire=wire).encode(hidden)
        rows, width = hidden.halves.shape
        mark = 0x80 if wire == WIRE_Q8 else 0
        yield bytes([codec | mark, rows, 0, width - 1]) + payload
