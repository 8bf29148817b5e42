"""Writing GGUF files: the header from values and a tensor table, version 3, little-endian.

Source: ggml/docs/gguf.md. What is written here passes every check of the reader.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.model.gguf_layout import ALIGNMENT_DEFAULT, MAGIC, SCALAR_CODES, ValueType
from edgellama.model.quantization import OUTPUT_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VERSION: Final = 3
ALIGNMENT_KEY: Final = "general.alignment"

_ITEM_TYPES: Final = {
    "bool": ValueType.BOOL,
    "int32": ValueType.INT32,
    "uint32": ValueType.UINT32,
    "float32": ValueType.FLOAT32,
}


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written; ``shape`` in GGUF's order, columns first."""

    name: str
    kind_name: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows, over all dimensions after the first."""
        return prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        return OUTPUT_KINDS[self.kind_name].row_bytes(self.shape[0])

    @property
    def bytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes


def encoded(value: bool | int | float | str | Sequence[str] | np.ndarray) -> bytes:
    """Return a metadata value with its type before it.

    A whole number is written as uint32 (as nearly every key wants it), a float as float32, an
    array as the type that its dtype names.
    """
    if isinstance(value, bool):
        return _typed(ValueType.BOOL, struct.pack("<B", value))
    if isinstance(value, int):
        return _typed(ValueType.UINT32, struct.pack("<I", value))
    if isinstance(value, float):
        return _typed(ValueType.FLOAT32, struct.pack("<f", value))
    if isinstance(value, str):
        return _typed(ValueType.STRING, _string(value))
    if isinstance(value, np.ndarray):
        item_type = _ITEM_TYPES[value.dtype.name]
        content = value.astype(np.dtype("<" + SCALAR_CODES[item_type])).tobytes()
    else:
        item_type = ValueType.STRING
        content = b"".join(map(_string, value))
    return _typed(ValueType.ARRAY, struct.pack("<IQ", item_type, len(value)) + content)


def _typed(value_type: ValueType, content: bytes) -> bytes:
    return struct.pack("<I", value_type) + content


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def header(metadata: Mapping[str, bytes], tensors: Sequence[OutputTensor]) -> bytes:
    """Return all that precedes the tensor data, the padding after it included.

    ``metadata``: `encoded` values by key. Each tensor's data begins at a multiple of 32 bytes.
    """
    assert ALIGNMENT_KEY not in metadata
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), value]
    offset = 0
    for tensor in tensors:
        dimensions = len(tensor.shape)
        number = OUTPUT_KINDS[tensor.kind_name].number
        place = struct.pack(f"<I{dimensions}QIQ", dimensions, *tensor.shape, number, offset)
        parts += [_string(tensor.name), place]
        offset += _aligned(tensor.bytes)
    joined = b"".join(parts)
    return joined + padding(len(joined))


def file_bytes(metadata: Mapping[str, bytes], tensors: Sequence[OutputTensor]) -> int:
    """Return the size of the file in bytes."""
    return len(header(metadata, tensors)) + sum(_aligned(tensor.bytes) for tensor in tensors)


def padding(size: int) -> bytes:
    """Return the zeros that follow ``size`` bytes."""
    return bytes(_aligned(size) - size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT_DEFAULT) * ALIGNMENT_DEFAULT


def file_parts(
    metadata: Mapping[str, bytes],
    tensors: Sequence[OutputTensor],
    data: Iterator[tuple[OutputTensor, bytes]],
) -> Iterator[bytes]:
    """Yield the file from front to end; ``data`` gives the tensors' rows in order, in pieces."""
    yield header(metadata, tensors)
    written = 0
    for tensor, piece in data:
        yield piece
        written += len(piece)
        if written == tensor.bytes:
            yield padding(written)
            written = 0
    assert written == 0
