"""The frames inside a datagram: pieces of messages, acknowledgements, ping and close.

Frames are parsed all at once, after the tag has been verified and before any has an effect.
``docs/spec/link.md`` draws them. Type number 0x03 is reserved for a window update.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from edgellama.errors import WireError
from edgellama.wire.datagram import FRAMES_BYTES_BASE

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE_BYTES_MAX = 64 << 20
FRAGMENT_HEADER_BYTES = 13
FRAGMENT_BYTES_BASE = FRAMES_BYTES_BASE - FRAGMENT_HEADER_BYTES
"""What a datagram carries of a message on a path of which nothing is known."""

PARITY_HEADER_BYTES = 11
PARITY_FRAGMENTS_MAX = 16
"""Parity is for messages of a few fragments: it makes good one that is lost."""

MESSAGE_ID_MAX = 0xFFFFFFFF
RANGES_MAX = 16

_PADDING, _PING, _ACK, _CLOSE = 0x00, 0x01, 0x02, 0x04
_MESSAGE = 0x10  # plus the priority
_PARITY = 0x14  # plus the priority

_FRAGMENT = struct.Struct(">BIHHI")
_PARITY_HEAD = struct.Struct(">BIHI")
_ACK_HEAD = struct.Struct(">BBHHQH")
_ACK_RANGE = struct.Struct(">HH")
_DELAY_UNIT_S = 16e-6
_U16_MAX = 0xFFFF

assert _FRAGMENT.size == FRAGMENT_HEADER_BYTES
assert _PARITY_HEAD.size == PARITY_HEADER_BYTES
PING_FRAME = bytes([_PING])
PADDING = bytes([_PADDING])


class Priority(IntEnum):
    """A message's class; a lower one is sent strictly before a higher one."""

    CONTROL = 0
    DECODE = 1
    PREFILL = 2
    BULK = 3


class CloseCode(IntEnum):
    """Why a peer ended the connection."""

    LEAVING = 0
    OVERLOADED = 1  # more messages wait than the peer takes
    UNHEARD = 2  # nothing came from the peer for too long
    MOVED = 3  # of a connection over TCP: another one between the same two stands
    REPLACED = 4  # a device with the same identity that has started later is connected


class Fragment(NamedTuple):
    """One piece of a message; all but the last piece are equally long."""

    priority: int
    message_id: int
    fragment_index: int
    fragment_count: int
    message_bytes: int
    payload: bytes


class Parity(NamedTuple):
    """The exclusive or of all the fragments of a message, the last one filled up with zeros."""

    priority: int
    message_id: int
    fragment_count: int
    message_bytes: int
    payload: bytes


class Acknowledgement(NamedTuple):
    """Which packets arrived: closed ranges (low, high), the newest first."""

    delay_s: float  # between the arrival of the newest packet and this frame
    window_packets: int
    ranges: tuple[tuple[int, int], ...]


class Ping(NamedTuple):
    """Asks for an acknowledgement and carries nothing."""


class Close(NamedTuple):
    """The sender has ended the connection; the code is a CloseCode or a later version's."""

    code: int


Frame = Fragment | Parity | Acknowledgement | Ping | Close
_THE_PING = Ping()


