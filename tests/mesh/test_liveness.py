"""Silence: at two speeds, with others asked, and none held against anybody by who was asleep."""

from __future__ import annotations

import pytest
from mesh_building import A, B, C, D, sent

from edgellama.mesh.effects import Outbox
from edgellama.mesh.liveness import (
    ANSWER_WAIT_S,
    ASLEEP_S,
    BUSY_DEAD_CONFIRMED_S,
    BUSY_DEAD_S,
    BUSY_SUSPECT_S,
    FINE_TICK_S,
    IDLE_DEAD_S,
    IDLE_SUSPECT_S,
    NEVER_MS,
    QUESTIONS_MAX,
    Liveness,
    Verdict,
)
from edgellama.wire.messages import Doubt, Heard


class Watch:
    """A watch over B, with C and D to ask, at a time of its own."""

    def __init__(self, *, awaited: bool) -> None:
        self.outbox = Outbox(A)
        self.heard: dict[str, float] = {B: 100.0, C: 100.0, D: 100.0}
        self.liveness = Liveness(self.outbox, self.heard.get)
        self.now = 100.0
        self.awaited = {B} if awaited else set()
        self.liveness.watch({B: 1}, self.awaited, self.now)
        self.liveness.awake(self.now)

    def until(self, now: float) -> list[Verdict]:
        """Let timers run up to a time; return what has become certain, each once."""
        verdicts: list[Verdict] = []
        while self.liveness.next_timer() <= now:
            self.now = self.liveness.next_timer()
            self.liveness.watch({B: 1}, self.awaited, self.now)
            found = self.liveness.handle_timer(self.now, {B, C, D})
            verdicts += [each for each in found if each not in verdicts]
        return verdicts

    def asked(self) -> list[str]:
        """Return who has been asked about B since the last call."""
        return [node for node, message in sent(self.outbox) if message == Doubt(B)]


DEAD = Verdict(B, 1, None)


@pytest.mark.parametrize(
    ("awaited", "suspect_s", "dead_s"),
    [(True, BUSY_SUSPECT_S, BUSY_DEAD_S), (False, IDLE_SUSPECT_S, IDLE_DEAD_S)],
)
def test_two_speeds(awaited: bool, suspect_s: float, dead_s: float) -> None:
    watch = Watch(awaited=awaited)
    assert watch.until(100.0 + suspect_s - FINE_TICK_S / 2) == []
    assert watch.asked() == []
    assert watch.until(100.0 + suspect_s + 2 * FINE_TICK_S) == []
    assert watch.asked() == [C, D]
    assert watch.until(100.0 + dead_s - 2 * FINE_TICK_S) == []
    assert watch.until(100.0 + dead_s + 2 * FINE_TICK_S) == [DEAD]


def test_whom_another_does_not_hear_either_is_dead_sooner() -> None:
    watch = Watch(awaited=True)
    watch.until(100.0 + BUSY_SUSPECT_S + 2 * FINE_TICK_S)
    watch.liveness.receive_heard(C, Heard(B, 1400))
    assert watch.until(100.0 + BUSY_DEAD_CONFIRMED_S - 2 * FINE_TICK_S) == []
    assert watch.until(100.0 + BUSY_DEAD_CONFIRMED_S + 2 * FINE_TICK_S) == [DEAD]


def test_who_has_stalled_of_late_is_given_longer() -> None:
    watch = Watch(awaited=True)
    watch.until(100.8)
    watch.heard[B] = 100.8
    watch.until(100.8 + BUSY_SUSPECT_S + 2 * FINE_TICK_S)
    watch.liveness.receive_heard(C, Heard(B, 1400))
    assert watch.until(100.8 + BUSY_DEAD_CONFIRMED_S + 2 * FINE_TICK_S) == []
    assert watch.until(100.8 + BUSY_DEAD_S) == [DEAD]


@pytest.mark.parametrize("awaited", [True, False])
def test_whom_another_hears_is_not_dead_but_reached_by_way_of_it(awaited: bool) -> None:
    watch = Watch(awaited=awaited)
    watch.until(100.0 + (BUSY_SUSPECT_S if awaited else IDLE_SUSPECT_S) + 2 * FINE_TICK_S)
    watch.liveness.receive_heard(C, Heard(B, NEVER_MS))
    watch.liveness.receive_heard(D, Heard(B, 20))
    assert watch.until(watch.now + 2 * FINE_TICK_S) == [Verdict(B, 1, D)]


