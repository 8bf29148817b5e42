"""Who is asked for what next: tables of what is known and what follows."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from edgellama.net.chunk_bitmap import ChunkBitmap
from edgellama.net.fetch_schedule import (
    FAILURES_MAX,
    INSIST_S,
    LOOK_AGAIN_S,
    RETRY_S,
    SOURCES_MAX,
    SURVEY_S,
    Batch,
    FetchSchedule,
)
from edgellama.net.supply import WeightSource
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

CHUNKS = 64


def source(number: int, *, original: bool = False) -> WeightSource:
    return WeightSource(Address("10.0.0.1", number), f"device{number}", original)


LAPTOP, PI, PHONE = source(1, original=True), source(2), source(3)


def chunks(indexes: Iterable[int]) -> ChunkBitmap:
    bitmap = ChunkBitmap(CHUNKS)
    for index in indexes:
        bitmap.add(index)
    return bitmap


def knowing(wanted: Iterable[int], **available: Iterable[int]) -> FetchSchedule:
    """Return a schedule at time 0 in which the named devices have said what they have."""
    schedule = FetchSchedule(wanted, 0.0)
    named = {"laptop": LAPTOP, "pi": PI, "phone": PHONE}
    schedule.know([named[name] for name in available])
    for name, indexes in available.items():
        schedule.surveyed(named[name], chunks(indexes), 0.0)
    return schedule


def test_neighbours_are_asked_for_together_and_four_at_most() -> None:
    schedule = knowing([1, 2, 3, 4, 5, 9], laptop=range(CHUNKS))
    assert schedule.take(LAPTOP, 0.0) == Batch([1, 2, 3, 4], anyway=False)
    assert schedule.take(LAPTOP, 0.0) == Batch([5], anyway=False)
    assert schedule.take(LAPTOP, 0.0) == Batch([9], anyway=False)
    assert schedule.take(LAPTOP, 0.0) is None
    assert schedule.left == 6
    schedule.put_back([2, 9])
    for _ in range(4):
        schedule.arrived(LAPTOP)
    assert schedule.left == 2
    assert schedule.take(LAPTOP, 0.0) == Batch([2], anyway=False)


def test_the_original_gives_only_what_nobody_else_has() -> None:
    schedule = knowing(range(8), laptop=range(CHUNKS), pi=[0, 1, 4], phone=[1, 5])
    assert schedule.take(LAPTOP, 0.0) == Batch([2, 3], anyway=False)
    assert schedule.take(LAPTOP, 0.0) == Batch([6, 7], anyway=False)
    assert schedule.take(LAPTOP, 0.0) is None
    assert schedule.take(PHONE, 0.0) == Batch([1], anyway=False)
    assert schedule.take(PHONE, 0.0) == Batch([5], anyway=False)
    assert schedule.take(PI, 0.0) == Batch([0], anyway=False)
    assert schedule.take(PI, 0.0) == Batch([4], anyway=False)


def test_the_original_waits_until_the_others_have_said_what_they_have() -> None:
    schedule = FetchSchedule(range(4), 0.0)
    schedule.know([LAPTOP, PI])
    schedule.surveyed(LAPTOP, chunks(range(CHUNKS)), 0.0)
    assert schedule.take(LAPTOP, 0.0) is None
    assert schedule.choose(0.0) == PI
    assert schedule.choose(0.0) is None
    schedule.surveyed(PI, chunks([0, 1, 2]), 0.1)
    assert schedule.take(LAPTOP, 0.1) == Batch([3], anyway=False)


def test_but_not_for_ever_nor_for_one_that_cannot_be_reached() -> None:
    schedule = FetchSchedule(range(4), 0.0)
    schedule.know([LAPTOP, PI])
    schedule.surveyed(LAPTOP, chunks(range(CHUNKS)), 0.0)
    assert schedule.take(LAPTOP, SURVEY_S) == Batch([0, 1, 2, 3], anyway=False)
    schedule.put_back([0, 1, 2, 3])
    schedule.failed(PI, "cannot be reached", 0.1, for_good=False)
    assert schedule.take(LAPTOP, 0.1) == Batch([0, 1, 2, 3], anyway=False)


def test_what_failed_devices_have_the_original_gives() -> None:
    schedule = knowing(range(4), laptop=range(CHUNKS), pi=range(CHUNKS))
    assert schedule.take(LAPTOP, 0.0) is None
    assert schedule.choose(0.0) == PI
    schedule.release(PI)
    schedule.failed(PI, "broke the connection off", 0.0, for_good=False)
    assert schedule.choose(0.0) == LAPTOP
    assert schedule.take(LAPTOP, 0.0) == Batch([0, 1, 2, 3], anyway=False)


def test_a_given_chunk_is_looked_for_elsewhere_and_then_insisted_on() -> None:
    schedule = knowing(range(3), laptop=range(CHUNKS), pi=[])
    assert schedule.take(LAPTOP, 0.0) == Batch([0, 1, 2], anyway=False)
    schedule.given(1, 0.0)
    schedule.arrived(LAPTOP)
    schedule.arrived(LAPTOP)
    assert schedule.take(LAPTOP, 0.0) is None
    assert schedule.choose(0.0) is None
    assert not schedule.is_hopeless(0.0)
    assert schedule.choose(LOOK_AGAIN_S) == PI
    schedule.surveyed(PI, chunks([]), LOOK_AGAIN_S)
    schedule.release(PI)
    assert schedule.take(LAPTOP, INSIST_S - 0.01) is None
    assert schedule.take(LAPTOP, INSIST_S) == Batch([1], anyway=True)
    schedule.given(1, INSIST_S)  # it is on its way to another device at this moment
    assert schedule.take(LAPTOP, INSIST_S) is None
    schedule.surveyed(PI, chunks([1]), INSIST_S)
    assert schedule.take(PI, INSIST_S) == Batch([1], anyway=False)
    schedule.arrived(PI)
    assert schedule.left == 0


def test_chunks_that_are_insisted_on_are_not_mixed_with_others() -> None:
    schedule = knowing(range(4), laptop=range(CHUNKS))
    assert schedule.take(LAPTOP, 0.0) == Batch([0, 1, 2, 3], anyway=False)
    schedule.given(2, 0.0)
    schedule.put_back([0, 1, 3])
    later = INSIST_S
    batches = [schedule.take(LAPTOP, later) for _ in range(4)]
    assert batches == [Batch([0, 1], False), Batch([2], True), Batch([3], False), None]


def test_connections_are_spread_over_the_sources() -> None:
    schedule = knowing(range(CHUNKS), pi=range(CHUNKS), phone=range(CHUNKS))
    assert {schedule.choose(0.0), schedule.choose(0.0)} == {PI, PHONE}
    third = schedule.choose(0.0)
    assert third in (PI, PHONE)
    schedule.release(PI)
    schedule.release(PHONE)
    assert schedule.choose(0.0) != third


def test_those_who_have_not_been_asked_come_first() -> None:
    schedule = knowing(range(CHUNKS), laptop=range(CHUNKS))
    schedule.know([LAPTOP, PI])
    assert schedule.choose(0.0) == PI


@pytest.mark.parametrize("for_good", [False, True])
def test_a_failing_source_is_given_up(for_good: bool) -> None:
    schedule = knowing([0], pi=[0])
    now = 0.0
    for _ in range(1 if for_good else FAILURES_MAX):
        assert schedule.choose(now) == PI
        assert schedule.take(PI, now) is not None
        schedule.put_back([0])
        schedule.failed(PI, "did not answer", now, for_good=for_good)
        schedule.failed(PI, "did not answer", now, for_good=for_good)  # two connections at once
        schedule.release(PI)
        assert schedule.choose(now) is None
        now += RETRY_S
    assert schedule.choose(now) is None
    assert schedule.take(PI, now) is None
    assert schedule.is_hopeless(now)
    assert schedule.faults() == {PI: "did not answer"}


def test_a_chunk_makes_good_for_failures() -> None:
    """It brings one chunk a connection and then breaks off, and still all of them come."""
    schedule = knowing(range(3 * FAILURES_MAX), pi=range(CHUNKS))
    for number in range(3 * FAILURES_MAX):
        batch = schedule.take(PI, number * RETRY_S)
        assert batch is not None
        schedule.arrived(PI)
        schedule.put_back(batch.indexes[1:])
        schedule.failed(PI, "closed the connection", number * RETRY_S, for_good=False)
    assert schedule.left == 0


def test_hopeless_is_only_what_nobody_can_bring() -> None:
    schedule = knowing([0, 5], pi=[0], phone=[1])
    assert not schedule.is_hopeless(0.0)
    assert schedule.take(PI, 0.0) is not None
    assert not schedule.is_hopeless(0.0)  # one is on its way, and who knows what comes after it
    schedule.arrived(PI)
    assert schedule.is_hopeless(0.0)
    assert schedule.faults() == {PI: "has no more of it", PHONE: "has no more of it"}
    schedule.know([PI, PHONE, LAPTOP])
    assert not schedule.is_hopeless(0.0)
    schedule.surveyed(LAPTOP, chunks([]), 0.0)
    assert schedule.is_hopeless(0.0)
    assert schedule.faults()[LAPTOP] == "does not have the model"


def test_sources_that_go_are_forgotten_but_for_their_faults() -> None:
    schedule = knowing([0], pi=[], phone=[])
    schedule.failed(PI, "sent a wrong chunk 0", 0.0, for_good=True)
    schedule.know([])
    assert schedule.faults() == {PI: "sent a wrong chunk 0"}
    schedule.know([source(number) for number in range(10, 100)])
    assert len(schedule.faults()) == SOURCES_MAX + 1


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_every_chunk_comes_once(seed: int) -> None:
    """Connections fail and give chunks away at random; the model is whole in the end."""
    dice = random.Random(seed)
    parts = [LAPTOP, *(source(number) for number in range(2, 6))]
    has = {each: chunks(dice.sample(range(CHUNKS), 20)) for each in parts[1:]}
    has[LAPTOP] = chunks(range(CHUNKS))
    schedule = FetchSchedule(range(CHUNKS), 0.0)
    schedule.know(parts)
    now, came = 0.0, []
    while schedule.left:
        now += 0.01
        assert not schedule.is_hopeless(now)
        assert now < 1000
        chosen = schedule.choose(now)
        if chosen is None:
            continue
        schedule.surveyed(chosen, has[chosen], now)
        batch = schedule.take(chosen, now)
        for index in batch.indexes if batch else []:
            chance = dice.random()
            if chosen.original and chance < 0.2:
                schedule.given(index, now)
            elif chance < 0.3:
                schedule.put_back([index])
            else:
                schedule.arrived(chosen)
                came.append(index)
        if dice.random() < 0.05 and not chosen.original:
            schedule.failed(chosen, "broke the connection off", now, for_good=False)
        schedule.release(chosen)
    assert sorted(came) == list(range(CHUNKS))