def fragment_count(message_bytes: int, fragment_bytes_max: int = FRAGMENT_BYTES_BASE) -> int:
    """Return into how many fragments a message is cut: as few as fit, at least one."""
    return max(1, -(-message_bytes // fragment_bytes_max))


def fragment_bytes(message_bytes: int, count: int) -> int:
    """Return the length of every fragment but the last.

    It follows from the count, so that longer datagrams need no new field.
    """
    return -(-message_bytes // count)


def pack_fragment(
    priority: int, message_id: int, index: int, count: int, message_bytes: int, payload: bytes
) -> bytes:
    """Return the frame of one piece of a message."""
    head = _FRAGMENT.pack(_MESSAGE + priority, message_id, index, count, message_bytes)
    return head + payload


def _parse_fragment(frames: bytes, offset: int) -> tuple[Frame, int]:
    kind, message_id, index, count, message_bytes = _FRAGMENT.unpack_from(frames, offset)
    if not (index < count and message_bytes <= MESSAGE_BYTES_MAX):
        raise WireError(f"a peer sent fragment {index} of {count} of {message_bytes} bytes")
    start = offset + FRAGMENT_HEADER_BYTES
    size = fragment_bytes(message_bytes, count)
    last_size = message_bytes - (count - 1) * size
    if last_size < (count > 1):  # every fragment carries something, but that of the empty message
        raise WireError(f"a peer cut {message_bytes} bytes into {count} fragments")
    if index + 1 == count:
        size = last_size
    payload = frames[start : start + size]
    if len(payload) != size:
        raise WireError(f"a peer sent {len(payload)} of a fragment's {size} bytes")
    fragment = Fragment(kind - _MESSAGE, message_id, index, count, message_bytes, payload)
    return fragment, start + size


def pack_parity(
    priority: int, message_id: int, count: int, message_bytes: int, payload: bytes
) -> bytes:
    """Return the frame that makes good a lost fragment of a message."""
    return _PARITY_HEAD.pack(_PARITY + priority, message_id, count, message_bytes) + payload


def _parse_parity(frames: bytes, offset: int) -> tuple[Frame, int]:
    kind, message_id, count, message_bytes = _PARITY_HEAD.unpack_from(frames, offset)
    if not (2 <= count <= PARITY_FRAGMENTS_MAX and count <= message_bytes <= MESSAGE_BYTES_MAX):
        raise WireError(f"a peer sent parity of {count} fragments of {message_bytes} bytes")
    start = offset + PARITY_HEADER_BYTES
    size = fragment_bytes(message_bytes, count)
    if message_bytes - (count - 1) * size < 1:
        raise WireError(f"a peer cut {message_bytes} bytes into {count} fragments")
    payload = frames[start : start + size]
    if len(payload) != size:
        raise WireError(f"a peer sent {len(payload)} of a parity's {size} bytes")
    return Parity(kind - _PARITY, message_id, count, message_bytes, payload), start + size


def parity_of(parts: Iterable[bytes], size: int) -> bytes:
    """Return the exclusive or of parts of at most ``size`` bytes, short ones filled up with zeros.

    Parity and all parts but one give the one that is missing, filled up with zeros.
    """
    total = 0
    for part in parts:
        total ^= int.from_bytes(part, "little")
    return total.to_bytes(size, "little")


def acknowledgement_ranges_max(room_bytes: int) -> int:
    """Return how many ranges an acknowledgement of at most that many bytes can hold."""
    return min(RANGES_MAX, 1 + (room_bytes - _ACK_HEAD.size) // _ACK_RANGE.size)


def pack_acknowledgement(
    delay_s: float, window_packets: int, ranges: Iterable[tuple[int, int]]
) -> bytes:
    """Return the frame for some ranges, newest first, at least one.

    A range or a gap longer than 16 bits ends the list early: what lies below it was decided
    long ago, since a sender gives a packet up when three later ones have arrived.
    """
    delay = min(_U16_MAX, max(0, int(delay_s / _DELAY_UNIT_S)))
    parts: list[bytes] = []
    largest = first = previous_low = 0
    for low, high in ranges:
        length = min(high - low, _U16_MAX)
        if not parts:
            largest, first = high, length
            parts.append(b"")
        else:
            gap = previous_low - high - 1
            if gap > _U16_MAX:
                break
            parts.append(_ACK_RANGE.pack(gap, length))
        previous_low = low
        if high - low > _U16_MAX:
            break
    parts[0] = _ACK_HEAD.pack(_ACK, len(parts), delay, window_packets, largest, first)
    return b"".join(parts)


def _parse_acknowledgement(frames: bytes, offset: int) -> tuple[Frame, int]:
    _, count, delay, window_packets, high, length = _ACK_HEAD.unpack_from(frames, offset)
    offset += _ACK_HEAD.size
    if not 1 <= count <= RANGES_MAX:
        raise WireError(f"a peer's acknowledgement has {count} ranges")
    low = high - length
    ranges = [(low, high)]
    for _ in range(count - 1):
        gap, length = _ACK_RANGE.unpack_from(frames, offset)
        offset += _ACK_RANGE.size
        high = low - gap - 1
        low = high - length
        ranges.append((low, high))
        if gap == 0:
            raise WireError("a peer's acknowledgement has ranges that touch")
    if low < 0:
        raise WireError("a peer's acknowledgement reaches below packet 0")
    return Acknowledgement(delay * _DELAY_UNIT_S, window_packets, tuple(ranges)), offset


def pack_close(code: CloseCode) -> bytes:
    """Return the frame that ends a connection."""
    return bytes([_CLOSE, code])


def parse_frames(frames: bytes) -> list[Frame]:
    """Return the frames of a datagram whose tag has been verified; raises WireError."""
    parsed: list[Frame] = []
    offset = 0
    end = len(frames)
    frame: Frame
    try:
        while offset < end:
            kind = frames[offset]
            if _MESSAGE <= kind <= _MESSAGE + Priority.BULK:
                frame, offset = _parse_fragment(frames, offset)
            elif kind == _ACK:
                frame, offset = _parse_acknowledgement(frames, offset)
            elif kind == _PING:
                frame, offset = _THE_PING, offset + 1
            elif kind == _CLOSE:
                frame, offset = Close(frames[offset + 1]), offset + 2
            elif _PARITY <= kind <= _PARITY + Priority.BULK:
                frame, offset = _parse_parity(frames, offset)
            elif kind == _PADDING:
                offset = end - len(frames[offset:].lstrip(b"\0"))
                continue
            else:
                raise WireError(f"a peer sent a frame of unknown type {kind:#04x}")
            parsed.append(frame)
    except (struct.error, IndexError):
        raise WireError(f"a peer sent frames cut short at byte {end}") from None
    return parsed
