"""The two datagrams that make a connection, seen from either side.

The initiator sends an initiation until a response comes. The responder's side stays half open
until the first packet under the new keys arrives: an initiation that was recorded and is sent
again can therefore never replace a connection that stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.link.identity import Identity
from edgellama.wire.datagram import (
    DatagramType,
    Handshake,
    pack_handshake,
    pack_header,
)

if TYPE_CHECKING:
    from edgellama.values import Address
    from edgellama.wire.sealing import MeshKeys, Seal

DIAL_TIMEOUT_S = 3.0
DIAL_RETRY_S = 0.25
"""The first pause between initiations; doubles each time (RFC 8085 section 3.1.1)."""

HALF_OPEN_S = 10.0
"""Longer than any dial lasts, so that a half-open connection outlives the dial that made it."""


class Dial:
    """The initiator's side until the response comes."""

    def __init__(
        self,
        keys: MeshKeys,
        identity: Identity,
        address: Address,
        ephemeral: bytes,
        receiver_index: int,
        window_packets: int,
        now: float,
    ) -> None:
        self.address = address
        self.ephemeral = ephemeral
        self.receiver_index = receiver_index
        self.started_at = now
        self.deadline = now + DIAL_TIMEOUT_S
        self.retry_at = now
        self.failure = "no answer"  # what to report unless something better is known
        self.response_seal = keys.response(ephemeral)
        self.attempts = 0
        body = pack_handshake(
            Handshake(
                ephemeral,
                identity.node,
                identity.incarnation,
                receiver_index,
                0,
                window_packets,
                identity.guest,
            ),
            DatagramType.INITIATION,
        )
        self._datagram = keys.initiation().seal(pack_header(DatagramType.INITIATION, 0, 0), body)

    def next_timer(self) -> float:
        """Return when to send again or to give up."""
        return min(self.retry_at, self.deadline)

    def initiation(self, now: float) -> bytes:
        """Return the initiation to send now, the same bytes each time."""
        self.retry_at = now + DIAL_RETRY_S * (1 << self.attempts)
        self.attempts += 1
        return self._datagram


class HalfOpen:
    """The responder's side until the first packet under the new keys comes."""

    def __init__(
        self,
        keys: MeshKeys,
        identity: Identity,
        initiation: Handshake,
        address: Address,
        ephemeral: bytes,
        receiver_index: int,
        established_index: int,
        window_packets: int,
        now: float,
    ) -> None:
        self.peer = Identity(initiation.node, initiation.incarnation, initiation.guest)
        self.peer_index = initiation.receiver_index
        self.peer_window_packets = initiation.window_packets
        self.peer_ephemeral = initiation.ephemeral
        self.address = address
        self.receiver_index = receiver_index
        self.expires_at = now + HALF_OPEN_S
        self.seal: Seal = keys.connection(initiation.ephemeral, ephemeral, initiated=False)
        body = pack_handshake(
            Handshake(
                ephemeral,
                identity.node,
                identity.incarnation,
                receiver_index,
                established_index,
                window_packets,
                identity.guest,
            ),
            DatagramType.RESPONSE,
        )
        header = pack_header(DatagramType.RESPONSE, initiation.receiver_index, 0)
        self.response = keys.response(initiation.ephemeral).seal(header, body)
