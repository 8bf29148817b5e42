"""The outermost layout of every datagram: the header, the handshake's body and their limits.

``docs/spec/link.md`` draws them. All integers are big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from edgellama.errors import WireError
from edgellama.values import NODE_ID_DIGITS, NodeId

PROTOCOL_VERSION = 3

DATAGRAM_BYTES_BASE = 1200
"""Fits every path: IPv6 guarantees 1280 and takes 48 for its own and UDP's header."""

DATAGRAM_BYTES_MAX = 1472
"""Fills a frame of Ethernet or Wi-Fi: 1500 bytes less 28 for the headers of IPv4 and UDP. Sent only
on paths where probes of such a length have arrived."""

HEADER_BYTES = 16
TAG_BYTES = 16
OVERHEAD_BYTES = HEADER_BYTES + TAG_BYTES
FRAMES_BYTES_BASE = DATAGRAM_BYTES_BASE - OVERHEAD_BYTES
FRAMES_BYTES_MAX = DATAGRAM_BYTES_MAX - OVERHEAD_BYTES

INDEX_BYTES = 4
COOKIE_BYTES = 8
EPHEMERAL_BYTES = 32
HANDSHAKE_BYTES_MAX = FRAMES_BYTES_BASE - EPHEMERAL_BYTES
"""What is left for the body of a handshake behind its ephemeral public key."""

WINDOW_PACKETS_MIN = 4
"""A peer that can take fewer cannot even take one small message."""

HEADER = struct.Struct(">BBxxIQ")
_HANDSHAKE = struct.Struct(">16sQQIIHBx")
_GUEST = 0x01


class DatagramType(IntEnum):
    """The first byte of a datagram."""

    INITIATION = 1
    RESPONSE = 2
    DATA = 3
    COOKIE = 4


class Header(NamedTuple):
    """What stands before the frames; in the clear, but covered by the tag."""

    kind: int
    version: int
    receiver_index: int  # chosen by the receiver; 0 in an initiation
    packet_number: int  # never used twice under one key; in an initiation a cookie, or 0


def pack_header(kind: int, receiver_index: int, packet_number: int) -> bytes:
    """Return the 16 bytes that stand before the frames."""
    return HEADER.pack(kind, PROTOCOL_VERSION, receiver_index, packet_number)


def parse_header(datagram: bytes) -> Header | None:
    """Return the header, or None for what is too short or too long to be a datagram of ours.

    Nothing in it may be believed before the tag has been verified.
    """
    if not OVERHEAD_BYTES < len(datagram) <= DATAGRAM_BYTES_MAX:
        return None
    return Header._make(HEADER.unpack_from(datagram))


class Handshake(NamedTuple):
    """The body of an initiation and of a response, always encrypted."""

    node: NodeId
    incarnation: int
    number: int  # of the sender's handshakes in this life: each is answered once
    receiver_index: int  # where the sender wants its datagrams of this connection
    established_index: int  # the receiver's index of a connection that stands; or 0
    window_packets: int  # how many datagrams the sender's socket buffer can hold
    guest: bool


def pack_handshake(handshake: Handshake, kind: DatagramType) -> bytes:
    """Return the body; an initiation is padded, so that no answer is longer than its question."""
    body = _HANDSHAKE.pack(
        bytes.fromhex(handshake.node),
        handshake.incarnation,
        handshake.number,
        handshake.receiver_index,
        handshake.established_index,
        handshake.window_packets,
        _GUEST if handshake.guest else 0,
    )
    return body.ljust(HANDSHAKE_BYTES_MAX, b"\0") if kind == DatagramType.INITIATION else body


def parse_handshake(body: bytes, kind: DatagramType) -> Handshake:
    """Return the handshake in a body whose tag has been verified; raises WireError.

    Unknown flags and what follows the known fields are left for later versions.
    """
    bytes_min = HANDSHAKE_BYTES_MAX if kind == DatagramType.INITIATION else _HANDSHAKE.size
    if len(body) < bytes_min:
        raise WireError(f"a peer's handshake is {len(body)} bytes long instead of {bytes_min}")
    node, incarnation, number, index, established, window, flags = _HANDSHAKE.unpack_from(body)
    if index == 0 or window < WINDOW_PACKETS_MIN:
        raise WireError(f"a peer's handshake has receiver index {index} and window {window}")
    node_id = node.hex()
    assert len(node_id) == NODE_ID_DIGITS
    guest = bool(flags & _GUEST)
    return Handshake(node_id, incarnation, number, index, established, window, guest)
