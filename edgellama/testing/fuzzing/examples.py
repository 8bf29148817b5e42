"""An honest message of every kind, made from the shapes of its fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack

from edgellama.errors import WireError
from edgellama.wire import messages
from edgellama.wire.schema import Many, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.wire.schema import Kind, Shape

_LEAVES: Final[tuple[Any, ...]] = (
    *(0, 1, 0.5, True, None, [], "", "a", "10.0.0.1"),
    *(bytes(range(count)) for count in (8, 16, 32)),
)
_MANY_MAX: Final = 3


def kinds() -> dict[int, Kind]:
    """Return every kind of message, by its number on the wire."""
    return messages._KINDS


def packed_examples() -> Iterator[list[Any]]:
    """Yield for every kind its number and fields, with empty lists and with some items."""
    for number, kind in kinds().items():
        for items in (0, 1, _MANY_MAX):
            packed = [number, *(example(shape, items) for shape in kind.header)]
            yield packed
            # Numbers of which some must be above others: a step's count and its rows.
            yield [number, *(1 if type(each) is int else each for each in packed[1:])]


def example(shape: Shape, items: int = 1) -> Any:
    """Return a packed value that the shape accepts; lists have as many items, if they may."""
    if isinstance(shape, Record):
        return [example(each, items) for each in shape._shapes]
    if isinstance(shape, Many):
        count = max(shape._count_min, min(items, shape._count_max))
        return [example(shape._item, items) for _ in range(count)]
    for leaf in _LEAVES:
        try:
            shape.unpack(leaf)
        except WireError:
            continue
        return leaf
    raise AssertionError(f"no example for {shape}")


def message_bytes(packed: Any, body: bytes = b"") -> bytes:
    """Return a message with this header, whatever it holds."""
    header: bytes = msgpack.packb(packed)
    return len(header).to_bytes(4, "little") + header + body
