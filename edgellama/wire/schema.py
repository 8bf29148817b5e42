"""Shapes of msgpack values: each packs a checked value and unpacks one that came from outside.

Records are positional lists. A longer list than the shape knows is a later version's: the rest
is passed over, so messages can grow at their end. Everything else that does not fit raises
``WireError``.
"""

from __future__ import annotations

from dataclasses import fields
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from edgellama.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Shape(Protocol):
    """Turns a Python value into what msgpack carries, and back with every bound checked."""

    def pack(self, value: Any) -> Any:
        """Return the msgpack form of a value of ours."""

    def unpack(self, packed: Any) -> Any:
        """Return the value that ``packed`` stands for; WireError when it does not fit."""


class Whole:
    """An integer from ``lowest`` to ``highest``."""

    def __init__(self, lowest: int, highest: int) -> None:
        self._lowest, self._highest = lowest, highest

    def pack(self, value: int) -> int:
        """Return the integer itself."""
        assert self._lowest <= value <= self._highest
        return value

    def unpack(self, packed: Any) -> int:
        """Return the integer, its bounds checked."""
        if type(packed) is not int or not self._lowest <= packed <= self._highest:
            raise WireError(f"expected an integer from {self._lowest} to {self._highest}")
        return packed


class Unsigned(Whole):
    """An integer of so many bits, from 0 on."""

    def __init__(self, bits: int) -> None:
        super().__init__(0, (1 << bits) - 1)


class Real:
    """A finite floating-point number from ``lowest`` to ``highest``."""

    def __init__(self, lowest: float, highest: float) -> None:
        self._lowest, self._highest = lowest, highest

    def pack(self, value: float) -> float:
        """Return the number as a float."""
        return float(value)

    def unpack(self, packed: Any) -> float:
        """Return the number, its bounds checked."""
        # What is not a number is not between any two.
        if type(packed) not in (int, float) or not self._lowest <= packed <= self._highest:
            raise WireError(f"expected a number from {self._lowest} to {self._highest}")
        return float(packed)


class Flag:
    """True or false."""

    def pack(self, value: bool) -> bool:
        """Return the flag itself."""
        return value

    def unpack(self, packed: Any) -> bool:
        """Return the flag."""
        if type(packed) is not bool:
            raise WireError("expected true or false")
        return packed


class Text:
    """A string of at most ``characters_max`` characters."""

    def __init__(self, characters_max: int) -> None:
        self._characters_max = characters_max

    def pack(self, value: str) -> str:
        """Return the string, cut to the bound; what is no character becomes a question mark."""
        return value[: self._characters_max].encode(errors="replace").decode()

    def unpack(self, packed: Any) -> str:
        """Return the string, its length checked."""
        if type(packed) is not str or len(packed) > self._characters_max:
            raise WireError(f"expected a text of at most {self._characters_max} characters")
        return packed


class Host(Text):
    """An IPv4 address in dotted form, or empty: a name would have to be looked up."""

    def __init__(self) -> None:
        super().__init__(len("255.255.255.255"))

    def unpack(self, packed: Any) -> str:
        """Return the address, its form checked."""
        host = super().unpack(packed)
        try:
            return str(IPv4Address(host)) if host else host
        except ValueError as error:
            raise WireError("expected an IPv4 address") from error


class Hexadecimal:
    """Lower-case hexadecimal digits, carried as bytes; empty only where ``optional``."""

    def __init__(self, digits: int, *, optional: bool = False) -> None:
        self._lengths = (0, digits // 2) if optional else (digits // 2,)

    def pack(self, value: str) -> bytes:
        """Return the digits as bytes."""
        return bytes.fromhex(value)

    def unpack(self, packed: Any) -> str:
        """Return the digits, their number checked."""
        if type(packed) is not bytes or len(packed) not in self._lengths:
            raise WireError(f"expected {self._lengths[-1]} bytes")
        return packed.hex()


class Many:
    """A tuple of ``count_min`` to ``count_max`` values of one shape."""

    def __init__(self, item: Shape, count_max: int, count_min: int = 0) -> None:
        self._item, self._count_min, self._count_max = item, count_min, count_max

    def pack(self, value: Sequence[Any]) -> list[Any]:
        """Return the list of packed items."""
        assert self._count_min <= len(value) <= self._count_max
        return [self._item.pack(each) for each in value]

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        """Return the tuple of items, their number checked."""
        if type(packed) is not list or not self._count_min <= len(packed) <= self._count_max:
            raise WireError(f"expected a list of {self._count_min} to {self._count_max} items")
        return tuple(self._item.unpack(each) for each in packed)


class Record:
    """A dataclass or NamedTuple as a positional list of its fields."""

    def __init__(self, build: Callable[..., Any], *shapes: Shape) -> None:
        names = getattr(build, "_fields", None) or tuple(f.name for f in fields(build))  # type: ignore[arg-type]
        assert len(names) == len(shapes), build
        self._build, self._names, self._shapes = build, names, shapes

    def pack(self, value: Any) -> list[Any]:
        """Return the list of packed fields."""
        return [
            shape.pack(getattr(value, name))
            for name, shape in zip(self._names, self._shapes, strict=True)
        ]

    def unpack(self, packed: Any) -> Any:
        """Return the record; further fields than we know are passed over."""
        if type(packed) is not list or len(packed) < len(self._shapes):
            raise WireError(f"expected a list of at least {len(self._shapes)} fields")
        return self._build(
            *(shape.unpack(each) for shape, each in zip(self._shapes, packed, strict=False))
        )


class Choice:
    """One of a few strings."""

    def __init__(self, *choices: str) -> None:
        self._choices = choices

    def pack(self, value: str) -> int:
        """Return the place of the string among the choices."""
        return self._choices.index(value)

    def unpack(self, packed: Any) -> str:
        """Return the string at that place."""
        if type(packed) is not int or not 0 <= packed < len(self._choices):
            raise WireError(f"expected one of {', '.join(self._choices)}")
        return self._choices[packed]


class Kind(NamedTuple):
    """A message's class, the shapes of its header's fields, and its raw field, if any."""

    build: type[Any]
    header: tuple[Shape, ...]  # of the fields in their order
    body: str = ""  # the last field, where it travels raw behind the header
