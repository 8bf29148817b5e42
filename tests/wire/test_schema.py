"""The shapes that messages are made of, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from edgellama.errors import WireError
from edgellama.wire.schema import (
    Choice,
    Flag,
    Hexadecimal,
    Host,
    Many,
    Real,
    Record,
    Shape,
    Text,
    Unsigned,
    Whole,
)


class Pair(NamedTuple):
    left: int
    right: str


@dataclass(frozen=True)
class Holder:
    pairs: tuple[Pair, ...]
    flag: bool


PAIR = Record(Pair, Unsigned(8), Text(3))
HOLDER = Record(Holder, Many(PAIR, 2), Flag())

FITS: list[tuple[Shape, Any, Any]] = [
    (Unsigned(8), 255, 255),
    (Unsigned(64), (1 << 64) - 1, (1 << 64) - 1),
    (Whole(1, 3), 1, 1),
    (Whole(1, 3), 3, 3),
    (Real(0.0, 2.0), 2.0, 2.0),
    (Flag(), False, False),
    (Text(3), "für", "für"),
    (Host(), "", ""),
    (Host(), "192.168.1.20", "192.168.1.20"),
    (Hexadecimal(4), "0aff", b"\x0a\xff"),
    (Hexadecimal(4, optional=True), "", b""),
    (Choice("a", "b"), "b", 1),
    (Many(Unsigned(8), 2), (), []),
    (Many(Unsigned(8), 2, 1), (1, 2), [1, 2]),
    (PAIR, Pair(1, "x"), [1, "x"]),
    (HOLDER, Holder((Pair(1, "x"),), True), [[[1, "x"]], True]),
]


@pytest.mark.parametrize(("shape", "value", "packed"), FITS)
def test_fits(shape: Shape, value: Any, packed: Any) -> None:
    assert shape.pack(value) == packed
    assert shape.unpack(packed) == value
    assert type(shape.unpack(packed)) is type(value)


UNFIT: list[tuple[Shape, Any]] = [
    *((Unsigned(8), each) for each in (256, -1, True, 1.0, "1", None, [1])),
    *((Whole(1, 3), each) for each in (0, 4)),
    *((Real(0.0, 2.0), each) for each in (-0.1, 2.1, float("nan"), float("inf"), True, "1", None)),
    (Real(0.0, 2.0), 10**400),
    *((Flag(), each) for each in (0, 1, None, "true")),
    *((Text(3), each) for each in ("four", b"abc", None, 3)),
    *((Host(), each) for each in ("localhost", "10.0.0", "10.0.0.256", "::1", "1.2.3.4 ", 5)),
    *((Host(), each) for each in ("010.0.0.1", "\u0661.2.3.4", "10.0.0.1/24", "1" * 40)),
    *((Hexadecimal(4), each) for each in (b"", b"\0", b"\0\0\0", "0aff", None)),
    (Hexadecimal(4, optional=True), b"\0"),
    *((Choice("a", "b"), each) for each in (2, -1, "a", True, None)),
    *((Many(Unsigned(8), 2, 1), each) for each in ([], [1, 2, 3], [256], (1,), "ab", None)),
    *((PAIR, each) for each in ([1], [], ["x", 1], {"left": 1}, None, "ab")),
    (HOLDER, [[[1]], True]),
]


@pytest.mark.parametrize(("shape", "packed"), UNFIT)
def test_does_not_fit(shape: Shape, packed: Any) -> None:
    with pytest.raises(WireError):
        shape.unpack(packed)


def test_a_whole_number_is_taken_for_a_real_one() -> None:
    assert Real(0.0, 2.0).unpack(1) == 1.0
    assert type(Real(0.0, 2.0).unpack(1)) is float


def test_records_pass_over_what_they_do_not_know() -> None:
    assert PAIR.unpack([1, "x", "later"]) == Pair(1, "x")
    assert HOLDER.unpack([[[1, "x", None]], True, 7]) == Holder((Pair(1, "x"),), True)


def test_our_own_mistakes_are_assertions() -> None:
    for shape, value in ((Unsigned(8), 256), (Whole(1, 3), 0), (Many(Unsigned(8), 1), (1, 2))):
        with pytest.raises(AssertionError):
            shape.pack(value)


def test_texts_are_cut_and_mended_when_packed() -> None:
    assert Text(3).pack("four") == "fou"
    assert Text(3).pack("a\udcff") == "a?"


def test_a_record_needs_a_shape_for_every_field() -> None:
    with pytest.raises(AssertionError):
        Record(Pair, Unsigned(8))
