"""Layers in proportion to memory: tables for the known cases, properties for all others."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_building import MIB, SMALL, assert_sound, devices_of, model_of, placed

from edgellama.plan.ram import (
    Requirements,
    Unplaceable,
    largest_remainder,
    layer_kv_bytes,
    place,
)
from edgellama.values import Span, StagePlacement


def counts_of(stages: tuple[StagePlacement, ...]) -> dict[int, int]:
    """Layers by the device's number, home first."""
    return {int(stage.node, 16): stage.span.layers for stage in stages}


# --- tables ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "ram", "counts"),
    [
        (5, (2048, 1024, 300), {0: 3, 1: 2}),  # quotas 3.04, 1.52, 0.44
        (22, (2048, 1024, 300), {0: 13, 1: 7, 2: 2}),  # 13.36, 6.68, 1.96
        (32, (300, 1024, 2048), {2: 19, 1: 10, 0: 3}),
        (6, (512, 512, 512), {0: 2, 1: 2, 2: 2}),
        (5, (512, 512, 512), {0: 2, 1: 2, 2: 1}),  # equal remainders: by node id
        (1, (512, 512, 512), {0: 1}),
        (3, (900, 1), {0: 3}),
    ],
)
def test_counts_by_largest_remainder(
    layers: int, ram: tuple[int, ...], counts: dict[int, int]
) -> None:
    model = model_of((1000,) * layers)
    stages = placed(model, devices_of(*(mib * MIB for mib in ram)))
    assert counts_of(stages) == counts
    assert list(counts_of(stages)) == list(counts)


def test_kv_and_scratch_and_home_count_to_the_last_byte() -> None:
    model = model_of((1000, 1000, 1000), home_bytes=500, kv=2, scratch=70)
    requirements = Requirements(context=64, sessions_max=3)
    per_layer = 1000 + 2 * 64 * 3
    exactly = 500 + 70 + 2 * per_layer, 70 + per_layer
    stages = placed(model, devices_of(*exactly), requirements)
    assert stages == (
        StagePlacement(f"{0:032x}", Span(0, 2)),
        StagePlacement(f"{1:032x}", Span(2, 3)),
    )
    for index in range(2):
        short = list(exactly)
        short[index] -= 1
        failure = place(model, devices_of(*short), requirements)
        assert isinstance(failure, Unplaceable)
        assert failure.missing_bytes == (1 if index == 0 else per_layer)


def test_kv_cache_is_counted_in_whole_blocks_of_positions() -> None:
    model = model_of((10,), kv=3)
    assert layer_kv_bytes(model, Requirements(1, 1)) == 3 * 64
    assert layer_kv_bytes(model, Requirements(64, 1)) == 3 * 64
    assert layer_kv_bytes(model, Requirements(65, 2)) == 3 * 128 * 2
    assert layer_kv_bytes(model, Requirements(65, 2, "q8")) == 1 * 128 * 2


def test_a_device_where_rounding_up_does_not_fit_passes_the_layer_on() -> None:
    # Rooms 25, 24, 11: quotas of 5 layers are 2.08, 2.0, 0.92, but the last holds none of 12.
    stages = placed(model_of((12,) * 4), devices_of(25, 24, 11))
    assert counts_of(stages) == {0: 2, 1: 2}


def test_home_without_room_for_a_layer_still_is_home() -> None:
    stages = placed(model_of((100,) * 4, home_bytes=450), devices_of(460, 400))
    assert stages == (
        StagePlacement(f"{0:032x}", Span(0, 0)),
        StagePlacement(f"{1:032x}", Span(0, 4)),
    )


def test_home_gets_a_layer_though_its_share_rounds_to_none() -> None:
    stages = placed(model_of((100,) * 4, home_bytes=4000), devices_of(4150, 4000))
    assert counts_of(stages) == {0: 1, 1: 3}


def test_the_next_device_becomes_home_when_only_that_fits() -> None:
    # As home the largest has room for one layer, the other then for one: three are needed.
    model = model_of((100,) * 3, home_bytes=90)
    assert counts_of(placed(model, devices_of(280, 199))) == {1: 1, 0: 2}


def test_layers_that_differ_are_cut_by_their_bytes() -> None:
    model = model_of((300, 100, 100, 100))
    assert counts_of(placed(model, devices_of(1000, 999))) == {0: 1, 1: 3}


def test_largest_remainder_without_any_weight() -> None:
    assert largest_remainder(3, [0, 0]) == [3, 0]
    assert largest_remainder(0, [5, 0]) == [0, 0]


# --- refusals -------------------------------------------------------------------------------


def test_says_how_many_bytes_are_missing_and_where() -> None:
    model = model_of((1000,) * 4, home_bytes=500, scratch=50)
    failure = place(model, devices_of(1600, 900), SMALL)
    assert isinstance(failure, Unplaceable)
    assert failure.need_bytes == 4550
    assert failure.offered_bytes == 2500
    assert failure.missing_bytes == 4550 - 1600
    assert failure.worst == "device 0"
    assert failure.reason == (
        "the model needs 4.44 KiB of memory and 2 devices offer 2.44 KiB: "
        "2.88 KiB (2950 bytes) are missing in all, on device 0"
    )


def test_says_so_when_the_memory_suffices_but_no_cut_fits() -> None:
    failure = place(model_of((1000,) * 2), devices_of(1000, 999, 999), SMALL)
    assert isinstance(failure, Unplaceable)
    assert failure.missing_bytes == 1000
    assert "where no cut between layers fits" in failure.reason
    assert "\n" not in failure.reason