def test_a_sign_of_life_ends_the_suspicion() -> None:
    watch = Watch(awaited=True)
    watch.until(101.3)
    assert watch.liveness.is_suspected(B)
    watch.heard[B] = 101.3
    watch.until(101.6)
    assert not watch.liveness.is_suspected(B)
    watch.liveness.receive_heard(D, Heard(B, 20))
    assert watch.until(102.0) == []


def test_what_comes_by_way_of_another_is_a_sign_of_life() -> None:
    watch = Watch(awaited=True)
    del watch.heard[B]
    for _ in range(20):
        watch.liveness.heard_by_way_of_another(B, watch.now)
        assert watch.until(watch.now + 0.5) == []


def test_who_begins_to_be_awaited_is_given_time_to_say_something() -> None:
    watch = Watch(awaited=False)
    watch.until(104.0)
    watch.awaited = {B}
    watch.liveness.watch({B: 1}, {B}, watch.now)
    began = watch.now
    assert watch.until(began + BUSY_DEAD_S - 2 * FINE_TICK_S) == []
    assert watch.until(began + BUSY_DEAD_S + 0.5) == [DEAD]


def test_another_life_begins_anew() -> None:
    watch = Watch(awaited=False)
    watch.until(107.0)
    watch.liveness.watch({B: 2}, set(), watch.now)
    assert watch.liveness.silence_s(B, watch.now) == 0.0


def test_who_was_asleep_itself_counts_anew() -> None:
    watch = Watch(awaited=True)
    watch.until(100.5)
    late = watch.liveness.next_timer() + ASLEEP_S + 30.0
    assert watch.liveness.is_asleep(late)
    assert not watch.liveness.is_asleep(watch.liveness.next_timer() + ASLEEP_S / 2)
    watch.liveness.awake(late)
    assert watch.until(late + BUSY_DEAD_S - 2 * FINE_TICK_S) == []
    assert watch.until(late + BUSY_DEAD_S + 2 * FINE_TICK_S) == [DEAD]


def test_a_question_is_answered_at_once_where_the_answer_is_known() -> None:
    watch = Watch(awaited=False)
    watch.liveness.receive_doubt(D, Doubt(C), 100.1)
    watch.liveness.receive_doubt(D, Doubt("f" * 32), 100.1)
    watch.liveness.handle_timer(100.1, {C, D})
    assert sent(watch.outbox) == [(D, Heard(C, 100)), (D, Heard("f" * 32, NEVER_MS))]


@pytest.mark.parametrize(("heard_at", "silence_ms"), [(None, 2000 + 350), (102.2, 150)])
def test_a_question_waits_a_moment_for_a_sign_of_life(
    heard_at: float | None, silence_ms: int
) -> None:
    watch = Watch(awaited=False)
    watch.liveness.receive_doubt(D, Doubt(C), 102.0)
    watch.liveness.handle_timer(102.0 + ANSWER_WAIT_S / 2, {C, D})
    assert sent(watch.outbox) == []
    watch.heard[C] = heard_at or watch.heard[C]
    watch.liveness.handle_timer(102.0 + ANSWER_WAIT_S, {C, D})
    assert sent(watch.outbox) == [(D, Heard(C, silence_ms))]


def test_questions_have_a_bound() -> None:
    watch = Watch(awaited=False)
    for _ in range(QUESTIONS_MAX + 5):
        watch.liveness.receive_doubt(D, Doubt(C), 102.0)
    watch.liveness.handle_timer(103.0, {C, D})
    assert len([each for _, each in sent(watch.outbox) if isinstance(each, Heard)]) == QUESTIONS_MAX


def test_what_is_said_unasked_has_no_effect() -> None:
    watch = Watch(awaited=True)
    watch.liveness.receive_heard(D, Heard(B, 20))
    watch.liveness.receive_heard(D, Heard("f" * 32, 20))
    assert watch.until(100.5) == []
