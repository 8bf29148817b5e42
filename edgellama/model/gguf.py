"""A GGUF model file: checked metadata, and tensors without a copy.

The file is untrusted. What `GgufFile` holds has passed every check of docs/spec/gguf.md: each
tensor lies aligned inside the file and none overlaps another.
"""

from __future__ import annotations

import mmap
import os
import stat
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from edgellama.errors import MisuseError
from edgellama.model.gguf_header import (
    Header,
    Metadata,
    MetadataValue,
    TensorEntry,
    file_fault,
    file_unsupported,
    quoted,
    read_header,
)
from edgellama.model.gguf_layout import ALIGNMENT_DEFAULT, ALIGNMENT_MAX, ALIGNMENT_MIN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["GgufFile", "MetadataValue", "TensorInfo"]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is; ``shape`` is in GGUF's order, columns first."""

    name: str
    kind_name: str  # "Q4_0" and the like
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    bytes: int

    @property
    def columns(self) -> int:
        """Weights in a row."""
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Rows, over all dimensions after the first; 1 for a vector."""
        return prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        return self.bytes // self.rows


class GgufFile:
    """A parsed GGUF file over its bytes; make one with `open`, `parse` or `parse_header`.

    ``path_name``: the file's name for messages. ``metadata`` and ``tensors`` are in file order
    and outlive `close`. ``data_offset``: where tensor data starts, in bytes. ``alignment``: that
    of the tensors' offsets, in bytes.
    """

    path_name: str
    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    data_offset: int
    file_bytes: int

    def __init__(self, buffer: memoryview, name: str, file_bytes: int) -> None:
        header = read_header(buffer, name)
        _refuse_parts(header.metadata, name)
        self.path_name = name
        self.version = header.version
        self.metadata = header.metadata
        self.file_bytes = file_bytes
        self.alignment = _alignment(header.metadata, name)
        self.data_offset = -(-header.bytes // self.alignment) * self.alignment
        self.tensors = _placed_tensors(header, name, self.alignment, self.data_offset, file_bytes)
        self._extents = header.extents
        self._buffer = buffer
        self._mapping: mmap.mmap | None = None

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Map a file and check it; tensor data is read from the disk when it is used.

        Raises MisuseError where there is no such file or it may not be read, ModelFileError for
        a malformed or truncated one, UnsupportedModelError for a kind that is not supported.
        """
        mapping = _mapped(Path(path))
        view = memoryview(mapping)
        gguf = cls(view, str(path), len(view))
        gguf._mapping = mapping
        return gguf

    @classmethod
    def parse(cls, buffer: memoryview | bytes, name: str) -> GgufFile:
        """Check a whole file that is in memory; ``name`` stands for it in messages."""
        return cls.parse_header(buffer, name, len(memoryview(buffer).cast("B")))

    @classmethod
    def parse_header(cls, buffer: memoryview | bytes, name: str, file_bytes: int) -> GgufFile:
        """Check a file of ``file_bytes`` of which only the beginning is present.

        ``buffer`` must reach to the end of the tensor table; the first ``data_offset`` bytes of
        the file always do. Tensors that it does not hold cannot be read.
        """
        return cls(memoryview(buffer).cast("B").toreadonly(), name, file_bytes)

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def encoded_value(self, key: str) -> bytes:
        """Return a metadata value as it lies in the file, its type before it.

        So it can be written into another file without a change. KeyError for an unknown key.
        """
        first, past = self._extents[key]
        return bytes(self._buffer[first:past])

    def tensor_bytes(self, name: str) -> memoryview:
        """Return the raw bytes of a tensor, without a copy and read-only.

        Raises ModelFileError when the file has no such tensor or its bytes are not here.
        """
        info = self._tensor(name)
        return self._buffer[info.offset : info.offset + info.bytes]

    def tensor_rows(self, name: str, first_row: int, past_row: int) -> NDArray[np.uint8]:
        """Return rows of a tensor as they lie in the file: uint8 [n, row_bytes], read-only.

        Raises ModelFileError when the file has no such tensor or its bytes are not here.
        """
        info = self._tensor(name)
        assert 0 <= first_row <= past_row <= info.rows, (name, first_row, past_row, info.rows)
        rows = past_row - first_row
        flat = np.frombuffer(
            self._buffer,
            dtype=np.uint8,
            count=rows * info.row_bytes,
            offset=info.offset + first_row * info.row_bytes,
        )
        return flat.reshape(rows, info.row_bytes)

    def release_pages(self) -> None:
        """Tell the system that memory holding pages of the file may be used for other things.

        Nothing is lost: what is read again comes from the disk. Does nothing where the system
        has no such call or the file is not mapped.
        """
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file; it stays mapped only while a view of a tensor is still in use."""
        self._buffer = memoryview(b"")
        self._mapping = None

    def _tensor(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise file_fault(self.path_name, f"tensor {quoted(name)} is missing")
        if info.offset + info.bytes > len(self._buffer):
            raise file_fault(self.path_name, f"the weights of tensor {quoted(name)} are not here")
        return info


def _mapped(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise MisuseError(f"{path} is a folder, not a model file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            raise MisuseError(f"{path} is not a regular file, which a model must be")
        if status.st_size == 0:
            raise file_fault(str(path), "the file is empty")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise MisuseError(f"there is no model file {path}") from None
    except PermissionError:
        raise MisuseError(f"{path} may not be read: its permissions forbid it") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise MisuseError(f"{path} cannot be read: {reason}") from None
    except ValueError:  # a path with a NUL in it
        raise MisuseError(f"{str(path)!r} is not a path") from None


def _refuse_parts(metadata: Metadata, name: str) -> None:
    parts = metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise file_unsupported(
            name, f"the file is one of {parts} parts of a model; merge them with gguf-split first"
        )


def _alignment(metadata: Metadata, name: str) -> int:
    value = metadata.get("general.alignment", ALIGNMENT_DEFAULT)
    is_power = isinstance(value, int) and value > 0 and value & (value - 1) == 0
    if not isinstance(value, int) or not is_power or not ALIGNMENT_MIN <= value <= ALIGNMENT_MAX:
        shown = value if isinstance(value, int) else f"a value of type {type(value).__name__}"
        raise file_fault(
            name,
            f"metadata key 'general.alignment' is {shown}, "
            f"not a power of two from {ALIGNMENT_MIN} to {ALIGNMENT_MAX}",
        )
    return value


def _placed_tensors(
    header: Header, name: str, alignment: int, data_offset: int, file_bytes: int
) -> Mapping[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for entry in header.tensors:
        if entry.name in tensors:
            raise file_fault(name, f"tensor {quoted(entry.name)} appears twice")
        tensors[entry.name] = _placed(entry, name, alignment, data_offset, file_bytes)
    in_place = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in pairwise(in_place):
        if before.offset + before.bytes > after.offset:
            raise file_fault(
                name, f"tensor {quoted(after.name)} overlaps tensor {quoted(before.name)}"
            )
    return MappingProxyType(tensors)


def _placed(
    entry: TensorEntry, name: str, alignment: int, data_offset: int, file_bytes: int
) -> TensorInfo:
    field = f"tensor {quoted(entry.name)}"
    columns = entry.shape[0]
    if 0 in entry.shape:
        raise file_fault(name, f"{field} has the empty shape {list(entry.shape)}")
    if columns % entry.kind.block_size:
        raise file_fault(
            name,
            f"{field} has rows of {columns} weights, "
            f"no multiple of the {entry.kind.block_size} in a block of {entry.kind.name}",
        )
    if entry.offset % alignment:
        raise file_fault(
            name, f"{field} starts at offset {entry.offset}, no multiple of {alignment}"
        )
    # Python's integers have no limit, so these products and sums cannot wrap around.
    tensor_bytes = prod(entry.shape) // entry.kind.block_size * entry.kind.block_bytes
    offset = data_offset + entry.offset
    if offset + tensor_bytes > file_bytes:
        raise file_fault(
            name,
            f"the file is cut off: {field} takes bytes {offset} to {offset + tensor_bytes}, "
            f"and the file has {file_bytes}",
        )
    return TensorInfo(entry.name, entry.kind.name, entry.shape, offset, tensor_bytes)
