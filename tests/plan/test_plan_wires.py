"""Which links carry q8: where one end asks for it and the other does not refuse."""

from __future__ import annotations

import pytest

from edgellama.plan.wires import wires_of
from edgellama.values import Plan, Span, StagePlacement

STAGES = tuple(StagePlacement(node, Span(index, index + 1)) for index, node in enumerate("abc"))


@pytest.mark.parametrize(
    ("asked", "wires"),
    [
        ({}, ()),
        ({"a": "f16", "b": "f16", "c": "f16"}, ()),
        ({"b": "q8"}, ("q8", "q8", "f16")),
        ({"a": "q8", "b": "q8", "c": "q8"}, ("q8", "q8", "q8")),
        ({"a": "q8", "c": "f16"}, ("q8", "f16", "f16")),
        ({"a": "q8", "b": "f16"}, ("f16", "f16", "q8")),
        ({"a": "q8", "b": "f16", "c": "f16"}, ()),
        ({"elsewhere": "q8"}, ()),
    ],
)
def test_links(asked: dict[str, str], wires: tuple[str, ...]) -> None:
    assert wires_of(STAGES, asked) == wires


def test_a_ring_of_two_has_two_links() -> None:
    assert wires_of(STAGES[:2], {"b": "q8"}) == ("q8", "q8")


def test_a_device_alone_has_no_link_that_could_lose_anything() -> None:
    assert wires_of(STAGES[:1], {"a": "q8"}) == ()


def test_a_plan_says_of_each_link_what_it_carries() -> None:
    plan = Plan(1, "a", "", 16, 1, STAGES, wires=("f16", "q8", "f16"))
    assert [plan.wire_from(stage) for stage in range(3)] == ["f16", "q8", "f16"]
    assert plan.wire_from(0 - 1) == "f16"  # into home comes what the last stage sends
    assert not plan.is_exact
    exact = Plan(1, "a", "", 16, 1, STAGES)
    assert exact.is_exact
    assert exact.wire_from(2) == "f16"
