"""Models with tensors of several chunks, and weight servers that count, lie and stop in tests."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import TYPE_CHECKING

from model_running import SmallShape, llama_keys, llama_tensors, write_llama

from edgellama.errors import TransferError
from edgellama.net.supply import Supply, WeightSource
from edgellama.net.transfer_server import WeightServer
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellama.net.chunk_bitmap import ChunkBitmap
    from edgellama.net.manifest import Manifest
    from edgellama.net.stored_model import ChunkSource

HOST = "127.0.0.1"
KEY = b"the key of the tests' mesh"

# gate and up of a layer take one whole chunk and a bit of a second, the embedding likewise.
SHAPE = SmallShape(
    layers=3,
    width=256,
    heads=8,
    kv_heads=2,
    head_width=32,
    feed_forward=1056,
    vocabulary=1100,
    context=64,
)


@functools.cache
def _tensors() -> dict[str, object]:
    return dict(llama_tensors(SHAPE))


def write_model(path: Path) -> Path:
    """Write a llama of SHAPE in float32, about 12 MB; returns path."""
    return write_llama(path, llama_keys(SHAPE), _tensors())  # type: ignore[arg-type]


def supply(
    *addresses: Address, key: bytes = KEY, cancelled: threading.Event | None = None
) -> Supply:
    """Return what a fetch is given where these are the sources, of devices that have the file."""
    sources = [WeightSource(address, original=True) for address in addresses]
    return Supply(lambda: sources, key, cancelled or threading.Event())


class CountingSource:
    """Another source, and which of its chunks were read; ``before`` is called before each."""

    def __init__(
        self, source: ChunkSource, before: Callable[[int], None] | None = None, lie: int = -1
    ) -> None:
        self.manifest: Manifest = source.manifest
        self.original = source.original
        self.read: list[int] = []
        self._source = source
        self._before = before
        self._lie = lie
        self._lock = threading.Lock()

    def available(self) -> ChunkBitmap:
        return self._source.available()

    def read_chunk(self, index: int) -> bytes:
        if self._before is not None:
            self._before(index)
        data = self._source.read_chunk(index)
        with self._lock:
            self.read.append(index)
        if index == self._lie:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data


@contextlib.contextmanager
def served(source: ChunkSource | None, key: bytes = KEY) -> Iterator[Address]:
    """Serve one model, or none, on a free port."""

    def lookup(root: str) -> ChunkSource | None:
        return source if source is not None and root == source.manifest.root else None

    server = WeightServer(HOST, 0, key, lookup)
    try:
        yield Address(HOST, server.port)
    finally:
        server.close()


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Listen on a free port and hand each connection to ``answer``, in a thread of its own."""
    listener = socket.create_server((HOST, 0))
    threads = []

    def run(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, TransferError):
            answer(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threads.append(threading.Thread(target=run, args=listener.accept()[:1]))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    address = Address(HOST, listener.getsockname()[1])
    try:
        yield address
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for thread in threads:
            thread.join()
