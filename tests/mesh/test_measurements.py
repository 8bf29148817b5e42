"""What a node measures, whom it tells, and what plans make of it."""

from __future__ import annotations

import pytest
from mesh_building import MODEL, A, B, C, plan_of, rows_of, sent

from edgellama.mesh.effects import HeadJob, Outbox, StageJob
from edgellama.mesh.measurements import PUBLISH_S, Measurements, is_news
from edgellama.plan.device_speed import SPEED_PAST, corrected, layers_ns, with_head
from edgellama.values import DeviceSpeed, LinkFacts, SamplingSettings, StageTimes
from edgellama.wire.measurement_messages import LINKS_TOLD_MAX, Measured

SPEED = DeviceSpeed(1000, 100, 100)
LAYER_NS = layers_ns(SPEED, MODEL.facts.layer_bytes[:2])


class Desk:
    def __init__(self) -> None:
        self.outbox = Outbox()
        self.links: list[LinkFacts] = []
        self.measurements = Measurements(A, self.outbox, lambda: self.links)
        self.now = 0.0

    def told(self, seconds: float = PUBLISH_S) -> list[Measured]:
        self.now += seconds
        self.measurements.handle_timer(self.now, [B, C])
        messages = [(node, m) for node, m in sent(self.outbox) if isinstance(m, Measured)]
        assert [m for node, m in messages if node == B] == [m for node, m in messages if node == C]
        return [message for node, message in messages if node == B]

    def step(self, elapsed_ns: int, epoch: int = 5, count: int = 1) -> None:
        self.measurements.meter.take(StageJob(epoch, 1, 0, hidden=rows_of(count)), elapsed_ns)

    def head(self, elapsed_ns: int) -> None:
        job = HeadJob(5, 1, 1, rows_of(1), SamplingSettings(), ())
        self.measurements.meter.take(job, elapsed_ns)


def link(peer: str, round_trip_us: int, bytes_per_s: int = 0) -> LinkFacts:
    return LinkFacts(A, peer, round_trip_us, bytes_per_s)


def test_nothing_measured_is_nothing_told() -> None:
    desk = Desk()
    assert desk.told() == []
    desk.measurements.peer_connected(B)
    assert sent(desk.outbox) == []


def test_a_trial_is_told_at_once_and_to_who_comes_later() -> None:
    desk = Desk()
    desk.told()
    desk.measurements.set_speed(SPEED, desk.now)
    (told,) = desk.told(0.0)
    assert told == Measured((SPEED,), 0, 0, 0, ())
    assert desk.told() == []  # nothing new
    desk.measurements.peer_connected(C)
    assert sent(desk.outbox) == [(C, told)]


def test_news_wait_until_it_is_time() -> None:
    desk = Desk()
    desk.measurements.set_speed(SPEED, desk.now)
    desk.told(0.0)
    desk.links = [link(B, 2000)]
    assert desk.told(PUBLISH_S - 0.1) == []
    assert len(desk.told(0.1)) == 1


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        ([], [link(B, 2000)], True),
        ([link(B, 2000)], [link(C, 2000)], True),
        ([link(B, 2000)], [link(B, 2499)], False),  # a fifth, and yet noise
        ([link(B, 20_000)], [link(B, 21_900)], False),
        ([link(B, 20_000)], [link(B, 23_000)], True),
        ([link(B, 2000, 10**6)], [link(B, 2000, 10**7)], True),
        ([link(B, 2000, 1000)], [link(B, 2000, 1090)], False),
    ],
)
def test_what_is_news(before: list[LinkFacts], after: list[LinkFacts], news: bool) -> None:
    one, other = (Measured((SPEED,), 1, 9, 0, tuple(links)) for links in (before, after))
    assert is_news(other, one) is news


def test_a_stage_that_slows_down_is_news() -> None:
    told = Measured((SPEED,), 1, 1000, 0, ())
    assert not is_news(Measured((SPEED,), 1, 1090, 0, ()), told)
    assert is_news(Measured((SPEED,), 1, 1200, 0, ()), told)
    assert is_news(Measured((SPEED,), 2, 1000, 0, ()), told)
    assert is_news(Measured((SPEED._replace(kib_ns=200),), 1, 1000, 0, ()), told)
    assert is_news(told, None)


