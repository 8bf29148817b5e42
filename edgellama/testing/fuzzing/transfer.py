"""The weight transfer and the pairing with a hostile other side, over a socket that is none."""

from __future__ import annotations

import struct
import threading
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack

from edgellama.errors import MisuseError, TransferError
from edgellama.net import pairing as pairing_protocol
from edgellama.net.chunk_bitmap import ChunkBitmap
from edgellama.net.fetch_schedule import Batch
from edgellama.net.invitations import Invitations
from edgellama.net.manifest import CHUNK_BYTES_MAX, DIGEST_BYTES, Manifest, Region
from edgellama.net.record_stream import RECORD_BYTES_MAX, RecordStream
from edgellama.net.throttle import Throttle
from edgellama.net.transfer_client import SourceConnection
from edgellama.net.transfer_protocol import (
    ABSENT,
    ASKS_FOR_CHUNKS,
    CHUNKS_PER_REQUEST_MAX,
    GIVEN,
    PRESENT,
    Request,
    RequestKind,
)
from edgellama.net.transfer_server import WeightServer
from edgellama.testing.fuzzing.feed import Feed
from edgellama.wire.join_code import parse_code
from edgellama.wire.noise import KEY_BYTES, Cipher, TransportKeys

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS: Final = TransportKeys(sending=b"s" * KEY_BYTES, receiving=b"r" * KEY_BYTES)
TIMEOUT_S: Final = 30.0
MESSAGES_MAX: Final = 16
SENT_BYTES_MAX: Final = 64 << 20

_CHUNKS: Final = (b"header", b"a" * CHUNK_BYTES_MAX, b"ab", b"b" * 100)
_REGIONS: Final = (
    Region("", 0, 6),
    Region("a", 32, CHUNK_BYTES_MAX + 2),
    Region("b", CHUNK_BYTES_MAX + 64, 100),
)
MANIFEST: Final = Manifest(
    CHUNK_BYTES_MAX + 200,
    _REGIONS,
    b"".join(blake2b(chunk, digest_size=DIGEST_BYTES).digest() for chunk in _CHUNKS),
)


