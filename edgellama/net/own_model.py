"""A model file of the user's own: served to peers as it lies, never written."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from edgellama.errors import TransferError
from edgellama.model.gguf import GgufFile
from edgellama.net.chunk_bitmap import ChunkBitmap
from edgellama.net.stored_model import read_chunk

if TYPE_CHECKING:
    from pathlib import Path

    from edgellama.net.manifest import Manifest


class FileStamp(NamedTuple):
    """What tells cheaply that a file is still the one whose manifest was made."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: BinaryIO) -> FileStamp:
        """Return the stamp of an open file."""
        status = os.fstat(file.fileno())
        return cls(status.st_size, status.st_mtime_ns)


class OwnModel:
    """All chunks of a user's file; safe to use from several threads. Closes ``file``."""

    original = True

    def __init__(self, path: Path, file: BinaryIO, stamp: FileStamp, manifest: Manifest) -> None:
        self.manifest = manifest
        self.path = path
        self._file = file
        self._stamp = stamp
        self._lock = threading.Lock()

    @property
    def complete(self) -> bool:
        """Every chunk is there."""
        return True

    def available(self) -> ChunkBitmap:
        """Return the set of all chunks, or of none when the file has been changed."""
        chunks = self.manifest.chunks
        return ChunkBitmap.full(chunks) if self._unchanged() else ChunkBitmap(chunks)

    def read_chunk(self, index: int) -> bytes:
        """Return one chunk; TransferError when the file has been changed since it was hashed."""
        if not self._unchanged():
            raise TransferError(f"{self.path} has been changed since this device joined with it")
        return read_chunk(self._file, self._lock, self.manifest, index)

    def open_gguf(self) -> GgufFile:
        """Open the file; raises what ``GgufFile.open`` raises, TransferError when changed."""
        gguf = GgufFile.open(self.path)
        if not (self._unchanged() and self.manifest.agrees_with(gguf)):
            gguf.close()
            raise TransferError(f"{self.path} has been changed since this device joined with it")
        return gguf

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _unchanged(self) -> bool:
        try:
            return FileStamp.of(self._file) == self._stamp
        except (OSError, ValueError):  # ValueError: closed meanwhile
            return False
