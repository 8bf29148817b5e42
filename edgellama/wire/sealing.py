"""What stands between bytes from the network and everything else: the tag on each datagram.

Today the tag is a keyed BLAKE2b of 128 bits over header and frames: damaged datagrams and those
of other meshes are dropped before anything in them is parsed. An authenticated cipher takes its
place behind the same interface: the tag has its length, the packet number is its nonce, and the
ephemeral bytes of the handshake become public keys.
"""

from __future__ import annotations

from hashlib import blake2b
from hmac import compare_digest
from typing import Protocol

from edgellama.wire.datagram import HEADER_BYTES, TAG_BYTES

_KEY_BYTES = 32


class Seal(Protocol):
    """Protects the datagrams of one connection, or of one step of the handshake."""

    def seal(self, header: bytes, frames: bytes) -> bytes:
        """Return the whole datagram: header, frames and tag."""
        ...

    def open(self, datagram: bytes) -> bytes | None:
        """Return the frames, or None when the tag is not the expected one.

        The datagram is longer than a header and a tag.
        """
        ...


class KeyedHashSeal:
    """A Seal that authenticates and does not encrypt, with one key for each direction."""

    __slots__ = ("_receiving", "_sending")

    def __init__(self, sending_key: bytes, receiving_key: bytes) -> None:
        # Copying a keyed state is half the price of setting up the key for each datagram.
        self._sending = blake2b(key=sending_key, digest_size=TAG_BYTES)
        self._receiving = blake2b(key=receiving_key, digest_size=TAG_BYTES)

    def seal(self, header: bytes, frames: bytes) -> bytes:
        """Return header, frames and tag."""
        assert len(header) == HEADER_BYTES
        covered = header + frames
        tag = self._sending.copy()
        tag.update(covered)
        return covered + tag.digest()

    def open(self, datagram: bytes) -> bytes | None:
        """Return the frames when the tag is right."""
        covered = datagram[:-TAG_BYTES]
        tag = self._receiving.copy()
        tag.update(covered)
        if not compare_digest(tag.digest(), datagram[-TAG_BYTES:]):
            return None
        return covered[HEADER_BYTES:]


class MeshKeys:
    """Derives every key of the link from the mesh's secret; an empty secret is the open mesh."""

    def __init__(self, mesh_key: bytes) -> None:
        self._root = blake2b(mesh_key, digest_size=_KEY_BYTES, person=b"edgellama mesh").digest()

    def _derive(self, purpose: bytes, randomness: bytes) -> bytes:
        derived = blake2b(randomness, key=self._root, digest_size=_KEY_BYTES, person=purpose)
        return derived.digest()

    def initiation(self) -> Seal:
        """Return the seal of every initiation in this mesh."""
        key = self._derive(b"initiation", b"")
        return KeyedHashSeal(key, key)

    def response(self, initiator: bytes) -> Seal:
        """Return the seal of the response to the initiation with these ephemeral bytes."""
        key = self._derive(b"response", initiator)
        return KeyedHashSeal(key, key)

    def connection(self, initiator: bytes, responder: bytes, *, initiated: bool) -> Seal:
        """Return one side's seal of the connection that the two ephemeral byte strings make."""
        randomness = initiator + responder
        outward = self._derive(b"to responder", randomness)
        homeward = self._derive(b"to initiator", randomness)
        return KeyedHashSeal(outward, homeward) if initiated else KeyedHashSeal(homeward, outward)
