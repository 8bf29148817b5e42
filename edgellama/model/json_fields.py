"""JSON files of a model's folder: untrusted, bounded, and every value checked as it is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from edgellama.model.gguf_header import file_fault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgellama.errors import ModelFileError

JSON_BYTES_MAX: Final = 128 << 20  # a tokenizer of 260,000 tokens takes about 35 MB
INTEGER_MAX: Final = (1 << 32) - 1  # a GGUF holds these numbers in 32 bits

_MISSING: Final = object()


class JsonFields:
    """The fields of one JSON object; ``name`` is the file's, for messages.

    A value of null counts as missing, as these files use it so.
    """

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = fields

    @classmethod
    def read(cls, path: Path) -> JsonFields:
        """Read a file that holds one object; ModelFileError where it does not."""
        try:
            size = path.stat().st_size
            if size > JSON_BYTES_MAX:
                raise file_fault(str(path), f"has {size} bytes, over {JSON_BYTES_MAX}")
            value = json.loads(path.read_bytes())
        except OSError as error:
            raise file_fault(str(path), f"cannot be read: {error.strerror or error}") from None
        except (ValueError, RecursionError):
            raise file_fault(str(path), "is not JSON") from None
        if not isinstance(value, dict):
            raise file_fault(str(path), "is not a JSON object")
        return cls(str(path), value)

    def fault(self, key: str, fault: str) -> ModelFileError:
        """Return the error for a value; ``fault`` follows its name."""
        return file_fault(self.name, f"key {key!r} {fault}")

    def value(self, key: str) -> Any:
        """Return a value as it is, None where it is missing."""
        return self.fields.get(key)

    def integer(self, key: str, default: object = _MISSING) -> int:
        """Return a whole number from 0 to `INTEGER_MAX`."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fault(key, "is no whole number")
        if not 0 <= value <= INTEGER_MAX:
            raise self.fault(key, f"is {value}, not within 0 to {INTEGER_MAX}")
        return value

    def number(self, key: str, default: object = _MISSING) -> float:
        """Return a finite number."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fault(key, "is no number")
        if not abs(value) < 1e30:  # not a number fails every comparison
            raise self.fault(key, f"is {value}, which is out of bounds")
        return float(value)

    def flag(self, key: str, default: object = _MISSING) -> bool:
        """Return a truth value."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, "is neither true nor false")
        return value

    def text(self, key: str, default: object = _MISSING) -> str:
        """Return a text."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.fault(key, "is no text")
        return value

    def child(self, key: str) -> JsonFields:
        """Return an object within this one; an empty one where it is missing."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.fault(key, "is no object")
        return JsonFields(self.name, value)

    def children(self, key: str) -> list[JsonFields]:
        """Return a list of objects; an empty one where it is missing."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.fault(key, "is no list of objects")
        return [JsonFields(self.name, each) for each in value]

    def _value(self, key: str, default: object) -> Any:
        value = self.fields.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise self.fault(key, "is missing")
        return default
