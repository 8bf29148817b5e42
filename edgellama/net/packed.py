"""Weights in the kernels' layout as files that are mapped, so that one copy is in memory.

Each layer, and home, is packed once into ``<root prefix>-<layout version>/layer-0007.bin`` and
from then on mapped read-only: its pages are the system's page cache and no second copy exists.
Where the disk takes no such file, the packed weights stay in plain memory and ``note`` says so.
The file is drawn in docs/spec/weights.md.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final
from weakref import WeakValueDictionary

import numpy as np
from edgellama_kernels import LAYOUT_VERSION

from edgellama.model.weights import home_bytes, layer_bytes, pack_home, pack_layer
from edgellama.net.atomic_file import remove_unfinished, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from edgellama.model.config import ModelConfig
    from edgellama.model.gguf import GgufFile
    from edgellama.net.manifest import Progress
    from edgellama.values import Span

PACKED_VERSION: Final = 1
HEADER_BYTES: Final = (
    4096  # the content starts on a page where pages have 4 KiB, else aligned to it
)
ROOT_PREFIX_DIGITS: Final = 16  # of a name; the whole root is in the header
HOME_PART: Final = "home"

_MAGIC: Final = b"ELPACKED"
_HEADER: Final = struct.Struct("<8sHHI32s32sQ")
_BLOCK_BYTES: Final = 1 << 20


class PackedCache:
    """The folder of packed weights; several processes may use it at the same time.

    ``note`` is None, or why packed weights had to stay in plain memory: one line for a person.
    """

    def __init__(self, folder: Path) -> None:
        self.note: str | None = None
        self._folder = folder
        # What is in use: a layer that the next plan keeps is neither checked nor packed again.
        self._in_use: WeakValueDictionary[tuple[str, str], NDArray[np.uint8]] = (
            WeakValueDictionary()
        )
        with contextlib.suppress(OSError):  # a folder that is not there yet, or may not be read
            for models in folder.iterdir():
                remove_unfinished(models)

    def held(
        self, gguf: GgufFile, config: ModelConfig, root: str, span: Span, *, home: bool
    ) -> dict[str, NDArray[np.uint8]]:
        """Return what of a span, and of home where asked, is packed already, by ``part`` name.

        Of ``gguf`` the header alone is read: what is held needs no tensor. As long as the arrays
        live, ``layer_buffers`` and ``home_buffer`` return them.
        """
        sizes = {layer_part(layer): layer_bytes(gguf, config, layer) for layer in range(*span)}
        if home:
            sizes[HOME_PART] = home_bytes(gguf, config)
        found = {part: self._find(root, part, size) for part, size in sizes.items()}
        return {part: buffer for part, buffer in found.items() if buffer is not None}

    def layer_buffers(
        self,
        gguf: GgufFile,
        config: ModelConfig,
        root: str,
        span: Span,
        progress: Progress | None = None,
    ) -> list[NDArray[np.uint8]]:
        """Return the span's layers, each uint8 [layer_bytes], read-only and aligned to 64.

        What is not packed yet is packed from ``gguf``, a layer at a time, and the file's pages
        are given back after each. ``progress``: packed bytes ready and in all. Raises
        ModelFileError as ``pack_layer`` does.
        """
        sizes = [layer_bytes(gguf, config, layer) for layer in range(span.first, span.past)]
        buffers = []
        for layer, size in zip(range(span.first, span.past), sizes, strict=True):

            def pack(buffer: NDArray[np.uint8], layer: int = layer) -> None:
                pack_layer(gguf, config, layer, buffer)

            buffers.append(self._buffer(gguf, root, layer_part(layer), size, pack))
            if progress is not None:
                progress(sum(buffer.nbytes for buffer in buffers), sum(sizes))
        return buffers

    def home_buffer(
        self, gguf: GgufFile, config: ModelConfig, root: str, progress: Progress | None = None
    ) -> NDArray[np.uint8]:
        """Return home's weights, uint8 [home_bytes], as ``layer_buffers`` does a layer's."""
        size = home_bytes(gguf, config)
        buffer = self._buffer(
            gguf, root, HOME_PART, size, lambda buffer: pack_home(gguf, config, buffer)
        )
        if progress is not None:
            progress(size, size)
        return buffer

    def _buffer(
        self,
        gguf: GgufFile,
        root: str,
        part: str,
        size: int,
        pack: Callable[[NDArray[np.uint8]], None],
    ) -> NDArray[np.uint8]:
        held = self._find(root, part, size)
        if held is not None:
            return held
        path = self._path(root, part)
        # Anonymous and not a written mapping of the file: a full disk is then an error, not the
        # end of the process; and unlike the heap it goes back to the system at once.
        memory = mmap.mmap(-1, size)
        buffer = np.frombuffer(memory, np.uint8)
        pack(buffer)
        gguf.release_pages()
        buffer.flags.writeable = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = memoryview(memory).toreadonly()
            header = _header(root, part, size, zlib.crc32(content))
            blocks = (content[at : at + _BLOCK_BYTES] for at in range(0, size, _BLOCK_BYTES))
            write_atomically(path, [header, *blocks])
            mapped = _map(path, root, part, size)
        except OSError as error:
            mapped = None
            reason = error.strerror or str(error)
            self.note = f"packed weights stay in plain memory: {path.parent} takes none ({reason})"
        kept = buffer if mapped is None else mapped
        self._in_use[root, part] = kept
        return kept

    def _find(self, root: str, part: str, size: int) -> NDArray[np.uint8] | None:
        buffer = self._in_use.get((root, part))
        if buffer is None:
            with contextlib.suppress(OSError):  # then it is packed anew; the writing says why
                buffer = _map(self._path(root, part), root, part, size)
            if buffer is not None:
                self._in_use[root, part] = buffer
        return buffer

    def _path(self, root: str, part: str) -> Path:
        return self._folder / f"{root[:ROOT_PREFIX_DIGITS]}-{LAYOUT_VERSION}" / f"{part}.bin"


def layer_part(layer: int) -> str:
    """Return the name of a layer's file, without its suffix."""
    return f"layer-{layer:04}"


def _header(root: str, part: str, size: int, checksum: int) -> bytes:
    fields = (PACKED_VERSION, LAYOUT_VERSION, checksum, bytes.fromhex(root), part.encode(), size)
    return _HEADER.pack(_MAGIC, *fields).ljust(HEADER_BYTES, b"\0")


def _map(path: Path, root: str, part: str, size: int) -> NDArray[np.uint8] | None:
    """Map a packed file; None when there is none, or it is not whole or not of this model."""
    if not path.is_file() or path.stat().st_size != HEADER_BYTES + size:
        return None
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        # Read and not through the mapping: pages that no kernel has used yet stay out of it.
        if header != _header(root, part, size, _checksum(file)):
            return None
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapping, np.uint8, offset=HEADER_BYTES)


def _checksum(file: BinaryIO) -> int:
    checksum = 0
    while block := file.read(_BLOCK_BYTES):
        checksum = zlib.crc32(block, checksum)
    return checksum
