"""A model's chunks on this device's disk, as far as they have been fetched.

The file is a sparse copy of the GGUF with every chunk at its own offset, so the reader maps
header and tensors in place. Beside it lies a bitmap of the chunks that are there for certain:
it is written after the data have reached the disk, so whatever interrupts a fetch, what the
bitmap claims was verified and is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from edgellama.errors import TransferError
from edgellama.model.gguf import GgufFile
from edgellama.net.atomic_file import write_atomically
from edgellama.net.chunk_bitmap import ChunkBitmap

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgellama.net.manifest import Manifest

DATA_SUFFIX: Final = ".gguf"
PARTIAL_SUFFIX: Final = ".gguf.partial"
BITMAP_SUFFIX: Final = ".chunks"

_FULL: Final = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


class StoreError(TransferError):
    """This device's own disk failed: it is full, or the folder cannot be written."""


class ChunkSource(Protocol):
    """What a weight server serves from: some or all chunks of one model."""

    @property
    def manifest(self) -> Manifest:
        """The model's manifest."""

    @property
    def original(self) -> bool:
        """Whether this is the user's own file, which others can only have got from here."""

    def available(self) -> ChunkBitmap:
        """Return which chunks can be read now."""

    def read_chunk(self, index: int) -> bytes:
        """Return one chunk, unverified; TransferError when it is not here."""


class StoredModel:
    """The sparse copy of one model; safe to use from several threads.

    Other processes may write the same files at the same time: they write the same bytes, and of
    two bitmaps the later one stands. What is on the disk and not in it ``check`` finds again.
    """

    original = False

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self._data_path = folder / f"{manifest.root}{DATA_SUFFIX}"
        self._partial_path = folder / f"{manifest.root}{PARTIAL_SUFFIX}"
        self._bitmap_path = folder / f"{manifest.root}{BITMAP_SUFFIX}"
        self._lock = threading.Lock()  # the file's position, and the bitmap
        self._flushing = threading.Lock()
        self._checked = ChunkBitmap(manifest.chunks)  # by this process: written, read or found
        try:
            self._file, self._bitmap = self._open()
        except OSError as error:
            raise disk_error(self._partial_path, error) from error

    @staticmethod
    def exists(folder: Path, root: str) -> bool:
        """Tell whether the folder holds a copy of the model, be it a part only."""
        return any((folder / f"{root}{end}").is_file() for end in (DATA_SUFFIX, PARTIAL_SUFFIX))

    @property
    def path(self) -> Path:
        """Where the copy lies: under another name once it is complete."""
        return self._data_path if self._data_path.is_file() else self._partial_path

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return len(self._bitmap) == self.manifest.chunks

    def available(self) -> ChunkBitmap:
        """Return a copy of the set of chunks that are there."""
        with self._lock:
            bitmap = ChunkBitmap.from_bytes(self.manifest.chunks, self._bitmap.to_bytes())
        assert bitmap is not None
        return bitmap

    def missing(self, indexes: Iterable[int]) -> list[int]:
        """Return those of the chunks that are not there, ascending."""
        return sorted({index for index in indexes if index not in self._bitmap})

    def read_chunk(self, index: int) -> bytes:
        """Return a chunk as it lies on the disk; TransferError when it is not there."""
        if index not in self._bitmap:
            raise TransferError(f"chunk {index} of the model is not in the store")
        return read_chunk(self._file, self._lock, self.manifest, index)

    def write_chunk(self, index: int, data: bytes) -> bool:
        """Put a chunk into its place; False, and nothing written, if it hashes to another.

        It counts as kept after the next ``flush``. Raises StoreError when the disk does not
        take it.
        """
        chunk = self.manifest.chunk(index)
        if not chunk.is_made_of(data):
            return False
        if index in self._bitmap:
            return True
        try:
            with self._lock:
                self._file.seek(chunk.offset)
                rest = memoryview(data)
                while rest:  # a disk that fills up takes a part before it fails
                    rest = rest[self._file.write(rest) :]
                self._bitmap.add(index)
                self._checked.add(index)
        except OSError as error:
            raise disk_error(self._partial_path, error) from error
        return True

    def check(self, indexes: Iterable[int]) -> None:
        """Look at chunks as they lie on the disk, each once in the life of this process.

        One that is whole counts as there although the bitmap does not say so: a process was killed
        before it could. One that has decayed since counts as missing. Raises StoreError.
        """
        try:
            for index in indexes:
                if index not in self._checked:
                    self._check(index)
        except OSError as error:
            raise disk_error(self._partial_path, error) from error

    def _check(self, index: int) -> None:
        chunk = self.manifest.chunk(index)
        with self._lock:
            is_whole = False
            if not _is_hole(self._file, chunk.offset, chunk.size):
                self._file.seek(chunk.offset)
                is_whole = chunk.is_made_of(self._file.read(chunk.size))
            self._checked.add(index)
            if is_whole:
                self._bitmap.add(index)
            elif index in self._bitmap:
                self._bitmap.remove(index)
                self._take_back_final_name()

    def flush(self) -> None:
        """Bring all chunks written so far to the disk, then say so in the bitmap.

        Raises StoreError when the disk fails or the store was removed meanwhile.
        """
        if not self._file.writable():
            return
        try:
            with self._flushing:
                bits = self.available()
                os.fsync(self._file.fileno())
                if not self._path_is_ours():
                    raise StoreError(f"{self._partial_path} was removed or replaced meanwhile")
                write_atomically(self._bitmap_path, [bits.to_bytes()])
                if len(bits) == self.manifest.chunks:
                    self._give_final_name()
        except OSError as error:
            raise disk_error(self._partial_path, error) from error

    def check_room(self, wanted_bytes: int) -> None:
        """Raise StoreError when the disk cannot take so many more bytes."""
        try:
            free_bytes = shutil.disk_usage(self._data_path.parent).free
        except OSError as error:
            raise disk_error(self._data_path.parent, error) from error
        if free_bytes < wanted_bytes:
            raise StoreError(
                f"{self._data_path.parent} has room for {free_bytes >> 20} MiB and this model's "
                f"part takes {-(-wanted_bytes >> 20)} MiB: free some, or set EDGELLAMA_HOME"
            )

    def open_gguf(self) -> GgufFile:
        """Open the copy as a model file, of which only tensors that are there may be read.

        The header's chunks must be there. Raises TransferError when header and manifest do not
        describe the same tensors, and whatever ``GgufFile.open`` raises.
        """
        if self.missing(self.manifest.chunks_of_header()):
            raise TransferError(f"the header of model {self.manifest.root[:12]} is not here yet")
        gguf = GgufFile.open(self.path)
        if not self.manifest.agrees_with(gguf):
            gguf.close()
            raise TransferError(
                f"model {self.manifest.root[:12]} contradicts itself: its manifest and its header "
                "differ; join again with --model on the device that has the file"
            )
        return gguf

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _open(self) -> tuple[BinaryIO, ChunkBitmap]:
        chunks, size = self.manifest.chunks, self.manifest.file_bytes
        if self._data_path.is_file():
            if self._data_path.stat().st_size == size:
                return self._data_path.open("rb", buffering=0), ChunkBitmap.full(chunks)
            self._data_path.unlink()
        if self._partial_path.is_file() and self._partial_path.stat().st_size == size:
            bitmap = None
            with contextlib.suppress(FileNotFoundError):
                bitmap = ChunkBitmap.from_bytes(chunks, self._bitmap_path.read_bytes())
            return self._partial_path.open("r+b", buffering=0), bitmap or ChunkBitmap(chunks)
        # First the bitmap goes: it must never speak of a file that it was not made for.
        self._bitmap_path.unlink(missing_ok=True)
        self._partial_path.touch()
        os.truncate(self._partial_path, size)
        return self._partial_path.open("r+b", buffering=0), ChunkBitmap(chunks)

    def _path_is_ours(self) -> bool:
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self._file.fileno()))

    def _take_back_final_name(self) -> None:
        """Make a copy that was complete one that can be written again; nothing if it is one."""
        if self._file.writable():
            return
        write_atomically(self._bitmap_path, [self._bitmap.to_bytes()])
        self._data_path.rename(self._partial_path)
        self._file.close()
        self._file = self._partial_path.open("r+b", buffering=0)

    def _give_final_name(self) -> None:
        # Windows does not rename a file that is open: there it is complete under the first name.
        with contextlib.suppress(PermissionError, FileNotFoundError):
            self._partial_path.rename(self._data_path)
            self._bitmap_path.unlink()


