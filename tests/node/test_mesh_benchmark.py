"""What lies between two readings of a mesh's meters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgellama.cli.bench_mesh import bench_object
from edgellama.cli.tables import mesh_bench_table
from edgellama.node.mesh_benchmark import Answers, StageRow, mesh_bench, ring_of
from edgellama.values import LinkCounters, LinkFacts, ModelFacts, Span
from edgellama.wire.measurement_messages import LinkMeter, MeterReply
from edgellama.wire.messages import ALIVE, MemberRecord, MemberStatus, StatusReply

A, B = "a" * 32, "b" * 32
MODEL = ModelFacts("0" * 64, "stories", 1, 64, 512, (1, 1, 1), 1, 1, 1, 1)
ONE = Answers(1, 64, tokens_per_second=20.0, prompt_s=0.1, token_s=0.05, rows=100)


def member(node: str, span: Span, *, home: bool) -> MemberStatus:
    record = MemberRecord(
        *(node, 1, 1, ALIVE, node[:2], "10.0.0.1", 7711, 7712, 1, 0, "numpy", "", "", True, "0")
    )
    return MemberStatus(record, span, home, LinkCounters())


def status(*members: MemberStatus) -> StatusReply:
    return StatusReply(1, A, True, 3, (MODEL,), 64, members, "", True)


TWO = status(member(B, Span(2, 3), home=False), member(A, Span(0, 2), home=True))


def meter(node: str, peer: str, part: int, *, round_trip_us: int = 8000) -> MeterReply:
    """Return a meter after ``part`` hundred rows: 10 ms a step, 2 ms a head, 1000 bytes a row."""
    heads = 50 * part if node == A else 0
    sent = LinkCounters(100_000 * part, 7, 200 * part, 7, 4 * part)
    return MeterReply(
        *(1, node, "0", 0, 9, 50 * part, 50 * part * 10_000_000, heads, heads * 2_000_000),
        (LinkMeter(LinkFacts(node, peer, round_trip_us, 1_000_000), sent),),
    )


def readings(part: int, **changes: int) -> dict[str, MeterReply]:
    return {A: meter(A, B, part), B: meter(B, A, part, **changes)}


def test_home_is_first() -> None:
    assert [each.record.node for each in ring_of(TWO)] == [A, B]


def test_what_happened_between_two_readings() -> None:
    bench = mesh_bench(TWO, readings(1), readings(2), ONE)
    assert bench.stages == (
        StageRow("aa", Span(0, 2), True, 12.0, "bb", 8.0, 8.0, 0.02, 1000.0, 5.0),
        StageRow("bb", Span(2, 3), False, 10.0, "aa", 8.0, 8.0, 0.02, 1000.0, 5.0),
    )
    assert (bench.model, bench.epoch, bench.tokens_per_second) == ("stories", 3, 20.0)
    assert bench.rest_ms == pytest.approx(50 - 12 - 10 - 5 - 5)
    assert bench.held_back_by == (
        "aa: its 2 layers and the head compute for 12.0 of 50.0 ms a token"
    )


def test_a_far_link_holds_the_ring_back() -> None:
    bench = mesh_bench(TWO, readings(1), readings(2, round_trip_us=60_000), ONE)
    assert bench.held_back_by == "the link from bb to aa: 31.0 of 50.0 ms a token"


@pytest.mark.parametrize(
    ("tokens_per_second", "words"),
    [(70.0, "compute for 12.0 of the 14.3 ms between two tokens"), (30.0, "of 50.0 ms a token")],
)
def test_many_answers_are_bounded_by_a_busy_stage_alone(
    tokens_per_second: float, words: str
) -> None:
    answers = replace(ONE, sessions=4, tokens_per_second=tokens_per_second)
    assert words in mesh_bench(TWO, readings(1), readings(2), answers).held_back_by


def test_who_cannot_be_asked_is_not_guessed() -> None:
    before, after = readings(1), readings(2)
    del after[B]
    bench = mesh_bench(TWO, before, after, ONE)
    assert bench.stages[1] == StageRow("bb", Span(2, 3), False, None, "aa")
    assert bench.held_back_by == "not every stage could be asked"
    assert bench_object(bench)["stages"][1] == {
        "name": "bb",
        "layers": [2, 3],
        "home": False,
        "next_name": "aa",
    }
    assert mesh_bench_table(bench)


def test_a_device_that_does_it_all_has_no_link() -> None:
    alone = status(member(A, Span(0, 3), home=True))
    bench = mesh_bench(alone, {A: meter(A, B, 1)}, {A: meter(A, B, 2)}, ONE)
    assert bench.stages == (StageRow("aa", Span(0, 3), True, 12.0),)
    assert bench.rest_ms == pytest.approx(38)


def test_meters_that_did_not_move_are_no_fault() -> None:
    bench = mesh_bench(TWO, readings(1), readings(1), replace(ONE, tokens_per_second=0.0))
    assert bench.stages[0].compute_ms == 0.0
    assert bench.stages[0].loss == 0.0
