"""What stands between bytes from the network and everything else: the tag on each datagram.

The handshake is Noise NNpsk0 with the mesh's key; each connection's datagrams are then sealed with
ChaCha20-Poly1305, the header as associated data and the packet number as nonce.
"""

from __future__ import annotations

from hashlib import blake2s
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edgellama.wire.datagram import HEADER_BYTES
from edgellama.wire.noise import KEY_BYTES, Cipher

if TYPE_CHECKING:
    from edgellama.wire.noise import Buffer, TransportKeys

LINK_PROLOGUE: Final = b"edgellama link 3"
COOKIE_PURPOSE: Final = b"edgellama cookie"


def mesh_psk(mesh_key: bytes) -> bytes:
    """Return the pre-shared key of every handshake in a mesh; an empty mesh key is the open mesh.

    The open mesh's is all zeros, known to everyone: its handshakes prove nothing, and its
    connections are secret only from who listens without taking part.
    """
    if not mesh_key:
        return bytes(KEY_BYTES)
    return blake2s(mesh_key, person=b"el mesh").digest()


class Seal:
    """Encrypts and authenticates the datagrams of one connection, under one pair of keys.

    The caller never seals two datagrams with one packet number.
    """

    __slots__ = ("_receiving", "_sending")

    def __init__(self, keys: TransportKeys) -> None:
        self._sending = ChaCha20Poly1305(keys.sending)
        self._receiving = ChaCha20Poly1305(keys.receiving)

    def seal(self, header: bytes, frames: bytes) -> bytes:
        """Return the whole datagram: header, encrypted frames and tag."""
        return header + self._sending.encrypt(_nonce(header), frames, header)

    def open(self, datagram: bytes) -> bytes | None:
        """Return the frames, or None when the tag is not the expected one.

        The datagram is longer than a header and a tag.
        """
        header = datagram[:HEADER_BYTES]
        try:
            return self._receiving.decrypt(_nonce(header), datagram[HEADER_BYTES:], header)
        except InvalidTag:
            return None


def _nonce(header: bytes) -> bytes:
    """Return the packet number, which ends the header, in little-endian order behind 4 zeros."""
    return b"\0\0\0\0" + header[:7:-1]


class Sequence:
    """One direction's records, numbered from 0: left out, doubled or moved, none opens."""

    __slots__ = ("_cipher", "_next")

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(key)
        self._next = 0

    @property
    def records(self) -> int:
        """How many have been sealed or opened."""
        return self._next

    def seal(self, plaintext: Buffer, associated: bytes = b"") -> bytes:
        """Return the next record."""
        self._next += 1
        return self._cipher.seal(self._next - 1, plaintext, associated)

    def open(self, record: Buffer, associated: bytes = b"") -> bytes | None:
        """Return what the next record holds; None when it is not the expected one."""
        self._next += 1
        return self._cipher.open(self._next - 1, record, associated)