def _is_hole(file: BinaryIO, offset: int, size: int) -> bool:
    """Tell whether nothing was ever written there, as far as the system can say."""
    if not hasattr(os, "SEEK_DATA"):
        return False
    try:
        return os.lseek(file.fileno(), offset, os.SEEK_DATA) >= offset + size
    except OSError as error:
        return error.errno == errno.ENXIO  # no data from there on


def read_chunk(file: BinaryIO, lock: threading.Lock, manifest: Manifest, index: int) -> bytes:
    """Read one chunk from a file that has it, unverified; TransferError when it cannot be."""
    chunk = manifest.chunk(index)
    try:
        with lock:
            file.seek(chunk.offset)
            data = file.read(chunk.size)
    except (OSError, ValueError) as error:  # ValueError: closed meanwhile
        raise TransferError(f"chunk {index} of the model cannot be read: {error}") from error
    if len(data) != chunk.size:
        raise TransferError(f"chunk {index} of the model is cut short")
    return data


def disk_error(path: Path, error: OSError) -> StoreError:
    """Say in one line what the disk refused and what to do."""
    if error.errno in _FULL:
        return StoreError(
            f"the disk that holds {path.parent} is full: free some of it, or set EDGELLAMA_HOME "
            "to a folder on another"
        )
    reason = error.strerror or str(error)
    return StoreError(
        f"{path} cannot be written: {reason}; set EDGELLAMA_HOME to a folder that can"
    )