def test_no_devices_at_all() -> None:
    failure = place(model_of((1000,) * 2), [], SMALL)
    assert isinstance(failure, Unplaceable)
    assert (failure.missing_bytes, failure.offered_bytes, failure.worst) == (2000, 0, "")


# --- properties -----------------------------------------------------------------------------

layer_costs = st.lists(st.integers(1, 40), min_size=1, max_size=12)
offers = st.lists(st.integers(0, 160), min_size=1, max_size=6)
home_costs = st.integers(0, 60)
scratches = st.integers(0, 12)


@settings(deadline=None, max_examples=300)
@given(layer_costs, offers, home_costs, scratches, st.randoms(use_true_random=False))
def test_sound_and_independent_of_the_order(
    costs: list[int], ram: list[int], home: int, scratch: int, chance: random.Random
) -> None:
    model = model_of(tuple(costs), home, 0, scratch)
    devices = devices_of(*ram)
    result = place(model, devices, SMALL)
    shuffled = devices.copy()
    chance.shuffle(shuffled)
    assert place(model, shuffled, SMALL) == result
    if isinstance(result, Unplaceable):
        assert result.missing_bytes > 0
    else:
        assert_sound(model, devices, SMALL, result)


@settings(deadline=None, max_examples=300)
@given(layer_costs, offers, home_costs, scratches)
def test_what_is_missing_suffices_when_it_is_added(
    costs: list[int], ram: list[int], home: int, scratch: int
) -> None:
    model = model_of(tuple(costs), home, 0, scratch)
    devices = devices_of(*ram)
    failure = place(model, devices, SMALL)
    assume(isinstance(failure, Unplaceable))
    assert isinstance(failure, Unplaceable)
    raised = [
        replace(device, ram_bytes=device.ram_bytes + failure.missing_bytes)
        if device.name == failure.worst
        else device
        for device in devices
    ]
    assert_sound(model, raised, SMALL, placed(model, raised))


@settings(deadline=None, max_examples=300)
@given(
    layer_costs,
    offers,
    home_costs,
    scratches,
    st.integers(0, 5),
    st.integers(1, 200),
    st.booleans(),
)
def test_more_memory_never_makes_it_unplaceable(
    costs: list[int], ram: list[int], home: int, scratch: int, which: int, more: int, new: bool
) -> None:
    model = model_of(tuple(costs), home, 0, scratch)
    assume(not isinstance(place(model, devices_of(*ram), SMALL), Unplaceable))
    grown = ram.copy()
    if new:
        grown.append(more)
    else:
        grown[which % len(ram)] += more
    devices = devices_of(*grown)
    assert_sound(model, devices, SMALL, placed(model, devices))


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 12),
    st.integers(1, 20),
    st.lists(st.integers(0, 120), min_size=1, max_size=5),
    home_costs,
    scratches,
)
def test_unplaceable_is_true_where_layers_cost_the_same(
    layers: int, cost: int, ram: list[int], home: int, scratch: int
) -> None:
    """Against every home and every count: brute force, by another road than the planner's."""
    result = place(model_of((cost,) * layers, home, 0, scratch), devices_of(*ram), SMALL)
    possible = any(
        ram[h] >= home + scratch
        and (ram[h] - home - scratch) // cost
        + sum(max(0, r - scratch) // cost for i, r in enumerate(ram) if i != h)
        >= layers
        for h in range(len(ram))
    )
    assert isinstance(result, Unplaceable) == (not possible)


@settings(deadline=None, max_examples=100)
@given(layer_costs, st.lists(st.integers(1, 160), min_size=1, max_size=4), home_costs)
def test_any_cut_that_fits_in_the_order_of_the_ring_is_found(
    costs: list[int], ram: list[int], home: int
) -> None:
    model = model_of(tuple(costs), home)
    result = place(model, devices_of(*ram), SMALL)

    def fits(order: tuple[int, ...]) -> bool:
        first = 0
        for place_in_ring, room in enumerate(order):
            left = room - home if place_in_ring == 0 else room
            if left < 0:
                return False
            while first < len(costs) and costs[first] <= left:
                left -= costs[first]
                first += 1
        return first == len(costs)

    falling = [order for order in permutations(ram) if list(order[1:]) == sorted(order[1:])[::-1]]
    assert isinstance(result, Unplaceable) == (not any(fits(order) for order in falling))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 100), st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_in_proportion_within_one_layer_when_there_is_plenty(layers: int, ram: list[int]) -> None:
    offered = [mib * MIB for mib in ram]
    counts = counts_of(placed(model_of((100,) * layers, 7, 0, 9), devices_of(*offered)))
    for index, ram_bytes in enumerate(offered):
        quota_times_total = layers * ram_bytes
        off = counts.get(index, 0) * sum(offered) - quota_times_total
        # One layer, and a hair for home and scratch, which are taken off the offers first.
        slack = sum(offered) // 100
        floor_of_home = sum(offered) if index == next(iter(counts)) else 0
        assert -sum(offered) - slack < off < sum(offered) + slack + floor_of_home
    assert sum(counts.values()) == layers


def test_a_thousand_devices_and_two_hundred_layers() -> None:
    chance = random.Random(7)
    model = model_of(tuple(chance.randint(900, 1100) for _ in range(200)), 5000, 0, 100)
    devices = devices_of(*(chance.randint(100, 9000) for _ in range(1000)))
    assert_sound(model, devices, SMALL, placed(model, devices))
    poor = devices_of(*(chance.randint(5100, 6000) for _ in range(30)), *range(100, 1070))
    failure = place(model, poor, SMALL)
    assert isinstance(failure, Unplaceable)
