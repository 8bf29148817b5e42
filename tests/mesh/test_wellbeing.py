"""When a device rests by its battery and its heat, and when it comes back."""

from __future__ import annotations

import pytest

from edgellama.mesh.wellbeing import NO_READING, WELL_FOR_S, Reading, Wellbeing, complaint

WELL = Reading(80.0, True, 30.0, 40.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"percent": 19.0, "is_plugged": False}, "19 %"),
        ({"percent": 19.0, "is_plugged": None}, "19 %"),
        ({"percent": 19.0}, ""),  # plugged in
        ({"percent": 20.0, "is_plugged": False}, ""),
        ({"battery_c": 43.0}, "43 °C"),  # plugged in or not
        ({"battery_c": 42.9}, ""),
        ({"chip_margin_c": 4.9}, "5 °C below"),
        ({"chip_margin_c": 5.0}, ""),
        ({}, ""),
    ],
)
def test_what_speaks_against_holding_layers(changes: dict[str, float], said: str) -> None:
    reason = complaint(WELL._replace(**changes), chip_counts=True)
    assert said in reason
    assert bool(said) == bool(reason)


def test_who_says_nothing_is_well() -> None:
    assert Wellbeing().take(NO_READING, 0.0) == ""


def test_a_chip_that_is_hot_for_a_moment_is_no_reason() -> None:
    wellbeing, hot = Wellbeing(), WELL._replace(chip_margin_c=1.0)
    assert [wellbeing.take(each, 0.0) for each in (hot, WELL, hot)] == ["", "", ""]
    assert wellbeing.take(hot, 60.0)


@pytest.mark.parametrize(
    ("between", "rests"),
    [
        (WELL, False),
        (Reading(30.0, False, 39.0, 20.0), False),
        (Reading(29.0, False, 30.0, 40.0), True),
        (Reading(80.0, False, 40.0, 40.0), True),
        (Reading(80.0, True, 30.0, 19.0), True),
        (NO_READING, False),  # nothing is known any more
    ],
)
def test_it_comes_back_when_all_has_been_well_for_a_while(between: Reading, rests: bool) -> None:
    wellbeing = Wellbeing()
    assert wellbeing.take(Reading(10.0, False), 0.0)
    assert wellbeing.take(between, 60.0)
    assert wellbeing.take(between, 59.0 + WELL_FOR_S)
    assert bool(wellbeing.take(between, 60.0 + WELL_FOR_S)) == rests


def test_the_while_begins_anew() -> None:
    wellbeing, low = Wellbeing(), Reading(10.0, False)
    for now, reading in ((0.0, low), (60.0, WELL), (120.0, Reading(25.0, False)), (180.0, WELL)):
        assert wellbeing.take(reading, now)
    assert wellbeing.take(WELL, 179.0 + WELL_FOR_S)
    assert not wellbeing.take(WELL, 180.0 + WELL_FOR_S)
