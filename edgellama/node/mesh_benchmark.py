"""How fast the running mesh answers, and what holds it back.

Answers are asked for as any guest asks; before and after, every stage is asked directly what it
has counted. The differences are what the answers took.
"""

from __future__ import annotations

import itertools
import secrets
import statistics
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgellama.errors import EdgellamaError, NoMeshError
from edgellama.node.asking import mesh_asker
from edgellama.node.survey import Survey
from edgellama.values import Address, LinkCounters, SamplingSettings, Span
from edgellama.wire.messages import Ask, Finished, MemberStatus, Piece, StatusReply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgellama.net.paths import StatePaths
    from edgellama.node.asking import MeshAsker
    from edgellama.values import NodeId
    from edgellama.wire.measurement_messages import LinkMeter, MeterReply

POLL_S: Final = 0.2
TOKENS_DEFAULT: Final = 64
WARM_UP_TOKENS: Final = 4
BUSY_SHARE: Final = 0.6  # of the time: a stage that works for more of it bounds the rate
PROMPT: Final = "Once upon a time"


@dataclass(frozen=True)
class StageRow:
    """One stage: what it computes for a token, and its link to the next; milliseconds.

    What could not be asked for is None: a stage that this device does not reach, the link of a
    device that does it all. ``loss`` is of the packets sent while the answers were made.
    """

    name: str
    layers: Span
    home: bool
    compute_ms: float | None
    next_name: str | None = None
    round_trip_ms: float | None = None
    megabits_per_second: float | None = None
    loss: float | None = None
    bytes_per_token: float | None = None
    hop_ms: float | None = None


@dataclass(frozen=True)
class MeshBench:
    """What a mesh has done; ``held_back_by`` is for a person.

    ``rest_ms`` of a token's time are neither computing nor on the way, as far as is known.
    """

    model: str
    epoch: int
    sessions: int
    tokens: int
    tokens_per_second: float
    prompt_ms: float
    token_ms: float
    rest_ms: float
    stages: tuple[StageRow, ...]
    held_back_by: str


def benchmark_mesh(
    named: Sequence[Address],
    mesh_key: bytes,
    paths: StatePaths,
    transport: str,
    sessions: int,
    tokens: int,
    progress: Callable[[int, int], None],
) -> MeshBench:
    """Ask the mesh for ``sessions`` answers of ``tokens`` tokens at the same time.

    Raises NoMeshError where none answers or it is not ready, and what an answer raises.
    """
    with ExitStack() as stack:
        askers = [
            stack.enter_context(mesh_asker(named, mesh_key, paths, transport))
            for _ in range(sessions)
        ]
        status = askers[0].status()
        if not status.ready:
            raise NoMeshError(f"the mesh is not ready: {status.trouble or 'it is loading'}")
        for _ in askers[0].answer(benchmark_ask(WARM_UP_TOKENS)):
            pass
        survey = stack.enter_context(closing(Survey(mesh_key, transport=transport)))
        survey.start()
        records = [member.record for member in ring_of(status)]
        survey.reach([Address(record.host, record.port) for record in records])
        before = survey.meters()
        answers = _answered(askers, tokens, progress)
        after = survey.meters()
        if askers[0].status().epoch != status.epoch:
            raise EdgellamaError("the plan changed while the mesh was measured; try again")
    return mesh_bench(status, before, after, answers)


@dataclass(frozen=True)
class Answers:
    """What answers made at the same time have taken; seconds.

    ``rows`` are the hidden rows that have gone round, those of the prompts included.
    """

    sessions: int
    tokens: int  # of each
    tokens_per_second: float  # of all together
    prompt_s: float
    token_s: float  # between two tokens of one answer
    rows: int


def ring_of(status: StatusReply) -> list[MemberStatus]:
    """Return the stages in the order of the ring, home first."""
    stages = [member for member in status.members if member.home or member.span.layers]
    return sorted(stages, key=lambda member: (not member.home, member.span.first))


def mesh_bench(
    status: StatusReply,
    before: Mapping[NodeId, MeterReply],
    after: Mapping[NodeId, MeterReply],
    answers: Answers,
) -> MeshBench:
    """Return what lies between two readings of the stages' meters."""
    ring = ring_of(status)
    following = [*ring[1:], ring[0]]
    rows = tuple(
        _stage_row(
            *(member, next_member if len(ring) > 1 else None),
            *(before.get(member.record.node), after.get(member.record.node)),
            answers,
        )
        for member, next_member in zip(ring, following, strict=True)
    )
    known_ms = sum((row.compute_ms or 0.0) + (row.hop_ms or 0.0) for row in rows)
    return MeshBench(
        model=status.model[0].name,
        epoch=status.epoch,
        sessions=answers.sessions,
        tokens=answers.tokens,
        tokens_per_second=answers.tokens_per_second,
        prompt_ms=answers.prompt_s * 1e3,
        token_ms=answers.token_s * 1e3,
        rest_ms=max(0.0, answers.token_s * 1e3 - known_ms),
        stages=rows,
        held_back_by=_held_back_by(rows, answers),
    )


