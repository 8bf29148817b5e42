"""Files in the safetensors format: a JSON table of tensors, then their bytes.

Source: the format's description in the safetensors library. The file is untrusted: every tensor
lies within the file and has the bytes that its shape says before any of them is read.
"""

from __future__ import annotations

import json
import mmap
import struct
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from edgellama.model.gguf_header import file_fault, file_unsupported, quoted
from edgellama.model.json_fields import JsonFields

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

HEADER_BYTES_MAX: Final = 100_000_000  # as the library has it
TENSORS_MAX: Final = 1 << 20
FILES_MAX: Final = 1000
DIMENSIONS_MAX: Final = 8

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"

ELEMENT_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}
"""The types that can be read, which GGUF calls by the same names."""

_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = "__metadata__"


class StoredTensor(NamedTuple):
    """Where a tensor lies; ``shape`` as in the file, rows first."""

    kind_name: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    @property
    def columns(self) -> int:
        """Numbers in a row; 1 for a single number."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Rows, over all dimensions but the last."""
        return prod(self.shape[:-1])


class SafetensorsFile:
    """One mapped file; tensors of types that cannot be read are listed all the same."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            with path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise file_fault(self.name, f"cannot be read: {error}") from None
        self.tensors = self._read_table()

    def rows(self, name: str, first: int, past: int) -> NDArray[np.uint8]:
        """Return rows of a tensor as they lie in the file: uint8 [n, bytes of a row]."""
        tensor = self.tensors[name]
        if tensor.kind_name not in ELEMENT_BYTES:
            raise file_unsupported(
                self.name,
                f"tensor {quoted(name)} has type {quoted(tensor.kind_name)}; "
                f"supported are {', '.join(ELEMENT_BYTES)}",
            )
        assert 0 <= first <= past <= tensor.rows
        row_bytes = tensor.columns * ELEMENT_BYTES[tensor.kind_name]
        flat = np.frombuffer(
            self._mapping,
            np.uint8,
            count=(past - first) * row_bytes,
            offset=tensor.offset + first * row_bytes,
        )
        return flat.reshape(past - first, row_bytes)

    def release_pages(self) -> None:
        """Let the system use the memory that holds pages of the file for other things."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def _read_table(self) -> Mapping[str, StoredTensor]:
        size = len(self._mapping)
        if size < _LENGTH.size:
            raise file_fault(self.name, "is not a safetensors file: it is too short")
        length: int = _LENGTH.unpack_from(self._mapping)[0]
        start = _LENGTH.size + length
        if length > HEADER_BYTES_MAX or start > size:
            raise file_fault(self.name, f"is not a safetensors file: a table of {length} bytes")
        try:
            table = json.loads(self._mapping[_LENGTH.size : start])
        except (ValueError, RecursionError):
            raise file_fault(self.name, "is not a safetensors file: its table is no JSON") from None
        if not isinstance(table, dict) or len(table) > TENSORS_MAX:
            raise file_fault(self.name, "has no table of tensors")
        return {
            name: self._placed(name, entry, start, size)
            for name, entry in table.items()
            if name != _METADATA
        }

    def _placed(self, name: str, entry: Any, start: int, size: int) -> StoredTensor:
        field = f"tensor {quoted(name)}"
        if not isinstance(entry, dict):
            raise file_fault(self.name, f"{field} is not described")
        kind_name = entry.get("dtype")
        shape = _whole_numbers(entry.get("shape"), DIMENSIONS_MAX)
        offsets = _whole_numbers(entry.get("data_offsets"), 2)
        if not isinstance(kind_name, str) or shape is None:
            raise file_fault(self.name, f"{field} has no type and shape")
        if offsets is None or len(offsets) != 2:
            raise file_fault(self.name, f"{field} has no place in the file")
        first, past = offsets
        expected = prod(shape) * ELEMENT_BYTES.get(kind_name, 0)
        if not first <= past <= size - start:
            raise file_fault(self.name, f"the file is cut off: {field} reaches past its end")
        if kind_name in ELEMENT_BYTES and past - first != expected:
            raise file_fault(self.name, f"{field} has {past - first} bytes, not {expected}")
        return StoredTensor(kind_name, shape, start + first)


class SafetensorsFolder:
    """All tensors of a model that lies in one file or, with an index, in several."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        index = folder / INDEX_FILE
        if index.is_file():
            names = set(JsonFields.read(index).child("weight_map").fields.values())
            if not all(_is_file_name(name) for name in names) or not 1 <= len(names) <= FILES_MAX:
                raise file_fault(str(index), "does not name files of this folder")
            files = [SafetensorsFile(folder / name) for name in sorted(names)]
        elif (folder / SINGLE_FILE).is_file():
            files = [SafetensorsFile(folder / SINGLE_FILE)]
        else:
            raise file_fault(self.name, f"has neither {SINGLE_FILE} nor {INDEX_FILE}")
        self._files = files
        self._home = {name: file for file in files for name in file.tensors}

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by its name."""
        return {name: file.tensors[name] for name, file in self._home.items()}

    def rows(self, name: str, first: int, past: int) -> NDArray[np.uint8]:
        """Return rows of a tensor as they lie in its file: uint8 [n, bytes of a row]."""
        return self._home[name].rows(name, first, past)

    def release_pages(self) -> None:
        """Let the system use the memory that holds pages of the files for other things."""
        for file in self._files:
            file.release_pages()


def _whole_numbers(value: Any, most: int) -> tuple[int, ...] | None:
    """Return a list of at most so many numbers from 0 to 2**48, None where it is none."""
    if not isinstance(value, list) or len(value) > most:
        return None
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in value):
        return None
    return tuple(value)


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:\0")
