"""After a change of devices few bytes move: tables, and every other placement for comparison."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise, permutations
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_building import (
    MIB,
    SMALL,
    assert_sound,
    devices_of,
    model_of,
    placed,
)

from edgellama.plan.movement import place_with_least_movement
from edgellama.plan.ram import Requirements, Unplaceable, place, stage_bytes
from edgellama.values import DeviceFacts, ModelFacts, Span, StagePlacement

if TYPE_CHECKING:
    from collections.abc import Sequence


def stages_of(**spans: tuple[int, int]) -> tuple[StagePlacement, ...]:
    """Return stages by the device's number: n0=(0, 4)."""
    return tuple(
        StagePlacement(f"{int(name[1:]):032x}", Span(*span)) for name, span in spans.items()
    )


def spans_of(stages: Sequence[StagePlacement] | None) -> dict[int, tuple[int, int]]:
    assert stages is not None
    return {int(stage.node, 16): tuple(stage.span) for stage in stages}


TWELVE = model_of((MIB,) * 12, home_bytes=MIB)


@pytest.mark.parametrize(
    ("rams", "lost", "held", "expected"),
    [
        # The neighbours take the lost span, and nobody else moves a layer.
        ([9, 8, 8], 1, {"n0": (0, 4), "n1": (4, 8), "n2": (8, 12)}, {0: (0, 6), 2: (6, 12)}),
        ([9, 8, 8], 2, {"n0": (0, 4), "n1": (4, 8), "n2": (8, 12)}, {0: (0, 4), 1: (4, 12)}),
        # The one after home becomes home; it takes home's layers besides its own.
        ([9, 9, 8], 0, {"n0": (0, 4), "n1": (4, 8), "n2": (8, 12)}, {1: (0, 8), 2: (8, 12)}),
        # Only one neighbour has room.
        ([5, 8, 8], 1, {"n0": (0, 4), "n1": (4, 8), "n2": (8, 12)}, {0: (0, 4), 2: (4, 12)}),
        # A device that held nothing takes the place of the lost one, as no room is elsewhere.
        (
            [5, 4, 4, 4],
            1,
            {"n0": (0, 4), "n1": (4, 8), "n2": (8, 12)},
            {0: (0, 4), 3: (4, 8), 2: (8, 12)},
        ),
        # Nobody is lost: nothing moves, though another split would be more even.
        ([13, 13], None, {"n0": (0, 11), "n1": (11, 12)}, {0: (0, 11), 1: (11, 12)}),
    ],
)
def test_table(
    rams: list[int],
    lost: int | None,
    held: dict[str, tuple[int, int]],
    expected: dict[int, tuple[int, int]],
) -> None:
    devices = devices_of(*(ram * MIB for ram in rams))
    left = [device for index, device in enumerate(devices) if index != lost]
    stages = place_with_least_movement(TWELVE, left, SMALL, stages_of(**held))
    assert spans_of(stages) == expected


def test_who_offers_nothing_any_more_holds_nothing() -> None:
    devices = [*devices_of(9 * MIB, 0, 9 * MIB)]
    held = stages_of(n0=(0, 4), n1=(4, 8), n2=(8, 12))
    assert set(spans_of(place_with_least_movement(TWELVE, devices, SMALL, held))) == {0, 2}
    home_drains = [*devices_of(0, 9 * MIB, 9 * MIB)]
    stages = spans_of(place_with_least_movement(TWELVE, home_drains, SMALL, held))
    assert stages == {1: (0, 8), 2: (8, 12)}


def test_no_ring_that_fits_is_said() -> None:
    held = stages_of(n0=(0, 6), n1=(6, 12))
    assert place_with_least_movement(TWELVE, devices_of(9 * MIB), SMALL, held) is None
    assert place_with_least_movement(TWELVE, [], SMALL, held) is None


def test_a_thousand_devices_and_two_hundred_layers() -> None:
    model = model_of((MIB,) * 200, home_bytes=MIB)
    devices = devices_of(*[30 * MIB] * 1000)
    held = placed(model, devices)
    stages = place_with_least_movement(model, devices[1:], SMALL, held)
    assert stages is not None
    assert_sound(model, devices, SMALL, stages)


def kept_bytes(
    model: ModelFacts, stages: Sequence[StagePlacement], held: Sequence[StagePlacement]
) -> int:
    before = {stage.node: stage.span for stage in held}
    kept = 0
    for stage in stages:
        old = before.get(stage.node, Span(0, 0))
        first, past = max(old.first, stage.span.first), min(old.past, stage.span.past)
        kept += sum(model.layer_bytes[first:past])
    return kept


def every_placement(
    model: ModelFacts, devices: Sequence[DeviceFacts]
) -> list[tuple[StagePlacement, ...]]:
    """Return all placements of all rings."""
    found = []
    for count in range(1, len(devices) + 1):
        for ring in permutations(devices, count):
            for inner in combinations_with_replacement(range(model.layers + 1), count - 1):
                cuts = [0, *inner, model.layers]
                spans = [Span(*pair) for pair in pairwise(cuts)]
                if all(span.layers for span in spans[1:]) and all(
                    stage_bytes(model, span, index == 0, SMALL) <= device.ram_bytes
                    for index, (span, device) in enumerate(zip(spans, ring, strict=True))
                ):
                    placements = zip(ring, spans, strict=True)
                    found.append(tuple(StagePlacement(d.node, span) for d, span in placements))
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=5),
    st.lists(st.integers(1, 9), min_size=3, max_size=4),
    st.data(),
)
def test_no_placement_without_newcomers_keeps_more(
    layers: list[int], rams: list[int], data: st.DataObject
) -> None:
    model = model_of(tuple(layers), home_bytes=1)
    devices = devices_of(*rams)
    held = place(model, devices, SMALL)
    if isinstance(held, Unplaceable):
        return
    lost = data.draw(st.sampled_from(held)).node
    left = [device for device in devices if device.node != lost]
    stages = place_with_least_movement(model, left, SMALL, held)
    order = [stage.node for stage in held]
    if stages is None or not all(stage.node in order for stage in stages):
        return
    assert_sound(model, left, SMALL, stages)
    comparable = [
        each
        for each in every_placement(model, left)
        if all(stage.node in order for stage in each)
        and _keeps_the_order(each, order)
        and (lost == order[0] or each[0].node == stages[0].node)
    ]
    best = max(kept_bytes(model, each, held) for each in comparable)
    assert kept_bytes(model, stages, held) == best


def _keeps_the_order(stages: Sequence[StagePlacement], order: list[str]) -> bool:
    """Return whether the stages behind home stand in the old order."""
    places = [order.index(stage.node) for stage in stages[1:]]
    return places == sorted(places)


def test_the_kv_cache_counts() -> None:
    model = model_of((MIB,) * 4, home_bytes=0, kv=MIB // 64)
    held = stages_of(n0=(0, 2), n1=(2, 4))
    one = Requirements(context=64, sessions_max=1)
    assert place_with_least_movement(model, devices_of(8 * MIB), one, held) is not None
    two = Requirements(context=64, sessions_max=2)
    assert place_with_least_movement(model, devices_of(8 * MIB), two, held) is None
