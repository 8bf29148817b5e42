"""Serves chunks of models to peers of the same mesh, from the user's file or from the store."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from edgellama.errors import NetworkError, TransferError
from edgellama.net.given_chunks import GivenChunks
from edgellama.net.pairing import PAIRING_GREETING, PAIRING_TIMEOUT_S
from edgellama.net.record_stream import RecordStream, RefusedError
from edgellama.net.throttle import Throttle
from edgellama.net.transfer_protocol import (
    ABSENT,
    ASKS_FOR_CHUNKS,
    GIVEN,
    GREETING,
    HELLO_TIMEOUT_S,
    MESSAGE_TIMEOUT_S,
    PRESENT,
    REQUEST_BYTES,
    Request,
    RequestKind,
    answer_greeting,
)
from edgellama.wire.stream import STREAM_GREETING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.net.stored_model import ChunkSource

CONNECTIONS_MAX: Final = 16  # each may hold one chunk of 1 MiB and one thread
_BACKLOG: Final = 32
_STOP_TIMEOUT_S: Final = 2.0
_ACCEPT_RETRY_S: Final = 0.05  # so that a lack of file descriptors is no busy loop


class WeightServer:
    """Listens at ``host`` and ``port``, or a free port when that one is taken, until ``close``.

    ``lookup`` gives what can be served of a root, from any thread; ``throttle`` holds it back.
    ``admit`` takes over a connection of a device that wants to join, and may raise TransferError;
    ``link`` takes a socket over which somebody wants a link, after its greeting.
    More than CONNECTIONS_MAX clients wait in the system's queue; junk, silence and clients of
    another mesh are cut off without a word. Raises NetworkError when nothing can be listened at.
    """

    def __init__(
        self,
        host: str,
        port: int,
        mesh_key: bytes,
        lookup: Callable[[str], ChunkSource | None],
        *,
        admit: Callable[[RecordStream], None] | None = None,
        link: Callable[[socket.socket], None] | None = None,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        message_timeout_s: float = MESSAGE_TIMEOUT_S,
        throttle: Throttle | None = None,
    ) -> None:
        self.mesh_key = mesh_key  # for clients that come from now on
        self._admit = admit
        self._link = link
        self._throttle = throttle or Throttle()
        self._lookup = lookup
        self._hello_timeout_s = hello_timeout_s
        self._message_timeout_s = message_timeout_s
        self._listener = _listen(host, port)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: dict[RecordStream, threading.Thread] = {}
        self._given: dict[str, GivenChunks] = {}  # by root, of files of the user's own
        self.sent_bytes = 0  # of chunks, to all clients
        self._acceptor = threading.Thread(target=self._accept, name="weights-accept", daemon=True)
        self._acceptor.start()

    @property
    def port(self) -> int:
        """The port that is listened at."""
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        """Cut off all clients and stop listening."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            clients = dict(self._open)
        self._wake_writer.send(b"\0")
        for stream, thread in clients.items():
            stream.abort()
            thread.join(_STOP_TIMEOUT_S)
        self._acceptor.join(_STOP_TIMEOUT_S)
        for end in (self._listener, self._wake_reader, self._wake_writer):
            end.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while True:
                self._slots.acquire()
                selector.select()
                try:
                    connection, _ = self._listener.accept()
                except OSError:  # a client that gave up meanwhile, or no file descriptor is left
                    self._slots.release()
                    if self._closing.wait(_ACCEPT_RETRY_S):
                        return
                    continue
                with self._lock:
                    if self._closing.is_set():
                        connection.close()
                        return
                    self._start(connection)

    def _start(self, connection: socket.socket) -> None:
        stream = RecordStream(connection, self._hello_timeout_s)
        thread = threading.Thread(
            target=self._serve, args=(stream,), name="weights-client", daemon=True
        )
        self._open[stream] = thread
        thread.start()

    def _serve(self, stream: RecordStream) -> None:
        try:
            # Whatever a client did wrong, or however it went away: that ends its connection only.
            with contextlib.closing(stream), contextlib.suppress(TransferError):
                greeting = stream.receive_plain(len(GREETING))
                if greeting == GREETING:
                    self._serve_member(stream)
                elif greeting == PAIRING_GREETING and self._admit is not None:
                    stream.timeout_s = PAIRING_TIMEOUT_S
                    self._admit(stream)
                elif greeting == STREAM_GREETING and self._link is not None:
                    self._link(stream.detach())
        finally:
            with self._lock:
                self._open.pop(stream)
            self._slots.release()

    def _serve_member(self, stream: RecordStream) -> None:
        answer_greeting(stream, self.mesh_key)
        stream.timeout_s = self._message_timeout_s
        stream.throttle = self._throttle
        while True:
            self._answer(stream, Request.decode(stream.receive(REQUEST_BYTES)))

    def _answer(self, stream: RecordStream, request: Request) -> None:
        source = self._lookup(request.root)
        if request.kind in ASKS_FOR_CHUNKS:
            if source is not None and request.past > source.manifest.chunks:
                raise RefusedError("asked for chunks that the model does not have")
            self._send_chunks(stream, request, source)
        elif source is None:
            stream.send(ABSENT)
        elif request.kind is RequestKind.MANIFEST:
            stream.send(PRESENT, source.manifest.encoded)
        else:
            stream.send(PRESENT, source.available().to_bytes())

    def _send_chunks(
        self, stream: RecordStream, request: Request, source: ChunkSource | None
    ) -> None:
        """Send what was asked for; of a file of the user's own each chunk once, if that will do."""
        indexes = range(request.first, request.past)
        given = self._given_of(request.root) if source is not None and source.original else None
        anyway, now = request.kind is RequestKind.CHUNKS_ANYWAY, time.monotonic()
        promised = [
            index
            for index in indexes
            if given is None or given.promise(index, stream, now, anyway=anyway)
        ]
        try:
            for index in indexes:
                if index not in promised:
                    stream.send(GIVEN)
                    continue
                self._throttle.hold(self._closing)
                reply = _chunk_reply(source, index)
                stream.send(*reply)
                if reply[0] == PRESENT:
                    self._count(len(reply[1]))
                    if given is not None:
                        given.gave(index, time.monotonic())
        finally:
            if given is not None:
                given.forget(stream)

    def _given_of(self, root: str) -> GivenChunks:
        with self._lock:
            return self._given.setdefault(root, GivenChunks())

    def _count(self, chunk_bytes: int) -> None:
        with self._lock:
            self.sent_bytes += chunk_bytes


def _chunk_reply(source: ChunkSource | None, index: int) -> tuple[bytes, ...]:
    if source is not None:
        # A chunk not fetched yet, or a file that was changed: the client asks someone else.
        with contextlib.suppress(TransferError):
            return PRESENT, source.read_chunk(index)
    return (ABSENT,)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES) or port == 0:
            raise NetworkError(
                f"cannot listen at {host}:{port} for weight transfers: {error.strerror or error}"
            ) from error
    return _listen(host, 0)


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if hasattr(socket, "SO_REUSEADDR") and not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            # A node that starts again at once must get its port back; on Windows it means theft.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
