"""Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s: two messages that only holders of one key can exchange.

The Noise Protocol Framework, revision 34: the comments name its sections. The pattern is

    -> psk, e
    <- e, ee

The first message is authenticated by the pre-shared key alone, so a stranger's is refused before
any elliptic-curve work; the second adds an ephemeral Diffie-Hellman, so what follows stays secret
even from who learns the key later.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2s
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

if TYPE_CHECKING:
    from collections.abc import Callable

    Buffer = bytes | bytearray | memoryview

PROTOCOL_NAME: Final = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s"
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
EPHEMERAL_BYTES: Final = 32
"""An X25519 public key; of a private key as many random bytes."""

_NONCE: Final = struct.Struct("<4xQ")  # section 12.3
_FIRST_NONCE: Final = _NONCE.pack(0)


class TransportKeys(NamedTuple):
    """What a finished handshake leaves: one key for each direction, for ``Cipher``."""

    sending: bytes
    receiving: bytes


class Cipher:
    """ChaCha20-Poly1305 under one key; the caller never gives one nonce to ``seal`` twice."""

    __slots__ = ("_aead",)

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)

    def seal(self, nonce: int, plaintext: Buffer, associated: bytes = b"") -> bytes:
        """Return the ciphertext with its 16-byte tag; ``nonce`` is below 2**64."""
        return self._aead.encrypt(_NONCE.pack(nonce), plaintext, associated)

    def open(self, nonce: int, sealed: Buffer, associated: bytes = b"") -> bytes | None:
        """Return the plaintext, None when the tag is not the right one."""
        try:
            return self._aead.decrypt(_NONCE.pack(nonce), sealed, associated)
        except InvalidTag:
            return None


class _SymmetricState:
    """Section 5.2; every key seals one payload, so the nonce is always 0."""

    __slots__ = ("_chaining_key", "_hash", "_key")

    def __init__(self, chaining_key: bytes, transcript: bytes, key: bytes) -> None:
        self._chaining_key = chaining_key
        self._hash = transcript
        self._key = key

    @classmethod
    def opened(cls, psk: bytes, prologue: bytes) -> _SymmetricState:
        """Return the state after the prologue and the token ``psk``, alike for both sides."""
        name = blake2s(PROTOCOL_NAME).digest()  # longer than a digest, so hashed
        state = cls(name, name, b"")
        state.mix_hash(prologue)
        state._chaining_key, mixed, state._key = state._derive(psk, 3)
        state.mix_hash(mixed)
        return state

    def copy(self) -> _SymmetricState:
        return _SymmetricState(self._chaining_key, self._hash, self._key)

    def _derive(self, material: bytes, count: int) -> list[bytes]:
        """HKDF of section 4.3."""
        root = hmac.digest(self._chaining_key, material, "blake2s")
        outputs, last = [], b""
        for number in range(1, count + 1):
            last = hmac.digest(root, last + bytes([number]), "blake2s")
            outputs.append(last)
        return outputs

    def mix_hash(self, data: bytes) -> None:
        self._hash = blake2s(self._hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, self._key = self._derive(material, 2)

    def mix_ephemeral(self, public: bytes) -> None:
        """Token ``e``; with a psk the public key is mixed into the key, too (section 9.2)."""
        self.mix_hash(public)
        self.mix_key(public)

    def seal(self, payload: bytes) -> bytes:
        sealed = ChaCha20Poly1305(self._key).encrypt(_FIRST_NONCE, payload, self._hash)
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes | None:
        try:
            payload = ChaCha20Poly1305(self._key).decrypt(_FIRST_NONCE, sealed, self._hash)
        except InvalidTag:
            return None
        self.mix_hash(sealed)
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """Return the keys towards the responder and towards the initiator."""
        outward, homeward = self._derive(b"", 2)
        return outward, homeward

    def side_key(self, purpose: bytes) -> bytes:
        """Return a key that both sides can derive at this point, for ``purpose`` alone."""
        return hmac.digest(self._chaining_key, purpose + self._hash, "blake2s")


class Initiator:
    """The side that asks. ``message`` goes out; ``finish`` takes what comes back."""

    def __init__(self, state: _SymmetricState, private: bytes, payload: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.ephemeral = self._private.public_key().public_bytes_raw()
        state.mix_ephemeral(self.ephemeral)
        self.message = self.ephemeral + state.seal(payload)
        self.side_key = state.side_key
        self._state = state

    def finish(self, message: bytes) -> tuple[bytes, TransportKeys] | None:
        """Return the answer's payload and the keys, None for what is no answer to this side."""
        state = self._state.copy()  # a forged answer must not spoil the true one
        if not _take_answer(state, self._private, message):
            return None
        payload = state.open(message[EPHEMERAL_BYTES:])
        if payload is None:
            return None
        outward, homeward = state.split()
        return payload, TransportKeys(outward, homeward)


def _take_answer(state: _SymmetricState, private: X25519PrivateKey, message: bytes) -> bool:
    if len(message) < EPHEMERAL_BYTES + TAG_BYTES:
        return False
    theirs = message[:EPHEMERAL_BYTES]
    state.mix_ephemeral(theirs)
    return _mix_shared(state, private, theirs)


def _mix_shared(state: _SymmetricState, private: X25519PrivateKey, theirs: bytes) -> bool:
    """Token ``ee``; False for a public key of small order, whose secret anyone could know."""
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        return False
    state.mix_key(shared)
    return True


class Question(NamedTuple):
    """An initiator's message whose tag was right, and what it takes to answer."""

    payload: bytes
    ephemeral: bytes
    state: _SymmetricState

    def side_key(self, purpose: bytes) -> bytes:
        """Return the same key as the initiator's ``side_key``."""
        return self.state.side_key(purpose)

    def answer(self, private: bytes, payload: bytes) -> tuple[bytes, TransportKeys] | None:
        """Return the second message and the keys; None where the question's key is no key."""
        own = X25519PrivateKey.from_private_bytes(private)
        public = own.public_key().public_bytes_raw()
        state = self.state.copy()
        state.mix_ephemeral(public)
        if not _mix_shared(state, own, self.ephemeral):
            return None
        message = public + state.seal(payload)
        outward, homeward = state.split()
        return message, TransportKeys(homeward, outward)


class Opening:
    """How every handshake under one pre-shared key and prologue begins; made once, used often."""

    def __init__(self, psk: bytes, prologue: bytes) -> None:
        assert len(psk) == KEY_BYTES
        self._state = _SymmetricState.opened(psk, prologue)

    def ask(self, entropy: Callable[[int], bytes], payload: bytes) -> Initiator:
        """Begin a handshake; ``payload`` goes along, readable by every holder of the key."""
        return Initiator(self._state.copy(), entropy(EPHEMERAL_BYTES), payload)

    def hear(self, message: bytes) -> Question | None:
        """Return a first message of somebody who has the key, None for anything else."""
        if len(message) < EPHEMERAL_BYTES + TAG_BYTES:
            return None
        state = self._state.copy()
        theirs = message[:EPHEMERAL_BYTES]
        state.mix_ephemeral(theirs)
        payload = state.open(message[EPHEMERAL_BYTES:])
        return None if payload is None else Question(payload, theirs, state)
