from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from edgellama.plan.bounds import Outlook, least_busy_ns
from edgellama.plan.costs import (
    BYTES_PER_S_USUAL,
    NEVER,
    STEP_HEADER_BYTES,
    Costs,
    Ring,
    RingTimes,
    ring_times,
)
from edgellama.plan.exact import Effort, quickest_ring
from edgellama.plan.left_out import reasons
from edgellama.plan.ram import Requirements, Unplaceable, place, stage_bytes
from edgellama.plan.search import likely_ring
from edgellama.plan.speed import (
    EFFORT_AT_ONCE,
    EXACT_DEVICES_MAX,
    Prediction,
    is_worth_changing,
    place_by_speed,
    predict,
)
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
)
from edgellama.wire.lossy_activations import row_bytes as lossy_row_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIB = 1 << 20
REQUIREMENTS = Requirements(64, 2)


def model_of(*layer_bytes: int, home_bytes: int = 0) -> ModelFacts:
    return ModelFacts("0" * 64, "m", 1, 1000, 4096, layer_bytes, home_bytes, 0, 0, 0)


def device(number: int, ram_bytes: int = 1 << 40, ms: float | None = 1.0) -> DeviceFacts:
    """Return a device that takes so many milliseconds for a layer."""
    speed = None if ms is None else DeviceSpeed(round(ms * 1e6), 0, 0)
    return DeviceFacts(f"{number:032x}", f"d{number}", ram_bytes, speed)


def links(devices: Sequence[DeviceFacts], ms: float, **special: float) -> list[LinkFacts]:
    """Return links of one round trip, but for those named ``d1_d2``; too fast to send anything."""
    return [
        LinkFacts(
            one.node,
            other.node,
            round(1000 * special.get("_".join(sorted((one.name, other.name))), ms)),
            (1 << 40),
        )
        for one, other in itertools.permutations(devices, 2)
    ]


def names(devices: Sequence[DeviceFacts], stages: Sequence[StagePlacement]) -> list[str]:
    by_node = {each.node: each.name for each in devices}
    return [f"{by_node[stage.node]} {stage.span.layers}" for stage in stages]


# Against every ring there is


def every_ring(costs: Costs) -> Iterator[tuple[Ring, RingTimes]]:
    count, layers = len(costs.devices), costs.layers
    for number in range(count):
        for order in itertools.permutations(range(count), number + 1):
            for cuts in itertools.combinations(range(layers), number):
                ring = Ring(order, (*cuts, layers))
                if fits(costs, ring):
                    yield ring, ring_times(costs, ring)


def fits(costs: Costs, ring: Ring) -> bool:
    rooms = [costs.home_rooms[ring.order[0]], *costs.rooms[list(ring.order[1:])]]
    firsts = (0, *ring.cuts[:-1])
    return all(
        costs.ends[past] - costs.ends[first] <= room
        for first, past, room in zip(firsts, ring.cuts, rooms, strict=True)
    )


Facts = tuple[ModelFacts, list[DeviceFacts], list[LinkFacts], Requirements]


def random_facts(chance: random.Random, count: int, layers: int) -> Facts:
    """Return a mesh in which memory, speed, round trips and rates all matter somewhat."""
    sizes = tuple(chance.choice((100_000, 100_000, 130_000)) for _ in range(layers))
    scratch, kv = chance.choice((0, 9_000)), chance.choice((0, 10))
    model = ModelFacts(
        "0" * 64, "m", 1, 64, 4096, sizes, chance.randint(0, 200_000), kv, scratch, 0
    )
    room = int(200_000 * layers * chance.choice((0.2, 0.5, 1)))
    devices = [
        DeviceFacts(
            f"{chance.randrange(1 << 64):032x}",
            f"d{number}",
            chance.randint(0, room),
            chance.choice((None, *[speed_of(chance)] * 5)),
        )
        for number in range(count)
    ]
    measured = [
        LinkFacts(one.node, other.node, chance.randint(0, 40), chance.choice((0, 10**6, 10**8)))
        for one, other in itertools.permutations(devices, 2)
        if chance.random() < 0.7
    ]
    return model, devices, measured, Requirements(64, chance.choice((1, 2, 4)))


