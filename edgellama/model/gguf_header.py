"""Reading the header of a GGUF file from untrusted bytes: metadata and the tensor table.

Everything is bounded before memory is taken for it, and every fault names the field it is in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from edgellama.errors import ModelFileError, UnsupportedModelError
from edgellama.model.gguf_layout import (
    ARRAY_DEPTH_MAX,
    ARRAY_ITEMS_MAX,
    DIMENSIONS_MAX,
    HEADER_BYTES_MAX,
    KEY_BYTES_MAX,
    KEYS_MAX,
    MAGIC,
    SCALAR_CODES,
    STRING_BYTES_MAX,
    TENSOR_KINDS,
    TENSOR_NAME_BYTES_MAX,
    TENSORS_MAX,
    UNSUPPORTED_TENSOR_KINDS,
    VERSIONS,
    TensorKind,
    ValueType,
)

MetadataScalar = bool | int | float | str
MetadataValue = MetadataScalar | tuple[MetadataScalar | tuple[MetadataScalar, ...], ...]
"""A GGUF array is a tuple; an array of arrays a tuple of tuples."""

_LENGTH = struct.Struct("<Q")
_QUOTED_CHARACTERS_MAX = 80


class TensorEntry(NamedTuple):
    """One row of the tensor table: its extent in the file is not checked yet."""

    name: str
    kind: TensorKind
    shape: tuple[int, ...]  # columns first
    offset: int  # bytes from the start of the tensor data


class Header(NamedTuple):
    """What precedes the tensor data; ``bytes`` is its length without the padding after it.

    ``extents``: where in the file the value of each metadata key lies, its type before it.
    """

    version: int
    metadata: Metadata
    extents: Mapping[str, tuple[int, int]]
    tensors: list[TensorEntry]
    bytes: int


def quoted(text: str) -> str:
    """Return text from a file fit for a one-line message: quoted, escaped and not too long."""
    shortened = text[:_QUOTED_CHARACTERS_MAX]
    return repr(shortened) + ("..." if shortened != text else "")


def file_fault(name: str, fault: str) -> ModelFileError:
    """Return the error for a fault of the file ``name``; the message is one line."""
    return ModelFileError(f"{_one_line(name)}: {fault}")


def file_unsupported(name: str, reason: str) -> UnsupportedModelError:
    """Return the error for a sound file ``name`` that cannot be used; the message is one line."""
    return UnsupportedModelError(f"{_one_line(name)}: {reason}")


def _one_line(name: str) -> str:
    return name if name.isprintable() else repr(name)


class Metadata(Mapping[str, MetadataValue]):
    """The metadata of a file: checked once, arrays kept as their bytes and decoded when asked for.

    A vocabulary of 260,000 strings takes 4 MB so instead of 25 MB, on nodes that never use it.
    """

    def __init__(self, entries: Mapping[str, MetadataScalar | _EncodedArray]) -> None:
        self._entries = entries

    def __getitem__(self, key: str) -> MetadataValue:
        value = self._entries[key]
        return value.decoded() if isinstance(value, _EncodedArray) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class _EncodedArray(NamedTuple):
    encoded: bytes  # a whole array as in the file, already read once without a fault
    field: str

    def decoded(self) -> MetadataValue:
        return _Cursor(memoryview(self.encoded), self.field).array(self.field, ARRAY_DEPTH_MAX)


class _Cursor:
    """A position in the header; each method reads one thing and names ``field`` in its error."""

    def __init__(self, buffer: memoryview, name: str) -> None:
        self._buffer = buffer
        self._name = name
        self.position = 0

    def fault(self, field: str, fault: str) -> ModelFileError:
        return file_fault(self._name, f"{field} {fault}")

    def require(self, count: int, field: str) -> int:
        """Return where the next ``count`` bytes start and move past them."""
        start = self.position
        if count > min(len(self._buffer), HEADER_BYTES_MAX) - start:
            if start + count > HEADER_BYTES_MAX and len(self._buffer) > HEADER_BYTES_MAX:
                raise self.fault(
                    field, f"reaches past the {HEADER_BYTES_MAX >> 20} MiB that a header may take"
                )
            raise self.fault(
                field,
                f"is cut off: it needs {count} bytes at byte {start}, "
                f"where the file has {len(self._buffer) - start} left",
            )
        self.position = start + count
        return start

    def scalar(self, value_type: ValueType, field: str) -> bool | int | float:
        return self.scalars(value_type, 1, field)[0]

    def scalars(
        self, value_type: ValueType, count: int, field: str
    ) -> tuple[bool | int | float, ...]:
        packed = struct.Struct(f"<{count}{SCALAR_CODES[value_type]}")
        start = self.require(packed.size, field)
        values: tuple[bool | int | float, ...] = packed.unpack_from(self._buffer, start)
        if value_type is not ValueType.BOOL:
            return values
        if values and max(values) > 1:
            raise self.fault(field, f"holds {int(max(values))} where a boolean is 0 or 1")
        return tuple(map(bool, values))

    def count(self, maximum: int, field: str) -> int:
        """Read an unsigned 64-bit number that may be at most ``maximum``."""
        value: int = _LENGTH.unpack_from(self._buffer, self.require(8, field))[0]
        if value > maximum:
            raise self.fault(field, f"is {value}, and at most {maximum} is allowed")
        return value

    def number32(self, field: str) -> int:
        return int(self.scalar(ValueType.UINT32, field))

    def value_type(self, field: str) -> ValueType:
        number = self.number32(field)
        try:
            return ValueType(number)
        except ValueError:
            raise self.fault(field, f"has the unknown value type {number}") from None

    def string(self, bytes_max: int, field: str) -> str:
        length = self.count(bytes_max, f"the length of {field}")
        start = self.require(length, field)
        try:
            return str(self._buffer[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise self.fault(field, f"at byte {start} is not UTF-8") from None

    def strings(self, count: int, field: str) -> tuple[str, ...]:
        """Read ``count`` strings; the loop is spelled out, for vocabularies are long."""
        buffer, position = self._buffer, self.position
        end = min(len(buffer), HEADER_BYTES_MAX)
        length_at = _LENGTH.unpack_from
        texts: list[str] = []
        for _ in range(count):
            past = position + 8
            if past <= end:
                past += length_at(buffer, position)[0]
            if past > end or past - position > STRING_BYTES_MAX:
                self.position = position
                self.string(STRING_BYTES_MAX, f"item {len(texts)} of {field}")  # raises
            try:
                texts.append(str(buffer[position + 8 : past], "utf-8"))
            except UnicodeDecodeError:
                raise self.fault(field, f"has an item {len(texts)} that is not UTF-8") from None
            position = past
        self.position = position
        return tuple(texts)

    def array(self, field: str, depth: int) -> tuple[MetadataScalar | tuple[MetadataScalar], ...]:
        item_type = self.value_type(field)
        count = self.count(ARRAY_ITEMS_MAX, f"the number of items of {field}")
        if item_type is ValueType.STRING:
            return self.strings(count, field)
        if item_type is not ValueType.ARRAY:
            return self.scalars(item_type, count, field)
        if depth == 1:
            raise self.fault(field, f"nests arrays more than {ARRAY_DEPTH_MAX} deep")
        return tuple(self.array(field, depth - 1) for _ in range(count))  # type: ignore[misc]

    def value(self, field: str) -> MetadataScalar | _EncodedArray:
        value_type = self.value_type(field)
        if value_type is ValueType.STRING:
            return self.string(STRING_BYTES_MAX, field)
        if value_type is not ValueType.ARRAY:
            return self.scalar(value_type, field)
        start = self.position
        self.array(field, ARRAY_DEPTH_MAX)  # for its faults; decoded again when asked for
        return _EncodedArray(bytes(self._buffer[start : self.position]), field)


def read_header(buffer: memoryview, name: str) -> Header:
    """Read the header at the start of ``buffer``; ``name`` is the file's, for messages.

    Raises ModelFileError for a fault, UnsupportedModelError for a big-endian file, another
    version or a known tensor type that no kernel computes.
    """
    cursor = _Cursor(buffer, name)
    version = _version(cursor, name, bytes(buffer[: len(MAGIC)]))
    tensor_count = cursor.count(TENSORS_MAX, "the number of tensors")
    key_count = cursor.count(KEYS_MAX, "the number of metadata keys")
    entries: dict[str, MetadataScalar | _EncodedArray] = {}
    extents: dict[str, tuple[int, int]] = {}
    for index in range(key_count):
        key = cursor.string(KEY_BYTES_MAX, f"the name of metadata key {index}")
        if key in entries:
            raise cursor.fault(f"metadata key {quoted(key)}", "appears twice")
        start = cursor.position
        entries[key] = cursor.value(f"metadata key {quoted(key)}")
        extents[key] = (start, cursor.position)
    tensors = [_tensor_entry(cursor, name, index) for index in range(tensor_count)]
    return Header(version, Metadata(entries), extents, tensors, cursor.position)


def _version(cursor: _Cursor, name: str, magic: bytes) -> int:
    if magic != MAGIC:
        raise file_fault(name, f"is not a GGUF file: it begins with {magic!r}, not with {MAGIC!r}")
    cursor.position = len(MAGIC)
    version = cursor.number32("the version")
    if version in VERSIONS:
        return version
    # The version is small, so its bytes in the other order are the sign of a big-endian file.
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise file_unsupported(name, "the file is big-endian; only little-endian is supported")
    raise file_unsupported(
        name, f"GGUF version {version} is not supported; supported: {', '.join(map(str, VERSIONS))}"
    )


def _tensor_entry(cursor: _Cursor, name: str, index: int) -> TensorEntry:
    tensor_name = cursor.string(TENSOR_NAME_BYTES_MAX, f"the name of tensor {index}")
    field = f"tensor {quoted(tensor_name)}"
    dimensions = cursor.number32(f"{field}: the number of dimensions")
    if not 1 <= dimensions <= DIMENSIONS_MAX:
        raise cursor.fault(field, f"has {dimensions} dimensions, not 1 to {DIMENSIONS_MAX}")
    shape = tuple(map(int, cursor.scalars(ValueType.UINT64, dimensions, f"{field}: the shape")))
    kind = _tensor_kind(cursor, name, field)
    offset = int(cursor.scalar(ValueType.UINT64, f"{field}: the offset"))
    return TensorEntry(tensor_name, kind, shape, offset)


def _tensor_kind(cursor: _Cursor, name: str, field: str) -> TensorKind:
    number = cursor.number32(f"{field}: the type")
    kind = TENSOR_KINDS.get(number)
    if kind is not None:
        return kind
    if number in UNSUPPORTED_TENSOR_KINDS:
        supported = ", ".join(kind.name for kind in TENSOR_KINDS.values())
        raise file_unsupported(
            name,
            f"{field} has type {UNSUPPORTED_TENSOR_KINDS[number]}, which is not supported yet; "
            f"supported: {supported}",
        )
    raise cursor.fault(field, f"has the unknown type {number}")
