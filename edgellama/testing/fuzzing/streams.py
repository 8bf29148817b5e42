"""A link over TCP whose other end has the mesh's key and says whatever it likes, and strangers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from edgellama.errors import WireError
from edgellama.link.endpoint import Connected, Identity, MessageReceived, Priority
from edgellama.link.streams import CloseStream, OpenStream, Streams
from edgellama.testing.fuzzing.link import KEY, PEER, THERE, VICTIM
from edgellama.testing.fuzzing.turns import fall_silent, play, wait
from edgellama.wire.datagram import DatagramType, Handshake, pack_handshake
from edgellama.wire.frames import MESSAGE_BYTES_MAX
from edgellama.wire.noise import Opening
from edgellama.wire.sealing import Sequence, mesh_psk
from edgellama.wire.stream import (
    KEYS_USED_FRAME,
    LENGTH,
    PING_FRAME,
    PONG_FRAME,
    RECORD_BYTES_MAX,
    STREAM_GREETING,
    FirstPiece,
    NextPiece,
    pack_first_piece,
    pack_keys_asked,
    pack_keys_given,
    pack_next_piece,
    pack_record,
    pack_stream_close,
    parse_stream_frames,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.testing.fuzzing.feed import Feed

RECORDS_MAX: Final = 500  # given out at once, after which it would never end


def stream_frames(data: bytes) -> None:
    """Parse the frames of a record."""
    try:
        parsed = parse_stream_frames(data)
    except WireError:
        return
    for frame in parsed:
        if isinstance(frame, FirstPiece):
            assert len(frame.piece) <= frame.message_bytes <= MESSAGE_BYTES_MAX
        elif isinstance(frame, NextPiece):
            assert frame.piece


class _HostileStream:
    """Streams of ours, connected with a peer whose records are made here."""

    def __init__(self) -> None:
        dice = random.Random(5)  # noqa: S311 - so that every run is the same
        self.now = 0.0
        self.victim = Streams(Identity(VICTIM, 1), KEY, dice.randbytes)
        self._opening = Opening(mesh_psk(KEY), STREAM_GREETING)
        self.victim.dial(THERE, self.now)
        wish = self.victim.next_wish()
        assert isinstance(wish, OpenStream)
        self.stream = wish.stream
        self.open = {self.stream}
        self.victim.opened(self.stream, self.now)
        said = self.victim.next_data(self.stream)[len(STREAM_GREETING) + LENGTH.size :]
        question = self._opening.hear(said)
        assert question is not None
        own = pack_handshake(Handshake(PEER, 1, 1, 1, 0, 4, False), DatagramType.RESPONSE)
        answered = question.answer(dice.randbytes(32), own)
        assert answered is not None
        self._sealing = Sequence(answered[1].sending)
        self.receive(self.stream, LENGTH.pack(len(answered[0])) + answered[0])
        assert isinstance(self.victim.next_event(), Connected)
        self.settle()

    def receive(self, stream: int, data: bytes) -> None:
        """Let bytes come, unless the victim has closed that socket."""
        if stream in self.open:
            self.victim.receive(stream, data, self.now)

    def say(self, frames: bytes) -> None:
        """Send frames behind a tag that is right."""
        if frames:
            self.receive(self.stream, pack_record(frames[:RECORD_BYTES_MAX], self._sealing))

    def accept(self, data: bytes) -> None:
        """Let a stranger connect, and say something."""
        stream = self.victim.accept("10.0.0.7", self.now)
        if stream is not None:
            self.open.add(stream)
            self.receive(stream, data)

    def ask(self, body: bytes, number: int) -> None:
        """Let somebody with the key connect, with this for a handshake."""
        dice = random.Random(number)  # noqa: S311 - so that every run is the same
        message = self._opening.ask(dice.randbytes, body[:400]).message
        self.accept(LENGTH.pack(len(message)) + message)

    def settle(self) -> None:
        """Do what a driver does; it must come to an end."""
        while (event := self.victim.next_event()) is not None:
            if isinstance(event, MessageReceived):
                assert len(event.message) <= MESSAGE_BYTES_MAX
        given = 0
        for stream in list(self.victim.sending()):
            while self.victim.next_data(stream):
                given += 1
                assert given <= RECORDS_MAX, "it sends without end"
        while (wish := self.victim.next_wish()) is not None:
            if isinstance(wish, CloseStream):
                self.open.discard(wish.stream)


def streams(data: bytes) -> None:
    """Let a peer with the key, and others, do what the bytes say; at the end it is silent."""
    hostile = _HostileStream()
    play(hostile, data, _turn)
    fall_silent(hostile, lambda: hostile.victim.next_timer() is None)
    assert not hostile.open


def _turn(hostile: _HostileStream, feed: Feed) -> None:
    match feed.number(1) % 7:
        case 0:
            hostile.say(feed.piece())
        case 1:
            hostile.receive(hostile.stream, feed.piece())
        case 2:
            hostile.accept(feed.piece())
        case 3:
            hostile.ask(feed.piece(), feed.number(2))
        case 4:
            wait(hostile, feed.number(1) / 50)
        case 5:
            message, priority = bytes(feed.number(2)), Priority(feed.number(1) % 4)
            if hostile.victim.is_connected(PEER):
                hostile.victim.send(PEER, message, priority, hostile.now)
        case _:
            kind, size = feed.number(1) % 4, feed.number(2)
            piece = feed.piece()[: RECORD_BYTES_MAX - 16]
            begins = feed.number(1) % 2
            hostile.say(
                pack_first_piece(kind, size, piece) if begins else pack_next_piece(kind, piece)
            )


def stream_frame_seeds() -> Iterator[bytes]:
    """Yield frames of every type."""
    yield PING_FRAME + PONG_FRAME + pack_stream_close(0)
    yield (
        pack_first_piece(0, 4, b"word")
        + pack_first_piece(1, 6, b"lon")
        + pack_next_piece(1, b"ger")
    )
    yield pack_keys_asked(bytes(48)) + pack_keys_given(bytes(48)) + KEYS_USED_FRAME


def stream_seeds() -> Iterator[bytes]:
    """Yield some turns of every kind."""
    for frames in stream_frame_seeds():
        piece = len(frames).to_bytes(2, "big") + frames
        yield b"\x00" + piece + b"\x04\x60" + b"\x01" + piece
    opening = Opening(mesh_psk(KEY), STREAM_GREETING)
    asked = pack_keys_asked(opening.ask(random.Random(1).randbytes, b"").message)  # noqa: S311
    yield b"\x00" + len(asked).to_bytes(2, "big") + asked
    body = pack_handshake(Handshake(PEER, 2, 1, 1, 0, 4, False), DatagramType.RESPONSE)
    yield b"\x03" + len(body).to_bytes(2, "big") + body + b"\x00\x01"
    yield b"\x05\x10\x00\x01" + b"\x06\x01\x00\x02\x00\x01a\x01" + b"\x06\x01\x00\x00\x00\x01b\x00"
    yield b"\x02\x00\x04\x00\x02ab"
