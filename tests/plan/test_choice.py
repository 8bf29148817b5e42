"""Which placement a mesh shall have, and when it keeps the one it has."""

from __future__ import annotations

import itertools
import random

import pytest

from edgellama.plan.choice import Choice, choose
from edgellama.plan.costs import Costs
from edgellama.plan.ram import Requirements, Unplaceable, place
from edgellama.plan.speed import place_by_speed, predict
from edgellama.values import (
    BATCH,
    CHAT,
    RAM,
    DeviceFacts,
    DeviceSpeed,
    LinkFacts,
    ModelFacts,
    Span,
    StagePlacement,
    StageTimes,
)

MIB = 1 << 20
MODEL = ModelFacts("0" * 64, "m", 1, 64, 4096, (MIB,) * 12, 0, 0, 0, 0)
REQUIREMENTS = Requirements(64, 2)
A, B, C = ("a" * 32, "b" * 32, "c" * 32)
LINKS = [LinkFacts(A, B, 1000, 1 << 40), LinkFacts(A, C, 1000, 1 << 40), LinkFacts(B, C, 1000)]


def device(node: str, layers: int, ms: float | None) -> DeviceFacts:
    speed = DeviceSpeed(round(ms * 10**6), 0, 0) if ms else None
    return DeviceFacts(node, node[:1], layers * MIB, speed)


def stages(*pairs: tuple[str, int]) -> tuple[StagePlacement, ...]:
    past, placed = 0, []
    for node, layers in pairs:
        placed.append(StagePlacement(node, Span(past, past + layers)))
        past += layers
    return tuple(placed)


def test_without_any_device_all_is_missing() -> None:
    for split in (RAM, CHAT):
        nowhere = choose(MODEL, [], LINKS, REQUIREMENTS, split, stages((B, 12)))
        assert isinstance(nowhere, Unplaceable)
        assert nowhere.missing_bytes == nowhere.need_bytes > 0


def test_by_memory_whatever_the_speed() -> None:
    devices = [device(A, 12, 1), device(B, 12, 50)]
    choice = choose(MODEL, devices, LINKS, REQUIREMENTS, RAM, stages((B, 12)))
    assert isinstance(choice, Choice)
    assert choice.stages == place(MODEL, devices, REQUIREMENTS)
    assert [times.compute_ns for times in choice.predicted] == [6 * 10**6, 300 * 10**6]
    assert all(times.hop_ns >= 500_000 for times in choice.predicted)


def test_by_memory_until_anything_is_measured() -> None:
    devices = [device(A, 12, None), device(B, 12, None)]
    choice = choose(MODEL, devices, [], REQUIREMENTS, CHAT)
    assert isinstance(choice, Choice)
    assert choice == Choice(place(MODEL, devices, REQUIREMENTS), ())


def test_the_quickest_placement_where_there_is_none_yet() -> None:
    choice = choose(MODEL, [device(A, 12, 1), device(B, 12, 50)], LINKS, REQUIREMENTS, CHAT)
    assert choice == Choice(stages((A, 12)), (StageTimes(12 * 10**6, 0),), bound_ns=12 * 10**6)


def test_what_holds_is_kept_while_nothing_is_much_better() -> None:
    devices = [device(A, 8, 10), device(B, 8, 9)]
    held = stages((A, 8), (B, 4))
    kept = choose(MODEL, devices, LINKS, REQUIREMENTS, CHAT, held)
    assert isinstance(kept, Choice)
    assert kept.stages == held
    quicker = choose(MODEL, [devices[0], device(B, 8, 4)], LINKS, REQUIREMENTS, CHAT, held)
    assert isinstance(quicker, Choice)
    assert quicker.stages != held


def test_a_lost_device_moves_little_where_that_is_nearly_as_good() -> None:
    held = stages((A, 4), (B, 4), (C, 4))
    left = [device(A, 12, 10), device(C, 12, 9)]
    choice = choose(MODEL, left, LINKS, REQUIREMENTS, CHAT, held)
    assert isinstance(choice, Choice)
    layers = {stage.node: set(range(*stage.span)) for stage in choice.stages}
    assert layers[A] >= set(range(4))
    assert layers[C] >= set(range(8, 12))
    slow = choose(MODEL, [left[0], device(C, 12, 90)], LINKS, REQUIREMENTS, CHAT, held)
    assert isinstance(slow, Choice)
    assert slow.stages == stages((A, 12))


