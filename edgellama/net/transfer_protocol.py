"""What goes over a weight-transfer connection: whole messages, a hello, requests and replies.

Drawn in docs/spec/weights.md. Every length is bounded before it is read, and every wait ends.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import hmac
import secrets
import socket
import struct
import time
from typing import Final, NamedTuple

from edgellama.errors import TransferError
from edgellama.net.manifest import CHUNKS_MAX, DIGEST_BYTES

TRANSFER_VERSION: Final = 1
CHUNKS_PER_REQUEST_MAX: Final = 4  # 4 MiB: the round trip is small beside it, a retry is cheap

HELLO_TIMEOUT_S: Final = 5.0
MESSAGE_TIMEOUT_S: Final = 30.0  # a chunk in this time is 35 KB/s: slower sources are no use

_MAGIC: Final = b"ELWEIGHT"
_NONCE_BYTES: Final = 16
_PROOF_BYTES: Final = 32
_HELLO: Final = struct.Struct(f"<{len(_MAGIC)}sH{_NONCE_BYTES}s")
_REQUEST: Final = struct.Struct(f"<B{DIGEST_BYTES}sII")
_LENGTH: Final = struct.Struct("<I")


class RefusedError(TransferError):
    """The other side broke the protocol, lied or is of another mesh: asking again is no use."""


class RecordStream:
    """One TCP connection as a sequence of whole messages; closes ``connection``.

    This is the one place where authenticated encryption will sit: ``send`` will seal and
    ``receive`` open records of at most 64 KiB, and nothing above will change. Raises
    TransferError, in words that can follow the peer's name.
    """

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._connection = connection
        _tune(connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def send(self, *parts: bytes) -> None:
        """Send one message made of ``parts``; ends after ``timeout_s``, sent or not."""
        message = b"".join((_LENGTH.pack(sum(map(len, parts))), *parts))
        try:
            self._connection.settimeout(self.timeout_s)
            self._connection.sendall(message)
        except OSError as error:
            raise TransferError(self._trouble(error)) from error

    def receive(self, bytes_max: int) -> bytes:
        """Return the next message, which must be whole within ``timeout_s`` from now."""
        past_s = time.monotonic() + self.timeout_s
        (length,) = _LENGTH.unpack(self._receive_exactly(_LENGTH.size, past_s))
        if length > bytes_max:
            raise RefusedError(f"sent a message of {length} bytes where {bytes_max} are allowed")
        return bytes(self._receive_exactly(length, past_s))

    def abort(self) -> None:
        """End a ``send`` or ``receive`` that another thread waits in."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self._connection.shutdown(socket.SHUT_RDWR)

    def _receive_exactly(self, count: int, past_s: float) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        try:
            while view:
                # The whole message has one deadline: a byte now and then does not move it.
                self._connection.settimeout(max(0.001, past_s - time.monotonic()))
                received = self._connection.recv_into(view)
                if not received:
                    raise TransferError("closed the connection")
                view = view[received:]
        except OSError as error:
            raise TransferError(self._trouble(error)) from error
        return data

    def _trouble(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            return f"did not answer within {self.timeout_s:g} s"
        return f"broke the connection off: {error.strerror or error}"


class RequestKind(enum.IntEnum):
    """What a client may ask for; the numbers are on the wire."""

    MANIFEST = 1
    AVAILABLE = 2
    CHUNKS = 3


class Request(NamedTuple):
    """A question about the model ``root``, or for its chunks ``first`` up to, without, ``past``.

    Both are 0 but for CHUNKS.
    """

    kind: RequestKind
    root: str
    first: int = 0
    past: int = 0

    def encode(self) -> bytes:
        """Return the request's REQUEST_BYTES bytes."""
        return _REQUEST.pack(self.kind, bytes.fromhex(self.root), self.first, self.past)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Read what a peer sent; RefusedError when it is no request."""
        if len(data) != REQUEST_BYTES:
            raise RefusedError("sent a request of the wrong length")
        number, root, first, past = _REQUEST.unpack(data)
        if number not in RequestKind.__members__.values():
            raise RefusedError("sent a request of an unknown kind")
        kind = RequestKind(number)
        if kind is RequestKind.CHUNKS:
            if not 1 <= past - first <= CHUNKS_PER_REQUEST_MAX or past > CHUNKS_MAX:
                raise RefusedError("asked for a range of chunks that cannot be")
        elif first or past:
            raise RefusedError("sent a request with a range that it cannot have")
        return cls(kind, root.hex(), first, past)


REQUEST_BYTES: Final = _REQUEST.size

# A reply is one of these bytes, and behind PRESENT what was asked for.
PRESENT: Final = b"\x01"
ABSENT: Final = b"\x00"


def greet(stream: RecordStream, mesh_key: bytes) -> None:
    """Open a connection as the client: prove the mesh's key and have it proven.

    Raises RefusedError when the other side is of another mesh or version, TransferError when
    the connection fails.
    """
    mine = secrets.token_bytes(_NONCE_BYTES)
    stream.send(_HELLO.pack(_MAGIC, TRANSFER_VERSION, mine))
    theirs = _read_hello(stream.receive(_HELLO.size))
    stream.send(_proof(mesh_key, b"client", mine, theirs))
    try:
        proof = stream.receive(_PROOF_BYTES)
    except TransferError as error:
        # Whoever knows another key closes without a word; so a stranger learns nothing.
        raise TransferError(f"{error} when asked to join in (is EDGELLAMA_KEY the same?)") from None
    if not hmac.compare_digest(proof, _proof(mesh_key, b"server", mine, theirs)):
        raise RefusedError("belongs to another mesh: its EDGELLAMA_KEY differs")


def answer_greeting(stream: RecordStream, mesh_key: bytes) -> None:
    """Open a connection as the server; raises as ``greet`` does.

    The client proves itself first: a stranger gets no more than a version and a nonce.
    """
    hello = stream.receive(_HELLO.size)
    if not hello.startswith(_MAGIC) or len(hello) != _HELLO.size:
        raise RefusedError("does not speak weight transfer")
    mine = secrets.token_bytes(_NONCE_BYTES)
    stream.send(_HELLO.pack(_MAGIC, TRANSFER_VERSION, mine))
    theirs = _read_hello(hello)  # after the answer, so that a client of another version learns why
    proof = stream.receive(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(mesh_key, b"client", theirs, mine)):
        raise RefusedError("belongs to another mesh")
    stream.send(_proof(mesh_key, b"server", theirs, mine))


def _read_hello(data: bytes) -> bytes:
    """Return the nonce."""
    if len(data) != _HELLO.size:
        raise RefusedError("does not speak weight transfer")
    magic, version, nonce = _HELLO.unpack(data)
    if magic != _MAGIC:
        raise RefusedError("does not speak weight transfer")
    if version != TRANSFER_VERSION:
        raise RefusedError(
            f"speaks version {version} of weight transfer, this device version "
            f"{TRANSFER_VERSION}: update the older edgellama"
        )
    checked: bytes = nonce
    return checked


def _proof(mesh_key: bytes, role: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    # Hashed first, because BLAKE2b takes keys up to 64 bytes only and a person may choose more.
    key = hashlib.blake2b(mesh_key, digest_size=32, person=b"edgellama-mesh").digest()
    keyed = hashlib.blake2b(key=key, digest_size=_PROOF_BYTES, person=b"ELWEIGHT-" + role)
    keyed.update(client_nonce + server_nonce)
    return keyed.digest()


def _tune(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the peer may be gone already; and both are wishes only
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_CONGESTION"):
            # Twenty times the throughput of cubic at 5 % loss, where the kernel has it.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