def speed_of(chance: random.Random) -> DeviceSpeed:
    return DeviceSpeed(chance.randint(0, 1000), chance.randint(1, 300), chance.randint(0, 300))


@pytest.mark.parametrize("seed", range(60))
def test_no_ring_is_better(seed: int) -> None:
    chance = random.Random(seed)
    costs = Costs(*random_facts(chance, chance.randint(1, 5), chance.randint(1, 6)))
    rings = list(every_ring(costs))
    least_token = min((times.token for _, times in rings), default=None)
    least_interval = min((t.interval(costs.sessions) for _, t in rings), default=None)
    for goal, least in ((CHAT, least_token), (BATCH, least_interval)):
        found = place_by_speed(costs, goal)
        assert (found and found.prediction.objective_ns(goal)) == least
        if found is not None:
            assert found.bound_ns == least
            order = tuple(costs.index(stage.node) for stage in found.stages)
            assert fits(costs, Ring(order, tuple(stage.span.past for stage in found.stages)))
            assert predict(costs, found.stages) == found.prediction


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("effort", [0, 100, 400])
def test_a_search_that_ends_early_claims_no_more_than_it_knows(seed: int, effort: int) -> None:
    chance = random.Random(9000 + seed)
    facts = random_facts(chance, chance.randint(2, 5), chance.randint(2, 6))
    costs = Costs(*facts)
    rings = list(every_ring(costs))
    for goal in (CHAT, BATCH):
        found = place_by_speed(costs, goal, effort)
        if found is None:
            continue
        ends = [t.token if goal == CHAT else t.interval(costs.sessions) for _, t in rings]
        assert found.bound_ns <= min(ends) <= found.prediction.objective_ns(goal)
        order = tuple(costs.index(stage.node) for stage in found.stages)
        assert fits(costs, Ring(order, tuple(stage.span.past for stage in found.stages)))
        chance.shuffle(facts[1])
        assert place_by_speed(Costs(*facts), goal, effort) == found  # on every machine the same