def test_what_holds_more_than_is_offered_now_is_not_kept() -> None:
    devices = [device(A, 6, 10), device(B, 8, 10)]
    choice = choose(MODEL, devices, LINKS, REQUIREMENTS, CHAT, stages((A, 8), (B, 4)))
    assert isinstance(choice, Choice)
    assert max(s.span.layers for s in choice.stages if s.node == A) <= 6


def test_another_models_placement_is_none() -> None:
    devices = [device(A, 12, 10), device(B, 12, 9)]
    choice = choose(MODEL, devices, LINKS, REQUIREMENTS, CHAT, stages((A, 5), (B, 4)))
    assert isinstance(choice, Choice)
    assert choice.stages == stages((B, 12))


def test_too_little_memory_is_said_as_ever() -> None:
    devices = [device(A, 4, 1), device(B, 4, 1)]
    for split in (RAM, CHAT):
        refusal = choose(MODEL, devices, LINKS, REQUIREMENTS, split)
        assert refusal == place(MODEL, devices, REQUIREMENTS)
        assert isinstance(refusal, Unplaceable)


def test_by_memory_what_holds_is_kept_until_another_device_shall_hold_layers() -> None:
    held = stages((A, 11), (B, 1))
    devices = [device(A, 12, None), device(B, 12, None)]
    choice = choose(MODEL, devices, [], REQUIREMENTS, RAM, held)
    assert choice == Choice(held, ())
    devices.append(device(C, 12, None))
    assert choose(MODEL, devices, [], REQUIREMENTS, RAM, held) == Choice(
        stages((A, 4), (B, 4), (C, 4)), ()
    )


def test_by_memory_a_loss_moves_the_least() -> None:
    held = stages((A, 2), (B, 4), (C, 6))
    devices = [device(A, 12, None), device(C, 12, None)]
    choice = choose(MODEL, devices, [], REQUIREMENTS, RAM, held)
    assert choice == Choice(stages((A, 6), (C, 6)), ())


def some_mesh(chance: random.Random, count: int) -> list[DeviceFacts]:
    return [
        device(f"{number:032x}", chance.randint(2, 12), chance.choice((None, 1, 4, 10, 11, 30)))
        for number in range(count)
    ]


@pytest.mark.parametrize("split", [CHAT, BATCH])
@pytest.mark.parametrize("seed", range(60))
def test_a_device_that_joins_never_makes_it_worse(seed: int, split: str) -> None:
    chance = random.Random(seed)
    devices = some_mesh(chance, chance.choice((2, 3, 4, 5, 14)))
    links = [
        LinkFacts(one.node, other.node, chance.randint(0, 40_000), chance.choice((0, 10**5, 10**7)))
        for one, other in itertools.permutations(devices, 2)
        if chance.random() < 0.8
    ]
    before = choose(MODEL, devices[:-1], links, REQUIREMENTS, split)
    if isinstance(before, Unplaceable):
        return
    after = choose(MODEL, devices, links, REQUIREMENTS, split, before.stages)
    assert isinstance(after, Choice)
    if not any(each.speed for each in devices):
        return  # by memory as long as nothing is measured
    costs = Costs(MODEL, devices, links, REQUIREMENTS)
    stays, goes = (predict(costs, each.stages).objective_ns(split) for each in (before, after))
    if after.stages == before.stages:
        best = place_by_speed(costs, split)
        # Nothing was to be won that would be worth the loading.
        assert best is None or best.prediction.objective_ns(split) >= 0.85 * stays
    else:
        assert goes < 0.85 * stays


def test_a_mesh_that_changes_back_and_forth_a_little_stays_as_it_is() -> None:
    held = stages((A, 6), (B, 6))
    for ms in (10, 9, 11, 9.5, 10.5, 9):
        devices = [device(A, 8, 10), device(B, 8, ms)]
        choice = choose(MODEL, devices, LINKS, REQUIREMENTS, CHAT, held)
        assert isinstance(choice, Choice)
        assert choice.stages == held
