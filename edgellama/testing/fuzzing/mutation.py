"""Changes to rows of msgpack values that leave them msgpack: so a fuzzer gets past the parser."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import msgpack

from edgellama.testing.fuzzing.examples import packed_examples
from edgellama.testing.fuzzing.feed import VALUES_MAX, values

if TYPE_CHECKING:
    from collections.abc import Callable

_EDGES: Final[tuple[Any, ...]] = (
    *(0, 1, 2, -1, 7, 31, 32, 33, 64, 255, 256, 511, 512, 513, 1024, 65535, 65536),
    *((1 << bits) + off for bits in (31, 32, 48, 63) for off in (-1, 0)),
    *((1 << 64) - 1, 0.0, -1.0, 1e308, float("inf"), float("nan"), True, False, None, "", b"", []),
)
_SENDERS: Final = 4


def mutated(data: bytes, bytes_max: int, seed: int) -> bytes:
    """Return the values with one to four changes; as they were where they grew too long."""
    dice = random.Random(seed)  # noqa: S311 - so that an input can be made again
    row = values(data)
    for _ in range(dice.randint(1, 4)):
        dice.choice(_CHANGES)(row, dice)
    changed = b"".join(_packed(value) for value in row[:VALUES_MAX])
    return changed if len(changed) <= bytes_max else data[:bytes_max]


def _packed(value: Any) -> bytes:
    try:
        packed: bytes = msgpack.packb(value)
    except (OverflowError, ValueError):  # a text that is no UTF-8, an integer beyond 64 bits
        return b"\xc0"
    return packed


def _insert_message(row: list[Any], dice: random.Random) -> None:
    message = deepcopy(dice.choice(_EXAMPLES))
    row.insert(dice.randint(0, len(row)), [dice.randrange(_SENDERS), message, b""])


def _insert_other(row: list[Any], dice: random.Random) -> None:
    other = dice.choice([None, 1, 60, 300, [dice.randrange(_SENDERS)]])
    row.insert(dice.randint(0, len(row)), other)


def _repeat(row: list[Any], dice: random.Random) -> None:
    if row:
        row.insert(dice.randint(0, len(row)), deepcopy(dice.choice(row)))


def _remove(row: list[Any], dice: random.Random) -> None:
    if row:
        del row[dice.randrange(len(row))]


def _change_leaf(row: list[Any], dice: random.Random) -> None:
    """Put an edge, a neighbour or a value from elsewhere in the row where some value stands."""
    places = _places(row)
    if not places:
        return
    inside, index = dice.choice(places)
    elsewhere, other = dice.choice(places)
    value = inside[index]
    choices = [dice.choice(_EDGES), deepcopy(elsewhere[other])]
    if type(value) is int:
        choices += [value + 1, value - 1, value ^ (1 << dice.randrange(64))]
    elif isinstance(value, bytes):
        choices += [dice.randbytes(len(value)), value + value[:1], value[:-1]]
    elif isinstance(value, list):
        choices += [value * 2, value[:-1]]
    inside[index] = dice.choice(choices)


def _places(row: list[Any]) -> list[tuple[list[Any], int]]:
    found: list[tuple[list[Any], int]] = []
    waiting = [row]
    while waiting:
        inside = waiting.pop()
        found.extend((inside, index) for index in range(len(inside)))
        waiting.extend(each for each in inside if isinstance(each, list))
    return found


_EXAMPLES: Final = tuple(packed_examples())
_CHANGES: Final[tuple[Callable[[list[Any], random.Random], None], ...]] = (
    *(_insert_message, _insert_other, _repeat, _remove),
    *(_change_leaf,) * 4,
)