def _stage_row(
    member: MemberStatus,
    next_member: MemberStatus | None,
    before: MeterReply | None,
    after: MeterReply | None,
    answers: Answers,
) -> StageRow:
    row = StageRow(member.record.name, member.span, member.home, None)
    if next_member is not None:
        row = replace(row, next_name=next_member.record.name)
    if before is None or after is None:
        return row
    compute_ns = 0.0
    if steps := after.steps - before.steps:
        compute_ns += (after.stage_ns - before.stage_ns) / steps
    if heads := after.heads - before.heads:
        compute_ns += (after.head_ns - before.head_ns) / heads
    row = replace(row, compute_ms=compute_ns / 1e6)
    if next_member is None:
        return row
    now, then = (_link(meter, next_member.record.node) for meter in (after, before))
    if now is None or then is None:
        return row
    sent: LinkCounters = now.counters - then.counters
    row_bytes = sent.bytes_sent / max(1, answers.rows)
    rate = now.facts.bytes_per_s
    round_trip_ms = now.facts.round_trip_us / 1e3
    return replace(
        row,
        round_trip_ms=round_trip_ms,
        megabits_per_second=rate * 8 / 1e6 if rate else None,
        loss=sent.packets_retransmitted / max(1, sent.packets_sent),
        bytes_per_token=row_bytes,
        hop_ms=round_trip_ms / 2 + (row_bytes / rate * 1e3 if rate else 0.0),
    )


def _link(meter: MeterReply, peer: NodeId) -> LinkMeter | None:
    return next((link for link in meter.links if link.facts.peer == peer), None)


def _held_back_by(rows: Sequence[StageRow], answers: Answers) -> str:
    """Return what takes the greatest part of a token's time, or bounds several answers' rate."""
    if any(row.compute_ms is None for row in rows):
        return "not every stage could be asked"
    slowest = max(rows, key=lambda row: row.compute_ms or 0.0)
    compute_ms = slowest.compute_ms or 0.0
    layers = f"{slowest.layers.layers} layers" + (" and the head" if slowest.home else "")
    between_ms = 1e3 / max(1e-9, answers.tokens_per_second)
    if answers.sessions > 1 and compute_ms > BUSY_SHARE * between_ms:
        return (
            f"{slowest.name}: its {layers} compute for {compute_ms:.1f} of the {between_ms:.1f} ms "
            "between two tokens"
        )
    token_ms = answers.token_s * 1e3
    farthest = max(rows, key=lambda row: row.hop_ms or 0.0)
    if (farthest.hop_ms or 0.0) > compute_ms:
        return (
            f"the link from {farthest.name} to {farthest.next_name}: {farthest.hop_ms:.1f} of "
            f"{token_ms:.1f} ms a token"
        )
    return f"{slowest.name}: its {layers} compute for {compute_ms:.1f} of {token_ms:.1f} ms a token"


# --- asking ---------------------------------------------------------------------------------


def benchmark_ask(tokens: int) -> Ask:
    """Return a request that makes so many tokens whatever the model would say."""
    return Ask(
        request=secrets.randbits(64),
        sampling=SamplingSettings(),
        tokens_max=tokens,
        ignore_end=True,
        raw=True,
        tokens=(),
        system="",
        today=1,
        history=(),
        scored_from=0,
        attempt=0,
        wait_s=0,
        prompt=PROMPT,
    )


class _Asking(threading.Thread):
    """One answer, and when its tokens came."""

    def __init__(
        self, asker: MeshAsker, tokens: int, made: Callable[[], None], stop: threading.Event
    ) -> None:
        super().__init__(name="edgellama-asking", daemon=True)
        self._asker, self._tokens, self._made, self._stop_event = asker, tokens, made, stop
        self.times: list[float] = []
        self.end: Finished | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Take the answer as it comes."""
        try:
            for message in self._asker.answer(benchmark_ask(self._tokens), self._stop_event):
                if isinstance(message, Piece):
                    self.times.extend([time.monotonic()] * len(message.tokens))
                    self._made()
                elif isinstance(message, Finished):
                    self.end = message
        except BaseException as error:
            self.error = error


def _answered(
    askers: Sequence[MeshAsker], tokens: int, progress: Callable[[int, int], None]
) -> Answers:
    """Let all askers ask at the same time; raise what any of their answers raises."""
    made = itertools.count(1)
    total = tokens * len(askers)
    stop = threading.Event()
    threads = [
        _Asking(asker, tokens, lambda: progress(min(next(made), total), total), stop)
        for asker in askers
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(POLL_S)  # so that Ctrl-C is heard
    finally:
        stop.set()
    ends = []
    for thread in threads:
        if thread.error is not None:
            raise thread.error
        if thread.end is None or len(thread.times) < 2:
            raise EdgellamaError("an answer ended before it was made; try again")
        ends.append(thread.end)
    return _counted(ends, [thread.times for thread in threads], tokens)


def _counted(ends: Sequence[Finished], times: Sequence[Sequence[float]], tokens: int) -> Answers:
    seconds = max(each[-1] for each in times) - min(each[0] for each in times)
    made = sum(len(each) for each in times) - len(times)
    token_s = statistics.fmean((each[-1] - each[0]) / (len(each) - 1) for each in times)
    return Answers(
        len(ends),
        tokens,
        made / seconds if seconds > 0 else 0.0,
        statistics.fmean(end.prompt_us / 1e6 for end in ends),
        token_s,
        made + sum(len(end.prompt_tokens) for end in ends),
    )
