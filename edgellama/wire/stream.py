"""What a link over TCP is made of: a greeting, sealed records, and the frames inside them.

``docs/spec/stream.md`` draws them. All integers are big-endian. A record's length stands in the
clear before it, bounded and covered by the tag; its frames are read only after that was right.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.errors import WireError
from edgellama.wire.frames import MESSAGE_BYTES_MAX, Priority
from edgellama.wire.noise import TAG_BYTES

if TYPE_CHECKING:
    from edgellama.wire.sealing import Sequence

STREAM_VERSION: Final = 1
STREAM_GREETING: Final = b"ELSTREAM" + STREAM_VERSION.to_bytes(2, "little")
"""The first bytes of the side that asks, and the prologue of the handshake."""

OPENING_BYTES_MAX: Final = 512
"""A message of the handshake: 93 bytes, and room for later versions."""

RECORD_BYTES_MAX: Final = 16 << 10
"""Of frames in a record: so little keeps a large message from holding up a small one."""

LENGTH: Final = struct.Struct(">H")
FIRST_PIECE_BYTES: Final = 7  # of the frame before the piece itself
NEXT_PIECE_BYTES: Final = 3

_PING, _PONG, _CLOSE, _KEYS_ASKED, _KEYS_GIVEN, _KEYS_USED = 0x01, 0x02, 0x04, 0x05, 0x06, 0x07
_FIRST, _NEXT = 0x10, 0x20  # plus the priority
_FIRST_HEAD: Final = struct.Struct(">BIH")
_NEXT_HEAD: Final = struct.Struct(">BH")

PING_FRAME: Final = bytes([_PING])
PONG_FRAME: Final = bytes([_PONG])
KEYS_USED_FRAME: Final = bytes([_KEYS_USED])


class FirstPiece(NamedTuple):
    """The beginning of a message; with what follows in the same priority it makes it whole."""

    priority: int
    message_bytes: int
    piece: bytes


class NextPiece(NamedTuple):
    """What follows of the message that is under way in this priority."""

    priority: int
    piece: bytes


class Ping(NamedTuple):
    """Asks for a pong."""


class Pong(NamedTuple):
    """Answers a ping."""


class Close(NamedTuple):
    """The sender has ended the connection; the code is a CloseCode or a later version's."""

    code: int


class KeysAsked(NamedTuple):
    """The first message of a handshake for new keys."""

    message: bytes


class KeysGiven(NamedTuple):
    """The second one; what comes after this record is under the sender's new key."""

    message: bytes


class KeysUsed(NamedTuple):
    """What comes after this record is under the sender's new key."""


StreamFrame = FirstPiece | NextPiece | Ping | Pong | Close | KeysAsked | KeysGiven | KeysUsed


def pack_first_piece(priority: int, message_bytes: int, piece: bytes | memoryview) -> bytes:
    """Return the frame that begins a message."""
    return _FIRST_HEAD.pack(_FIRST + priority, message_bytes, len(piece)) + piece


def pack_next_piece(priority: int, piece: bytes | memoryview) -> bytes:
    """Return the frame that goes on with a message."""
    return _NEXT_HEAD.pack(_NEXT + priority, len(piece)) + piece


def pack_stream_close(code: int) -> bytes:
    """Return the frame that ends the connection."""
    return bytes([_CLOSE, code])


def pack_keys_asked(message: bytes) -> bytes:
    """Return the frame that asks for new keys."""
    return bytes([_KEYS_ASKED]) + LENGTH.pack(len(message)) + message


def pack_keys_given(message: bytes) -> bytes:
    """Return the frame that answers it."""
    return bytes([_KEYS_GIVEN]) + LENGTH.pack(len(message)) + message


def pack_record(frames: bytes, sealing: Sequence) -> bytes:
    """Return the bytes of a record."""
    assert 0 < len(frames) <= RECORD_BYTES_MAX
    length = LENGTH.pack(len(frames) + TAG_BYTES)
    return length + sealing.seal(frames, length)


def record_bytes(buffer: bytes | bytearray) -> int:
    """Return how many bytes the record in front takes, with its length; 0 before that has come.

    Raises WireError for a length that no record has.
    """
    if len(buffer) < LENGTH.size:
        return 0
    (sealed,) = LENGTH.unpack_from(buffer)
    if not TAG_BYTES < sealed <= RECORD_BYTES_MAX + TAG_BYTES:
        raise WireError(f"a peer sent a record of {sealed} bytes")
    return LENGTH.size + int(sealed)


def parse_stream_frames(frames: bytes) -> list[StreamFrame]:
    """Return the frames of a record whose tag has been verified; raises WireError."""
    parsed: list[StreamFrame] = []
    offset = 0
    frame: StreamFrame
    try:
        while offset < len(frames):
            kind = frames[offset]
            if _FIRST <= kind <= _FIRST + Priority.BULK:
                _, message_bytes, size = _FIRST_HEAD.unpack_from(frames, offset)
                if message_bytes > MESSAGE_BYTES_MAX or size > message_bytes:
                    raise WireError(f"a peer sent {size} of a message of {message_bytes} bytes")
                piece, offset = _cut(frames, offset + FIRST_PIECE_BYTES, size)
                frame = FirstPiece(kind - _FIRST, message_bytes, piece)
            elif _NEXT <= kind <= _NEXT + Priority.BULK:
                _, size = _NEXT_HEAD.unpack_from(frames, offset)
                if size == 0:
                    raise WireError("a peer sent a piece of nothing")
                piece, offset = _cut(frames, offset + NEXT_PIECE_BYTES, size)
                frame = NextPiece(kind - _NEXT, piece)
            elif kind in (_KEYS_ASKED, _KEYS_GIVEN):
                (size,) = LENGTH.unpack_from(frames, offset + 1)
                piece, offset = _cut(frames, offset + 1 + LENGTH.size, size)
                frame = KeysAsked(piece) if kind == _KEYS_ASKED else KeysGiven(piece)
            elif kind == _CLOSE:
                frame, offset = Close(frames[offset + 1]), offset + 2
            elif kind in _SHORT:
                frame, offset = _SHORT[kind], offset + 1
            else:
                raise WireError(f"a peer sent a frame of unknown type {kind:#04x}")
            parsed.append(frame)
    except (struct.error, IndexError):
        raise WireError(f"a peer sent frames cut short at byte {len(frames)}") from None
    return parsed


_SHORT: Final[dict[int, StreamFrame]] = {_PING: Ping(), _PONG: Pong(), _KEYS_USED: KeysUsed()}


def _cut(frames: bytes, start: int, size: int) -> tuple[bytes, int]:
    piece = frames[start : start + size]
    if len(piece) != size:
        raise WireError(f"a peer sent {len(piece)} of a piece's {size} bytes")
    return piece, start + size