class _ScriptedSocket:
    """A connection over which all that the other side will ever say has come already."""

    def __init__(self, incoming: bytes) -> None:
        self._incoming = incoming
        self.sent_bytes = 0

    def setsockopt(self, *_: object) -> None: ...

    def settimeout(self, _: float) -> None: ...

    def close(self) -> None: ...

    def sendall(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        assert self.sent_bytes <= SENT_BYTES_MAX

    def recv_into(self, view: memoryview) -> int:
        count = min(len(view), len(self._incoming))
        view[:count] = self._incoming[:count]
        self._incoming = self._incoming[count:]
        return count


def _stream(incoming: bytes, *, sealed: bool) -> RecordStream:
    stream = RecordStream(cast("Any", _ScriptedSocket(incoming)), TIMEOUT_S)
    if sealed:
        stream.encrypt(KEYS)
    return stream


def _sealed(feed: Feed) -> bytes:
    """Return messages behind tags that are right; some lie about their length."""
    cipher, number, records = Cipher(KEYS.receiving), 0, []
    for _ in range(MESSAGES_MAX):
        if not feed:
            break
        lie, message = feed.number(1), feed.piece()
        length = feed.number(4) if lie == 1 else len(message)
        parts = [struct.pack("<I", length)]
        parts += [message[i : i + RECORD_BYTES_MAX] for i in range(0, len(message), 1 << 16)]
        for part in parts:
            records.append(cipher.seal(number, part))
            number += 1
    return b"".join(records)


class _Source:
    """A model of three regions, all there, in a file of the user's own."""

    manifest = MANIFEST
    original = True

    def available(self) -> ChunkBitmap:
        return ChunkBitmap.full(MANIFEST.chunks)

    def read_chunk(self, index: int) -> bytes:
        return _CHUNKS[index]


class _Server(WeightServer):
    """A server that listens nowhere."""

    def __init__(self) -> None:
        self.mesh_key = b"k"
        self._message_timeout_s = TIMEOUT_S
        self._lookup = lambda root: _Source() if root == MANIFEST.root else None
        self._lock = threading.Lock()
        self._given = {}
        self._throttle = Throttle()
        self._closing = threading.Event()
        self.sent_bytes = 0

    def serve(self, stream: RecordStream, *, greeted: bool) -> None:
        if not greeted:
            self._serve_member(stream)
        while True:
            self._answer(stream, Request.decode(stream.receive(_REQUEST_BYTES)))


_REQUEST_BYTES: Final = len(Request(RequestKind.MANIFEST, MANIFEST.root).encode())


class _Client(SourceConnection):
    """A client that has been connected and greeted."""

    def __init__(self, stream: RecordStream) -> None:
        self._stream = stream


def weight_server(data: bytes) -> None:
    """Serve a client of the mesh that sends anything, or a stranger."""
    feed = Feed(data)
    greeted = bool(feed.number(1))
    incoming = _sealed(feed) if greeted else feed.take(len(data))
    try:
        _Server().serve(_stream(incoming, sealed=greeted), greeted=greeted)
    except TransferError:
        return
    raise AssertionError("it serves for ever")


def weight_client(data: bytes) -> None:
    """Fetch from a server of the mesh that sends anything."""
    feed = Feed(data)
    asked = feed.number(1) % 3
    client = _Client(_stream(_sealed(feed), sealed=True))
    try:
        if asked == 0:
            client.manifest(MANIFEST.root)
        elif asked == 1:
            assert len(client.available(MANIFEST)) <= MANIFEST.chunks
        else:
            batch = Batch(list(range(MANIFEST.chunks)), anyway=False)
            for index, chunk in client.chunks(MANIFEST, batch):
                assert len(chunk or b"") <= CHUNK_BYTES_MAX
                MANIFEST.chunk(index).is_made_of(chunk or b"")
    except TransferError:
        return


def manifests(data: bytes) -> None:
    """Read a manifest whose hash is the one asked for."""
    root = blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
    try:
        manifest = Manifest.decode(data, root)
    except TransferError:
        return
    assert manifest.root == root
    past = 0
    for index in range(min(manifest.chunks, 1000)):
        chunk = manifest.chunk(index)
        assert past <= chunk.offset
        past = chunk.offset + chunk.size
        assert 0 < chunk.size <= CHUNK_BYTES_MAX
        assert past <= manifest.file_bytes
    names = [region.name for region in manifest.regions[1:]]
    chunks = manifest.chunks_of_header() + manifest.chunks_of_tensors(names)
    assert chunks == list(range(manifest.chunks))


def pairing(data: bytes) -> None:
    """Take a device in that says anything, and read what a device might say that takes us in."""
    feed = Feed(data)
    if feed.number(1) == 0:
        _admit(feed.take(len(data)))
        return
    rest = feed.take(len(data))
    try:
        welcome = pairing_protocol._parse_welcome(rest)
    except TransferError:
        pass
    else:
        assert len(welcome.mesh_key) == KEY_BYTES
        assert 1 <= welcome.port <= 65535
    try:
        code = parse_code(rest.decode(errors="replace"))
    except MisuseError:
        return
    assert parse_code(str(code)) == code


def _admit(said: bytes) -> None:
    invitations = Invitations(entropy=lambda count: bytes(count), clock=lambda: 0.0)
    invitations.open()
    welcome = pairing_protocol.Welcome(bytes(KEY_BYTES), "a" * 32, "name", 7711)
    try:
        pairing_protocol.admit_device(_stream(said, sealed=False), invitations, welcome)
    except TransferError:
        return
    raise AssertionError("a stranger was let in")


def manifest_seeds() -> Iterator[bytes]:
    """Yield an honest manifest."""
    yield MANIFEST.encoded


def weight_server_seeds() -> Iterator[bytes]:
    """Yield honest requests, and a greeting under a key that is not the mesh's."""
    past = min(CHUNKS_PER_REQUEST_MAX, MANIFEST.chunks)
    for root in (MANIFEST.root, "0" * len(MANIFEST.root)):
        for kind in RequestKind:
            asked = (0, past) if kind in ASKS_FOR_CHUNKS else (0, 0)
            request = _piece(Request(kind, root, *asked).encode())
            yield b"\1" + request
            yield b"\1" + request * 2 + _piece(Request(RequestKind.MANIFEST, root).encode())
    yield b"\0" + bytes(48)


def weight_client_seeds() -> Iterator[bytes]:
    """Yield honest replies to each question."""
    yield b"\0" + _piece(PRESENT + MANIFEST.encoded)
    yield b"\1" + _piece(PRESENT + _Source().available().to_bytes())
    yield b"\2" + _piece(PRESENT + _CHUNKS[0]) + _piece(GIVEN) + _piece(ABSENT)
    yield b"\0\1" + _piece(PRESENT)[1:] + bytes(4)


def pairing_seeds() -> Iterator[bytes]:
    """Yield a welcome, a code, and a first message."""
    packed: bytes = msgpack.packb([bytes(KEY_BYTES), "a" * 32, "name", 7711])
    yield b"\1" + packed
    yield b"\1" + b"7-amber-otter"
    yield b"\0" + b"\1A" + bytes(32) + bytes(48)


def _piece(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(2, "big") + message