def test_only_the_nearest_links_are_told() -> None:
    desk = Desk()
    desk.links = [link(f"{n:032x}", 1000 - n) for n in range(LINKS_TOLD_MAX + 5)]
    (told,) = desk.told()
    assert len(told.links) == LINKS_TOLD_MAX
    assert max(each.round_trip_us for each in told.links) == 1000 - 5


def test_single_tokens_correct_the_speed() -> None:
    desk = Desk()
    measurements = desk.measurements
    measurements.set_speed(SPEED, 0.0)
    measurements.follow(plan_of(A, B, C), MODEL.facts)
    for elapsed_ns in (2 * LAYER_NS, 2 * LAYER_NS, 50 * LAYER_NS):  # one was in the system's way
        desk.step(elapsed_ns)
    desk.step(LAYER_NS, count=32)
    desk.step(LAYER_NS, epoch=4)
    assert measurements.speed(A) == DeviceSpeed(2000, 200, 100)
    desk.head(MODEL.facts.home_bytes)
    speed = measurements.speed(A)
    assert speed is not None
    assert speed.head_kib_ns == 1024
    assert measurements.meter.steps == 4
    assert measurements.meter.heads == 1
    # The next plan begins with what is known now.
    measurements.follow(plan_of(B, A, epoch=6), MODEL.facts)
    assert measurements.speed(A) == speed


def test_other_kernels_void_what_was_measured() -> None:
    desk = Desk()
    desk.measurements.set_speed(SPEED, 0.0)
    desk.measurements.follow(plan_of(A, B), MODEL.facts)
    desk.step(7 * LAYER_NS)
    desk.measurements.set_speed(SPEED, 0.0)
    assert desk.measurements.speed(A) == SPEED


def test_a_node_without_layers_keeps_its_speed() -> None:
    desk = Desk()
    desk.measurements.set_speed(SPEED, 0.0)
    desk.measurements.follow(plan_of(B, C), MODEL.facts)
    assert desk.measurements.speed(A) == SPEED


def test_what_others_tell() -> None:
    desk = Desk()
    measurements = desk.measurements
    assert measurements.speed(B) is None
    mine, theirs, foreign = link(B, 9), LinkFacts(B, C, 500), LinkFacts(C, A, 1)
    desk.links = [mine]
    measurements.receive(B, Measured((SPEED,), 5, 300, 40, (theirs, foreign)), 7.0)
    assert measurements.speed(B) == SPEED
    assert measurements.links() == [mine, theirs]  # nobody speaks for another
    assert measurements.news_since == 7.0
    measurements.seen()
    measurements.receive(B, Measured((SPEED,), 5, 310, 40, (theirs,)), 8.0)
    assert measurements.news_since is None  # nothing that a plan is made of
    plan = plan_of(A, B, C)
    assert measurements.stage_times(plan, B, C, 1000) == StageTimes(350, 250_000)
    assert measurements.stage_times(plan_of(A, B, C, epoch=6), B, A, 1000) == StageTimes()
    assert measurements.stage_times(plan, C, A, 1000) == StageTimes()
    desk.links = [link(B, 9, 10**6)]
    desk.told()
    assert measurements.stage_times(plan, A, B, 1000) == StageTimes(0, 4500 + 10**6, 10**6)


def test_corrections_stay_within_bounds() -> None:
    assert corrected(SPEED, (), 5) == SPEED
    assert corrected(SPEED, (1024,), 0) == SPEED
    assert corrected(DeviceSpeed(0, 0, 0), (1024,), 5) == DeviceSpeed(0, 0, 0)
    assert corrected(SPEED, (1024,), 1 << 60) == DeviceSpeed(SPEED_PAST - 1, SPEED_PAST - 1, 100)
    assert with_head(SPEED, 1, 1 << 60).head_kib_ns == SPEED_PAST - 1
    assert with_head(SPEED, 0, 5) == SPEED
