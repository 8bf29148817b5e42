"""A file's metadata under the name of its architecture, each value checked as it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.model.gguf_header import file_fault

if TYPE_CHECKING:
    from edgellama.errors import ModelFileError
    from edgellama.model.gguf import GgufFile


class ConfigKeys:
    """Metadata under ``<architecture>.``; every method raises ModelFileError for a wrong value."""

    def __init__(self, gguf: GgufFile, architecture: str) -> None:
        self._gguf = gguf
        self._architecture = architecture

    def integer(self, key: str, maximum: int, default: int | None = None, minimum: int = 1) -> int:
        """Return a whole number within ``minimum`` to ``maximum``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._fault(key, f"holds {_shown(value)}, not one whole number")
        if not minimum <= value <= maximum:
            raise self._fault(key, f"is {value}, not within {minimum} to {maximum}")
        return value

    def number(
        self, key: str, minimum: float, maximum: float, default: float | None = None
    ) -> float:
        """Return a number above ``minimum`` and up to ``maximum``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._fault(key, f"holds {_shown(value)}, not one number")
        if not minimum < float(value) <= maximum:  # not a number fails every comparison
            raise self._fault(key, f"is {value}, not above {minimum:g} and up to {maximum:g}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._fault(key, f"holds {_shown(value)}, not text")
        return value

    def _value(self, key: str, default: float | str | None) -> object:
        value = self._gguf.metadata.get(f"{self._architecture}.{key}", default)
        if value is None:
            raise self._fault(key, "is missing")
        return value

    def _fault(self, key: str, fault: str) -> ModelFileError:
        return file_fault(self._gguf.path_name, f"key {self._architecture}.{key} {fault}")


def _shown(value: object) -> str:
    """Describe a metadata value without repeating what may be long or unprintable."""
    return f"a value of type {type(value).__name__}"
