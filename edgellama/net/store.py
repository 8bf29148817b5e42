"""The models on this device's disk: those fetched from peers, and the user's own files.

::

    <root>.manifest        the manifest, in its one encoding
    <root>.gguf.partial    a sparse copy, while chunks are missing
    <root>.chunks          which chunks it has
    <root>.gguf            the copy when all are there
    own/<path hash>        the root of a user's file, so that it is hashed once
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from pathlib import Path
from typing import Final

import msgpack

from edgellama.errors import ModelFileError, TransferError
from edgellama.model.gguf import GgufFile
from edgellama.net.atomic_file import remove_unfinished, write_atomically
from edgellama.net.manifest import MANIFEST_BYTES_MAX, Manifest, Progress, is_root
from edgellama.net.own_model import FileStamp, OwnModel
from edgellama.net.stored_model import ChunkSource, StoredModel, disk_error

MANIFEST_SUFFIX: Final = ".manifest"
RECORD_VERSION: Final = 1
RECORD_BYTES_MAX: Final = 64 << 10  # the longest path of any system, and a little more

_log = logging.getLogger(__name__)


class Store:
    """The folder of all of this device's weights; safe to use from several threads and processes.

    A model that is asked for twice is the same object, so what one thread fetches another
    serves at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: dict[str, OwnModel] = {}
        self._stored: dict[str, StoredModel] = {}
        self._lock = threading.Lock()

    def adopt(self, path: str | Path, progress: Progress | None = None) -> OwnModel:
        """Make a user's file known, hashing it unless that was done since it last changed.

        Raises what ``GgufFile.open`` raises, and ModelFileError when the file changes meanwhile.
        A store that cannot be written costs the hashing again next time, and nothing else.
        """
        resolved = Path(path).resolve()
        with contextlib.ExitStack() as opened, GgufFile.open(resolved) as gguf:
            try:
                file = opened.enter_context(resolved.open("rb", buffering=0))
                stamp = FileStamp.of(file)
                manifest = self._remembered(resolved, stamp)
                if manifest is None or not manifest.agrees_with(gguf):
                    manifest = Manifest.build(gguf, file, progress)
                    self._remember(resolved, stamp, manifest)
                changed = FileStamp.of(file) != stamp
            except OSError as error:
                reason = error.strerror or str(error)
                raise ModelFileError(f"{resolved}: cannot be read: {reason}") from error
            if changed:
                raise ModelFileError(f"{resolved}: was changed while it was read")
            opened.pop_all()
        model = OwnModel(resolved, file, stamp, manifest)
        with self._lock:
            before = self._own.pop(manifest.root, None)
            self._own[manifest.root] = model
        if before is not None:
            before.close()
        return model

    def create(self, manifest: Manifest) -> StoredModel:
        """Return the stored copy of the model, made empty when there is none yet.

        Raises StoreError when the folder cannot be written.
        """
        with self._lock:
            stored = self._stored.get(manifest.root)
            if stored is None:
                try:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    remove_unfinished(self._folder)
                    write_atomically(self._manifest_path(manifest.root), [manifest.encoded])
                except OSError as error:
                    raise disk_error(self._folder, error) from error
                stored = self._stored[manifest.root] = StoredModel(self._folder, manifest)
            return stored

    def find(self, root: str) -> StoredModel | None:
        """Return the stored copy of the model, be it complete or not, or None.

        ``root`` may come from a peer. Raises StoreError when the copy cannot be opened.
        """
        if not is_root(root):
            return None
        with self._lock:
            stored = self._stored.get(root)
            if stored is None and StoredModel.exists(self._folder, root):
                manifest = self._read_manifest(root)
                if manifest is not None:
                    stored = self._stored[root] = StoredModel(self._folder, manifest)
            return stored

    def source(self, root: str) -> ChunkSource | None:
        """Return what can be served of the model: the user's file, else the stored copy."""
        with self._lock:
            own = self._own.get(root)
        return own or self.find(root)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            models: list[OwnModel | StoredModel] = [*self._own.values(), *self._stored.values()]
            self._own.clear()
            self._stored.clear()
        for model in models:
            model.close()

    def _manifest_path(self, root: str) -> Path:
        return self._folder / f"{root}{MANIFEST_SUFFIX}"

    def _read_manifest(self, root: str) -> Manifest | None:
        try:
            with self._manifest_path(root).open("rb") as file:
                return Manifest.decode(file.read(MANIFEST_BYTES_MAX + 1), root)
        except (OSError, TransferError):  # not there, or damaged: it will be fetched or made again
            return None

    def _record_path(self, path: Path) -> Path:
        name = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=16)
        return self._folder / "own" / name.hexdigest()

    def _remembered(self, path: Path, stamp: FileStamp) -> Manifest | None:
        try:
            with self._record_path(path).open("rb") as file:
                record = msgpack.unpackb(file.read(RECORD_BYTES_MAX))
        except (OSError, ValueError, msgpack.UnpackException):
            return None
        expected = [RECORD_VERSION, _path_bytes(path), *stamp]
        if not isinstance(record, list) or record[:-1] != expected or not is_root(record[-1]):
            return None
        return self._read_manifest(record[-1])

    def _remember(self, path: Path, stamp: FileStamp, manifest: Manifest) -> None:
        record = [RECORD_VERSION, _path_bytes(path), *stamp, manifest.root]
        record_path = self._record_path(path)
        try:
            record_path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._manifest_path(manifest.root), [manifest.encoded])
            write_atomically(record_path, [msgpack.packb(record)])
        except OSError as error:
            _log.warning("the hash of %s is not kept, next time it is made anew: %s", path, error)


def _path_bytes(path: Path) -> bytes:
    return str(path).encode("utf-8", "surrogateescape")
