"""The table in which a person reads a plan."""

from __future__ import annotations

from edgellama.plan.ram import Requirements, Unplaceable, place
from edgellama.plan.table import PlanRow, plan_rows
from edgellama.values import DeviceFacts, ModelFacts, Span

MODEL = ModelFacts("00" * 32, "made up", 3100, 64, 512, (100, 200, 300), 50, 1, 10, 1)
REQUIREMENTS = Requirements(context=64, sessions_max=2)


def test_one_row_a_stage_then_those_left_out() -> None:
    devices = [
        DeviceFacts("c", "phone", 100),
        DeviceFacts("b", "pi", 600),
        DeviceFacts("a", "laptop", 1000),
        DeviceFacts("d", "watch", 5),
    ]
    stages = place(MODEL, devices, REQUIREMENTS)
    assert not isinstance(stages, Unplaceable)
    assert plan_rows(MODEL, devices, REQUIREMENTS, stages) == (
        PlanRow("a", "laptop", Span(0, 2), True, 350, 256, 616, 1000),
        PlanRow("b", "pi", Span(2, 3), False, 300, 128, 438, 600),
        PlanRow("c", "phone", Span(0, 0), False, 0, 0, 0, 100),
        PlanRow("d", "watch", Span(0, 0), False, 0, 0, 0, 5),
    )


def test_used_percent_is_rounded_up_and_never_over_a_hundred_for_a_plan() -> None:
    assert PlanRow("a", "a", Span(0, 1), True, 1, 0, 1, 1000).used_percent == 1
    assert PlanRow("a", "a", Span(0, 1), True, 1000, 0, 1000, 1000).used_percent == 100
    assert PlanRow("a", "a", Span(0, 0), False, 0, 0, 0, 0).used_percent == 0
