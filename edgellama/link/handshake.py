"""The two datagrams that make a connection or renew its keys, seen from either side.

The initiator sends an initiation until a response comes. The responder's side stays half open
until the first packet under the new keys arrives: an initiation that was recorded and is sent
again can therefore never replace a connection that stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.link.identity import Identity
from edgellama.wire.datagram import (
    COOKIE_BYTES,
    HEADER_BYTES,
    DatagramType,
    Handshake,
    pack_handshake,
    pack_header,
    parse_handshake,
)
from edgellama.wire.noise import Cipher
from edgellama.wire.sealing import COOKIE_PURPOSE, Seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.link.connection import Connection
    from edgellama.values import Address
    from edgellama.wire.datagram import Header
    from edgellama.wire.noise import Opening, Question

DIAL_TIMEOUT_S = 3.0
DIAL_RETRY_S = 0.25
"""The first pause between initiations; doubles each time (RFC 8085 section 3.1.1)."""

HALF_OPEN_S = 10.0
"""Longer than any dial lasts, so that a half-open connection outlives the dial that made it."""

_COOKIE_NONCE_BYTES = 8


class Dial:
    """The initiator's side until the response comes."""

    def __init__(
        self,
        opening: Opening,
        entropy: Callable[[int], bytes],
        handshake: Handshake,
        address: Address,
        renews: Connection | None,
        now: float,
    ) -> None:
        self.address = address
        self.receiver_index = handshake.receiver_index
        self.renews = renews  # whose keys it makes anew, if it is not for a new connection
        self.started_at = now
        self.deadline = now + DIAL_TIMEOUT_S
        self.retry_at = now
        self.failure = "no answer"  # what to report unless something better is known
        self.attempts = 0
        self._cookie = 0
        self._noise = opening.ask(entropy, pack_handshake(handshake, DatagramType.INITIATION))

    @property
    def ephemeral(self) -> bytes:
        """The public key that this handshake is known by."""
        return self._noise.ephemeral

    def next_timer(self) -> float:
        """Return when to send again or to give up."""
        return min(self.retry_at, self.deadline)

    def initiation(self, now: float) -> bytes:
        """Return the initiation to send now, the same bytes each time but for the cookie."""
        self.retry_at = now + DIAL_RETRY_S * (1 << self.attempts)
        self.attempts += 1
        return pack_header(DatagramType.INITIATION, 0, self._cookie) + self._noise.message

    def take_cookie(self, datagram: bytes, header: Header) -> bool:
        """Return whether the datagram is a cookie for this dial, which then goes along."""
        key = Cipher(self._noise.side_key(COOKIE_PURPOSE))
        cookie = key.open(header.packet_number, datagram[HEADER_BYTES:], datagram[:HEADER_BYTES])
        if cookie is None or len(cookie) != COOKIE_BYTES:
            return False
        value = int.from_bytes(cookie, "big")
        news = value != self._cookie  # a repeated answer must not make a repeated question
        self._cookie = value
        return news

    def finish(self, datagram: bytes) -> tuple[Handshake, Seal] | None:
        """Return what an authentic response says, and the connection's seal."""
        finished = self._noise.finish(datagram[HEADER_BYTES:])
        if finished is None:
            return None
        body, keys = finished
        try:
            return parse_handshake(body, DatagramType.RESPONSE), Seal(keys)
        except WireError:
            return None


@dataclass(frozen=True)
class Initiation:
    """An initiation whose tag was right."""

    handshake: Handshake
    question: Question

    def cookie_reply(self, cookie: int, entropy: Callable[[int], bytes]) -> bytes:
        """Return the datagram that asks for the same again, with a cookie."""
        nonce = int.from_bytes(entropy(_COOKIE_NONCE_BYTES), "big")  # a few under one key
        header = pack_header(DatagramType.COOKIE, self.handshake.receiver_index, nonce)
        key = Cipher(self.question.side_key(COOKIE_PURPOSE))
        return header + key.seal(nonce, cookie.to_bytes(COOKIE_BYTES, "big"), header)


def open_initiation(opening: Opening, datagram: bytes) -> Initiation | None:
    """Return what somebody with the mesh's key asks, None for anything else."""
    question = opening.hear(datagram[HEADER_BYTES:])
    if question is None:
        return None
    try:
        handshake = parse_handshake(question.payload, DatagramType.INITIATION)
    except WireError:
        return None
    return Initiation(handshake, question)


@dataclass(frozen=True)
class HalfOpen:
    """The responder's side until the first packet under the new keys comes."""

    peer: Identity
    peer_index: int
    peer_window_packets: int
    peer_ephemeral: bytes
    receiver_index: int
    renews: Connection | None  # whose keys it makes anew, if it is not for a new connection
    expires_at: float
    seal: Seal
    response: bytes


def half_open(
    initiation: Initiation,
    own: Handshake,
    renews: Connection | None,
    entropy: Callable[[int], bytes],
    now: float,
) -> HalfOpen | None:
    """Answer an initiation with ``own``; None where its public key is none."""
    body = pack_handshake(own, DatagramType.RESPONSE)
    answered = initiation.question.answer(entropy(32), body)
    if answered is None:
        return None
    message, keys = answered
    asked = initiation.handshake
    return HalfOpen(
        Identity(asked.node, asked.incarnation, asked.guest),
        asked.receiver_index,
        asked.window_packets,
        initiation.question.ephemeral,
        own.receiver_index,
        renews,
        now + HALF_OPEN_S,
        Seal(keys),
        pack_header(DatagramType.RESPONSE, asked.receiver_index, 0) + message,
    )
