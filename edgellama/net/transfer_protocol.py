"""What goes over a weight-transfer connection: a greeting, then requests and replies.

Drawn in docs/spec/weights.md.
"""

from __future__ import annotations

import enum
import secrets
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.errors import TransferError
from edgellama.net.manifest import CHUNKS_MAX, DIGEST_BYTES
from edgellama.net.record_stream import RefusedError
from edgellama.wire.noise import EPHEMERAL_BYTES, TAG_BYTES, Opening
from edgellama.wire.sealing import mesh_psk

if TYPE_CHECKING:
    from edgellama.net.record_stream import RecordStream

TRANSFER_VERSION: Final = 3
CHUNKS_PER_REQUEST_MAX: Final = 4  # 4 MiB: the round trip is small beside it, a retry is cheap

HELLO_TIMEOUT_S: Final = 5.0
MESSAGE_TIMEOUT_S: Final = 30.0  # a chunk in this time is 35 KB/s: slower sources are no use

GREETING: Final = b"ELWEIGHT" + TRANSFER_VERSION.to_bytes(2, "little")
_NOISE_BYTES: Final = EPHEMERAL_BYTES + TAG_BYTES  # both messages of the handshake, without payload
_WHY_REFUSED: Final = "is it of the same mesh, and of the same release of edgellama?"
_REQUEST: Final = struct.Struct(f"<B{DIGEST_BYTES}sII")


class RequestKind(enum.IntEnum):
    """What a client may ask for; the numbers are on the wire."""

    MANIFEST = 1
    AVAILABLE = 2
    CHUNKS = 3
    CHUNKS_ANYWAY = 4  # also those that were given to another device


class Request(NamedTuple):
    """A question about the model ``root``, or for its chunks ``first`` up to, without, ``past``.

    Both are 0 but for chunks.
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
        if kind in ASKS_FOR_CHUNKS:
            if not 1 <= past - first <= CHUNKS_PER_REQUEST_MAX or past > CHUNKS_MAX:
                raise RefusedError("asked for a range of chunks that cannot be")
        elif first or past:
            raise RefusedError("sent a request with a range that it cannot have")
        return cls(kind, root.hex(), first, past)


REQUEST_BYTES: Final = _REQUEST.size
ASKS_FOR_CHUNKS: Final = (RequestKind.CHUNKS, RequestKind.CHUNKS_ANYWAY)

# A reply is one of these bytes, and behind PRESENT what was asked for.
PRESENT: Final = b"\x01"
ABSENT: Final = b"\x00"
GIVEN: Final = b"\x02"  # this chunk went to another device, which serves it as well


def greet(stream: RecordStream, mesh_key: bytes) -> None:
    """Open a connection as the client: agree on keys that only members of the mesh can.

    Raises RefusedError when the other side is of another mesh or version, TransferError when
    the connection fails.
    """
    noise = _opening(mesh_key).ask(secrets.token_bytes, b"")
    stream.send_plain(GREETING + noise.message)
    try:
        finished = noise.finish(stream.receive_plain(_NOISE_BYTES))
    except TransferError as error:
        # Whoever knows another key closes without a word; so a stranger learns nothing.
        raise TransferError(f"{error} when asked to join in ({_WHY_REFUSED})") from None
    if finished is None:
        raise RefusedError(f"belongs to another mesh ({_WHY_REFUSED})")
    stream.encrypt(finished[1])


def answer_greeting(stream: RecordStream, mesh_key: bytes) -> None:
    """Open a connection as the server, after the client's GREETING; raises as ``greet`` does.

    The client proves the mesh's key first: a stranger gets not one byte. A recorded greeting gets
    an answer that is of no use: whoever sent it cannot know the keys.
    """
    question = _opening(mesh_key).hear(stream.receive_plain(_NOISE_BYTES))
    answered = question and question.answer(secrets.token_bytes(EPHEMERAL_BYTES), b"")
    if answered is None:
        raise RefusedError("belongs to another mesh")
    message, keys = answered
    stream.send_plain(message)
    stream.encrypt(keys)


def _opening(mesh_key: bytes) -> Opening:
    return Opening(mesh_psk(mesh_key), GREETING)