@pytest.mark.parametrize("seed", range(4))
def test_while_links_wait_a_dozen_devices_and_many_layers_are_looked_at_for_so_long(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    take = Effort.take

    def counted(effort: Effort, times: int) -> bool:
        if effort._left < NEVER // 2:
            looked_at.append(times)
        return take(effort, times)

    monkeypatch.setattr(Effort, "take", counted)
    assert place_by_speed(a_dozen(seed), BATCH, EFFORT_AT_ONCE) is not None
    largest_level = 462 * 11 * 71  # of sets of five or six of eleven devices
    assert sum(looked_at) <= EFFORT_AT_ONCE + largest_level


def a_dozen(seed: int) -> Costs:
    """Return twelve devices for 70 layers and eight answers at the same time."""
    model, devices, measured, requirements = home_network(random.Random(seed), 12, 70)
    requirements = replace(requirements, sessions_max=8)
    devices = [replace(each, ram_bytes=4 * each.ram_bytes) for each in devices]
    return Costs(model, devices, measured, requirements)


@pytest.mark.parametrize("seed", range(3))
def test_with_patience_the_best_of_a_dozen_devices_is_found(seed: int) -> None:
    costs = a_dozen(seed)
    best = place_by_speed(costs, BATCH)
    assert best is not None
    assert best.prediction.interval_ns == best.bound_ns
    good = place_by_speed(costs, BATCH, EFFORT_AT_ONCE)
    assert good is not None
    assert good.bound_ns <= best.bound_ns <= good.prediction.interval_ns


@pytest.mark.parametrize("seed", range(60))
def test_the_bounds_are_bounds(seed: int) -> None:
    chance = random.Random(1000 + seed)
    costs = Costs(*random_facts(chance, chance.randint(2, 5), chance.randint(1, 6)))
    outlook = Outlook(costs)
    token = outlook.least_token_ns()
    for _, times in every_ring(costs):
        assert token <= times.token
        assert outlook.least_interval_ns(token) <= times.interval(costs.sessions)
        assert least_busy_ns(costs, -1, times.busiest) <= times.busiest
    busiest = min((times.busiest for _, times in every_ring(costs)), default=None)
    if busiest is not None:
        assert least_busy_ns(costs, -1, 2 * busiest) <= busiest


@pytest.mark.parametrize("seed", range(30))
def test_a_cap_and_a_limit_are_kept(seed: int) -> None:
    chance = random.Random(2000 + seed)
    costs = Costs(*random_facts(chance, chance.randint(2, 4), chance.randint(2, 6)))
    rings = list(every_ring(costs))
    for cap in {times.busiest + less for _, times in rings[::7] for less in (0, -1)}:
        within = [times.token for _, times in rings if times.busiest <= cap]
        found = quickest_ring(costs, cap)
        assert (found and ring_times(costs, found).token) == min(within, default=None)
        if found is not None:
            assert ring_times(costs, found).busiest <= cap
            assert quickest_ring(costs, cap, min(within)) is None
            likely = likely_ring(costs, Outlook(costs, cap), cap)
            assert likely is None or ring_times(costs, likely).busiest <= cap


# What the issue of a split by speed is


def test_what_one_device_can_hold_is_not_sent_round() -> None:
    devices = [device(1), device(2), device(3)]
    costs = Costs(model_of(*[MIB] * 8), devices, links(devices, 2), REQUIREMENTS)
    found = place_by_speed(costs, CHAT)
    assert found is not None
    assert names(devices, found.stages) == ["d1 8"]
    assert found.prediction == Prediction((8_000_000,), (), (), 8_000_000, 8_000_000)
    said = reasons(costs, found.stages, CHAT)
    assert said[devices[1].node] == (
        "with it the ring would take 10.0 ms a token instead of 8.0 ms"
    )


def test_a_slow_device_and_a_far_one_are_left_out_where_others_have_room() -> None:
    near = [device(1, 4 * MIB, 1), device(2, 4 * MIB, 1)]
    devices = [*near, device(3, 4 * MIB, 9), device(4, 4 * MIB, 1)]
    measured = links(devices, 2, d1_d4=90, d2_d4=90, d3_d4=90)
    costs = Costs(model_of(*[MIB] * 8), devices, measured, REQUIREMENTS)
    found = place_by_speed(costs, CHAT)
    assert found is not None
    assert names(devices, found.stages) == ["d1 4", "d2 4"]
    assert found.prediction.hops_ns == (1_000_001, 1_000_001)
    said = reasons(costs, found.stages, CHAT)
    assert said[devices[2].node] == "with it the ring would take 19.0 ms a token instead of 10.0 ms"
    assert said[devices[3].node].startswith("with it the ring would take 98.0 ms")


def test_a_slow_device_is_taken_where_it_is_needed_and_no_more_than_that() -> None:
    devices = [device(1, 5 * MIB, 1), device(2, 8 * MIB, 9)]
    costs = Costs(model_of(*[MIB] * 8), devices, links(devices, 2), REQUIREMENTS)
    found = place_by_speed(costs, CHAT)
    assert found is not None
    assert names(devices, found.stages) == ["d1 5", "d2 3"]
    by_ram = place(model_of(*[MIB] * 8), devices, REQUIREMENTS)
    assert not isinstance(by_ram, Unplaceable)
    assert names(devices, by_ram) == ["d2 5", "d1 3"]
    assert predict(costs, by_ram).token_ns > found.prediction.token_ns


def test_a_batch_lets_many_devices_work_at_the_same_time() -> None:
    devices = [device(number, ms=1) for number in range(1, 5)]
    model, measured = model_of(*[MIB] * 8), links(devices, 2)
    rates = {}
    for sessions in (1, 2, 8):
        costs = Costs(model, devices, measured, Requirements(64, sessions))
        found = place_by_speed(costs, BATCH)
        assert found is not None
        rates[sessions] = (len(found.stages), found.prediction.interval_ns)
    assert rates[1] == (1, 8_000_000)  # as for a chat
    assert rates[2] == (2, 5_000_001)  # 10 ms a token, two at a time
    assert rates[8] == (4, 2_000_000)  # the busiest stage bounds it


def test_the_nearest_neighbours_follow_each_other() -> None:
    devices = [device(number, 2 * MIB) for number in range(1, 5)]
    measured = links(devices, 40, d1_d3=2, d2_d3=2, d2_d4=2, d1_d4=2)
    costs = Costs(model_of(*[MIB] * 8), devices, measured, REQUIREMENTS)
    found = place_by_speed(costs, CHAT)
    assert found is not None
    ring = [stage.node[-1] for stage in found.stages]
    assert {frozenset(pair) for pair in itertools.pairwise([*ring, ring[0]])} == {
        frozenset("13"),
        frozenset("23"),
        frozenset("24"),
        frozenset("14"),
    }


def test_home_is_where_its_head_is_quick() -> None:
    slow = DeviceFacts("1" * 32, "slow", 1 << 40, DeviceSpeed(0, 900, 5000))
    quick = DeviceFacts("2" * 32, "quick", 64 * MIB + 4 * MIB, DeviceSpeed(0, 1000, 1000))
    model = model_of(*[MIB] * 8, home_bytes=64 * MIB)
    costs = Costs(model, [slow, quick], links([slow, quick], 2), REQUIREMENTS)
    found = place_by_speed(costs, CHAT)
    assert found is not None
    assert names([slow, quick], found.stages)[0].startswith("quick")


# In whatever order, with whatever is missing


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("goal", [CHAT, BATCH])
def test_the_order_of_facts_does_not_matter(seed: int, goal: str) -> None:
    chance = random.Random(3000 + seed)
    count = chance.choice((4, EXACT_DEVICES_MAX + 3))
    model, devices, measured, requirements = random_facts(chance, count, 12)
    placed = place_by_speed(Costs(model, devices, measured, requirements), goal)
    for _ in range(3):
        chance.shuffle(devices)
        chance.shuffle(measured)
        assert place_by_speed(Costs(model, devices, measured, requirements), goal) == placed


def test_what_is_not_measured_is_taken_to_be_middling() -> None:
    devices = [device(1, ms=1), device(2, ms=4), device(3, ms=2), device(4, ms=None)]
    costs = Costs(model_of(MIB), devices, [], REQUIREMENTS)
    assert costs.compute[3, 1] == 2_000_000
    near, far = (
        LinkFacts("1".zfill(32), "2".zfill(32), 2000),
        LinkFacts("1".zfill(32), "3".zfill(32), 8000),
    )
    hops = Costs(model_of(MIB), devices, [near, far], REQUIREMENTS).hops
    assert hops.times[0, 1] - hops.sends[0, 1] == 1_000_000
    assert hops.times[1, 2] - hops.sends[1, 2] == 2_500_000  # 2 and 8 ms from device 1
    assert hops.times[3, 2] - hops.sends[3, 2] == 2_500_000  # the usual of all, and 8 ms


def test_both_ends_of_a_link_have_measured() -> None:
    one, other = "1".zfill(32), "2".zfill(32)
    measured = [LinkFacts(one, other, 2000, 10**6), LinkFacts(other, one, 4000, 10**7)]
    costs = Costs(model_of(MIB), [device(1), device(2)], measured, REQUIREMENTS)
    row = 2 * 1000 + 1 + 100
    assert costs.hops.sends.tolist() == [[row * 100, row * 1000], [row * 100, row * 100]]
    assert costs.hops.times[0, 1] == 1_500_000 + row * 1000


def test_a_rate_that_is_not_known_is_taken_to_be_usual_and_said_to_be_unknown() -> None:
    one, other = "1".zfill(32), "2".zfill(32)
    devices, row = [device(1, 6 * MIB), device(2, 6 * MIB)], 2 * 1000 + 1 + 100
    for rate in (0, 10**6):
        measured = [LinkFacts(one, other, 2000, rate)]
        found = place_by_speed(Costs(model_of(*[MIB] * 8), devices, measured, REQUIREMENTS), CHAT)
        assert found is not None
        assert found.prediction.rates == (rate, rate)
        sending_ns = row * 10**9 // (rate or BYTES_PER_S_USUAL)
        assert found.prediction.hops_ns == (1_000_000 + sending_ns, 1_000_000 + sending_ns)


@pytest.mark.parametrize(
    ("asked", "q8"), [(("", ""), False), (("q8", ""), True), (("q8", "f16"), False)]
)
def test_rows_of_a_q8_link_are_counted_as_small_as_they_are(
    asked: tuple[str, str], q8: bool
) -> None:
    devices = [replace(device(number), wire=wire) for number, wire in enumerate(asked, start=1)]
    measured = [LinkFacts(devices[0].node, devices[1].node, 2000, 10**6)]
    costs = Costs(model_of(MIB), devices, measured, REQUIREMENTS)
    row = lossy_row_bytes(1000) if q8 else 2 * 1000 + 1
    assert costs.hops.sends[0, 1] == costs.hops.sends[1, 0] == (row + STEP_HEADER_BYTES) * 1000
    assert lossy_row_bytes(1000) < 0.6 * 2001


def test_a_thin_link_is_left_out_of_the_ring_although_it_is_near() -> None:
    devices = [device(1, 6 * MIB), device(2, 6 * MIB), device(3, 6 * MIB)]
    thin = {frozenset("12"), frozenset("13")}
    measured = [
        each._replace(bytes_per_s=10**5 if {each.node[-1], each.peer[-1]} in thin else 10**8)
        for each in links(devices, 2)
    ]
    found = place_by_speed(Costs(model_of(*[MIB] * 8), devices, measured, REQUIREMENTS), CHAT)
    assert found is not None
    assert {stage.node[-1] for stage in found.stages} == {"2", "3"}


def test_without_devices_or_room_there_is_no_placement() -> None:
    assert place_by_speed(Costs(model_of(MIB), [device(1, 5)], [], REQUIREMENTS), CHAT) is None
    small = [device(number, MIB // 2) for number in range(1, 5)]
    assert place_by_speed(Costs(model_of(MIB), small, [], REQUIREMENTS), BATCH) is None


def test_absurd_facts_are_no_fault() -> None:
    big = DeviceSpeed((1 << 32) - 1, (1 << 32) - 1, (1 << 32) - 1)
    devices = [DeviceFacts(f"{n:032x}", f"d{n}", (1 << 48) - 1, big) for n in range(3)]
    model = ModelFacts("0" * 64, "m", 1, 65536, 99, ((1 << 48) - 1,) * 8, (1 << 48) - 1, 9, 9, 9)
    measured = [LinkFacts(devices[0].node, devices[1].node, (1 << 32) - 1, 1)]
    assert place_by_speed(Costs(model, devices, measured, REQUIREMENTS), CHAT) is None
    model = ModelFacts("0" * 64, "m", 1, 65536, 99, ((1 << 36),) * 1000, 1 << 40, 9, 9, 9)
    found = place_by_speed(Costs(model, devices, measured, REQUIREMENTS), BATCH)
    assert found is not None
    assert 0 < found.bound_ns < NEVER


# Many devices


def home_network(chance: random.Random, count: int, layers: int) -> Facts:
    """Return computers on cables, others on Wi-Fi and phones; each has measured 16 links."""
    sizes = tuple(chance.choice((24 << 20, 28 << 20)) for _ in range(layers))
    model = ModelFacts("0" * 64, "m", 1, 4096, 4096, sizes, 300 << 20, 4096, 8 << 20, 2048)
    kinds = {
        "cable": (150, 100_000_000, 60),
        "wifi": (1500, 20_000_000, 100),
        "phone": (4000, 5_000_000, 250),
    }
    devices, away, rates = [], [], []
    for number in range(count):
        trip_us, rate, kib_ns = kinds[chance.choice(list(kinds))]
        away.append(trip_us * chance.randint(80, 150) // 100)
        rates.append(rate * chance.randint(60, 150) // 100)
        kib_ns = kib_ns * chance.randint(60, 200) // 100
        speed = DeviceSpeed(chance.randint(10_000, 60_000), kib_ns, kib_ns)
        room = (8 << 20) + chance.randint(1, 8) * (48 << 20) + chance.choice((0, 0, 300 << 20))
        devices.append(DeviceFacts(f"{chance.randrange(1 << 64):032x}", f"d{number}", room, speed))
    measured = [
        LinkFacts(devices[i].node, devices[j].node, away[i] + away[j], min(rates[i], rates[j]))
        for i in range(count)
        for j in chance.sample(range(count), min(count, 17))
        if i != j
    ]
    return model, devices, measured, Requirements(2048, 4)


@pytest.mark.parametrize("goal", [CHAT, BATCH])
def test_a_thousand_devices_are_placed_near_the_bound(goal: str) -> None:
    model, devices, measured, requirements = home_network(random.Random(1), 1000, 200)
    costs = Costs(model, devices, measured, requirements)
    found = place_by_speed(costs, goal)
    assert found is not None
    assert found.bound_ns <= found.prediction.objective_ns(goal) <= 1.35 * found.bound_ns
    by_node = {each.node: each for each in devices}
    past = 0
    for index, stage in enumerate(found.stages):
        assert stage.span.first == past
        past = stage.span.past
        used = stage_bytes(model, stage.span, index == 0, requirements)
        assert used <= by_node[stage.node].ram_bytes
    assert past == 200
    assert len(reasons(costs, found.stages, goal)) == 1000 - len(found.stages)


@pytest.mark.parametrize("seed", range(8))
def test_the_quick_search_comes_near_the_exact_one(seed: int) -> None:
    costs = Costs(*home_network(random.Random(seed), EXACT_DEVICES_MAX, 24))
    likely, best = likely_ring(costs, Outlook(costs)), quickest_ring(costs)
    assert (likely is None) == (best is None)
    if likely is not None and best is not None:
        assert ring_times(costs, likely).token <= 1.1 * ring_times(costs, best).token


# When to change a plan that runs


@pytest.mark.parametrize(
    ("now", "then", "worth"),
    [(100, 86, False), (100, 85, False), (100, 84, True), (100, 120, False)],
)
def test_a_small_gain_is_not_worth_a_change(now: int, then: int, worth: bool) -> None:
    def prediction(token: int, interval: int) -> Prediction:
        return Prediction((token,), (), (), token, interval)

    assert is_worth_changing(prediction(now, 7), prediction(then, 7), CHAT) is worth
    assert is_worth_changing(prediction(7, now), prediction(7, then), BATCH) is worth


def test_why_a_device_is_left_out() -> None:
    model = model_of(*[MIB] * 4)
    devices = [device(1, 4 * MIB), device(2, MIB // 2), device(3, 4 * MIB)]
    costs = Costs(model, devices, links(devices, 2), REQUIREMENTS)
    alone = [StagePlacement(devices[0].node, Span(0, 4))]
    said = reasons(costs, alone, CHAT)
    assert said[devices[1].node] == "offers too little memory for a layer"
    assert said[devices[2].node].startswith("with it the ring would take 6.0 ms a token")
    assert reasons(costs, alone, RAM)[devices[2].node] == (
        "its share of the memory is less than a layer"
    )
