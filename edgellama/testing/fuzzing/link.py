"""A link whose other end has the mesh's key and says whatever it likes, and so do strangers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from edgellama.link.endpoint import Connected, Endpoint, Identity, Priority
from edgellama.testing.fuzzing.turns import fall_silent, play, wait
from edgellama.testing.fuzzing.wire import frame_seeds
from edgellama.values import Address
from edgellama.wire.datagram import (
    FRAMES_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
    HEADER_BYTES,
    DatagramType,
    Handshake,
    pack_handshake,
    pack_header,
    parse_handshake,
)
from edgellama.wire.frames import pack_acknowledgement, pack_fragment
from edgellama.wire.noise import Opening
from edgellama.wire.sealing import LINK_PROLOGUE, Seal, mesh_psk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.testing.fuzzing.feed import Feed

KEY: Final = b"k"
VICTIM, PEER = "a" * 32, "b" * 32
HERE, THERE = Address("10.0.0.1", 7711), Address("10.0.0.2", 7711)
WINDOW_PACKETS: Final = 64
ROUNDS_MAX: Final = 400  # of sending, after which it would never end


class _HostileLink:
    """An endpoint of ours, connected with a peer whose datagrams are made here."""

    def __init__(self) -> None:
        dice = random.Random(5)  # noqa: S311 - so that every run is the same
        self.now = 0.0
        self.victim = Endpoint(Identity(VICTIM, 1), KEY, WINDOW_PACKETS, dice.randbytes)
        self._opening = Opening(mesh_psk(KEY), LINK_PROLOGUE)
        self._next_packet_number = 0
        self.victim.dial(THERE, self.now)
        ((initiation, _),) = self.victim.datagrams_to_send(self.now)
        question = self._opening.hear(initiation[HEADER_BYTES:])
        assert question is not None
        asked = parse_handshake(question.payload, DatagramType.INITIATION)
        own = pack_handshake(
            Handshake(PEER, 1, 1, 77, 0, WINDOW_PACKETS, False), DatagramType.RESPONSE
        )
        answered = question.answer(dice.randbytes(32), own)
        assert answered is not None
        self.index = asked.receiver_index
        self._seal = Seal(answered[1])
        self.receive(pack_header(DatagramType.RESPONSE, self.index, 0) + answered[0])
        assert isinstance(self.victim.next_event(), Connected)

    def receive(self, datagram: bytes) -> None:
        self.victim.receive_datagram(datagram, THERE, self.now)

    def say(self, frames: bytes, packet_number: int | None = None) -> None:
        """Send frames behind a tag that is right."""
        if packet_number is None:
            packet_number = self._next_packet_number
            self._next_packet_number += 1
        header = pack_header(DatagramType.DATA, self.index, packet_number)
        self.receive(self._seal.seal(header, frames[:FRAMES_BYTES_MAX]))

    def ask(self, body: bytes, index: int) -> None:
        """Send a handshake with this body, as somebody who has the key."""
        padded = body.ljust(HANDSHAKE_BYTES_MAX, b"\0")[:HANDSHAKE_BYTES_MAX]
        dice = random.Random(index)  # noqa: S311 - so that every run is the same
        message = self._opening.ask(dice.randbytes, padded).message
        self.receive(pack_header(DatagramType.INITIATION, 0, index) + message)

    def settle(self) -> None:
        """Do what a driver does; it must come to an end."""
        while self.victim.next_event() is not None:
            pass
        for _ in range(ROUNDS_MAX):
            if not self.victim.datagrams_to_send(self.now):
                return
        raise AssertionError("it sends without end")


def link(data: bytes) -> None:
    """Let a peer with the key, and others, do what the bytes say; at the end it is silent."""
    hostile = _HostileLink()
    play(hostile, data, _turn)
    fall_silent(hostile, lambda: not hostile.victim.peers())


def _turn(hostile: _HostileLink, feed: Feed) -> None:
    match feed.number(1) % 8:
        case 0:
            hostile.say(feed.piece())
        case 1:
            hostile.say(feed.piece(), feed.number(8))
        case 2:
            hostile.receive(feed.piece())
        case 3:
            kind = DatagramType(1 + feed.number(1) % 4)
            hostile.receive(pack_header(kind, hostile.index, feed.number(8)) + feed.piece())
        case 4:
            hostile.ask(feed.piece(), feed.number(2))
        case 5:
            wait(hostile, feed.number(1) / 50)
        case 6:
            message, priority = bytes(feed.number(2)), Priority(feed.number(1) % 4)
            if PEER in hostile.victim.peers():
                hostile.victim.send(PEER, message, priority, hostile.now)
        case _:
            hostile.say(_frame(feed))


def _frame(feed: Feed) -> bytes:
    """Return a well-formed frame whose numbers are the fuzzer's."""
    if feed.number(1) % 2:
        high, length = feed.number(1), feed.number(1)
        return pack_acknowledgement(0.0, feed.number(2), [(high - min(length, high), high)])
    index, count, size = feed.number(1), feed.number(1), feed.number(2)
    return pack_fragment(feed.number(1) % 4, feed.number(1), index, count, size, feed.piece())


def link_seeds() -> Iterator[bytes]:
    """Yield some turns of every kind."""
    for frame in frame_seeds():
        piece = len(frame).to_bytes(2, "big") + frame
        yield b"\x00" + piece + b"\x05\x09" + b"\x00" + piece
        yield b"\x01" + piece + (3).to_bytes(8, "big")
    yield b"\x06\x10\x00\x01" + b"\x07\x01\x02\x02\x00\x40" + b"\x05\xff"
    body = pack_handshake(Handshake(PEER, 2, 1, 9, 0, 64, False), DatagramType.RESPONSE)
    yield b"\x04" + len(body).to_bytes(2, "big") + body + b"\x00\x01"
