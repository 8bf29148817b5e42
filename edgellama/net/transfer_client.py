"""The client's side of one weight-transfer connection."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from edgellama.errors import TransferError
from edgellama.net.chunk_bitmap import ChunkBitmap, bitmap_bytes
from edgellama.net.manifest import CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX, Manifest
from edgellama.net.record_stream import RecordStream, RefusedError
from edgellama.net.transfer_protocol import (
    ABSENT,
    GIVEN,
    HELLO_TIMEOUT_S,
    MESSAGE_TIMEOUT_S,
    PRESENT,
    Request,
    RequestKind,
    greet,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from edgellama.net.fetch_schedule import Batch
    from edgellama.values import Address


class SourceConnection:
    """A client's connection to one weight server; raises TransferError without the address."""

    def __init__(self, address: Address, mesh_key: bytes) -> None:
        try:
            connection = socket.create_connection(address, timeout=HELLO_TIMEOUT_S)
        except OSError as error:
            raise TransferError(f"cannot be reached: {error.strerror or error}") from error
        self._stream = RecordStream(connection, HELLO_TIMEOUT_S)
        try:
            greet(self._stream, mesh_key)
        except BaseException:
            self._stream.close()
            raise
        self._stream.timeout_s = MESSAGE_TIMEOUT_S

    def __enter__(self) -> SourceConnection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()

    def abort(self) -> None:
        """End what another thread waits for."""
        self._stream.abort()

    def manifest(self, root: str) -> Manifest:
        """Fetch and check a manifest."""
        self._stream.send(Request(RequestKind.MANIFEST, root).encode())
        data = self._reply(MANIFEST_BYTES_MAX)
        if data is None:
            raise TransferError("does not have the model")
        try:
            return Manifest.decode(data, root)
        except TransferError as error:
            raise RefusedError(f"sent {error}") from error

    def available(self, manifest: Manifest) -> ChunkBitmap:
        """Ask which chunks the source has; none when it does not know the model."""
        self._stream.send(Request(RequestKind.AVAILABLE, manifest.root).encode())
        data = self._reply(bitmap_bytes(manifest.chunks))
        if data is None:
            return ChunkBitmap(manifest.chunks)
        bitmap = ChunkBitmap.from_bytes(manifest.chunks, data)
        if bitmap is None:
            raise RefusedError("sent a list of chunks that does not fit the model")
        return bitmap

    def chunks(self, manifest: Manifest, batch: Batch) -> Iterator[tuple[int, bytes | None]]:
        """Fetch a batch of chunks: number and unverified data; None: another device has it."""
        kind = RequestKind.CHUNKS_ANYWAY if batch.anyway else RequestKind.CHUNKS
        first, last = batch.indexes[0], batch.indexes[-1]
        self._stream.send(Request(kind, manifest.root, first, last + 1).encode())
        for index in batch.indexes:
            reply = self._stream.receive(len(PRESENT) + CHUNK_BYTES_MAX)
            data = None if reply == GIVEN else _present(reply)
            if data is None and reply != GIVEN:
                raise TransferError(f"has lost chunk {index} that it offered")
            yield index, data

    def _reply(self, bytes_max: int) -> bytes | None:
        """Return what stands behind PRESENT, or None for ABSENT."""
        return _present(self._stream.receive(len(PRESENT) + bytes_max))


def _present(reply: bytes) -> bytes | None:
    """Return what stands behind PRESENT, or None for ABSENT."""
    if reply == ABSENT:
        return None
    if not reply.startswith(PRESENT):
        raise RefusedError("sent a malformed reply")
    return reply[len(PRESENT) :]
