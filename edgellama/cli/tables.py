"""Tables for a person: a plan, and how a mesh stands."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgellama.plan.sizes import format_size
from edgellama.values import KV_F16, RAM, WIRE_Q8
from edgellama.wire.messages import ALIVE, MemberStatus, StatusReply
from edgellama.wire.session_messages import OPEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.net.model_store import PulledModel
    from edgellama.node.benchmark import BenchRow
    from edgellama.node.fitting import Choice
    from edgellama.node.mesh_benchmark import MeshBench
    from edgellama.plan.report import PlanReport
    from edgellama.plan.speed import Prediction
    from edgellama.values import Span, StageTimes
    from edgellama.wire.messages import MemberRecord, Summary

LAYER_NAME: Final = re.compile(r"blk\.(\d+)\.")

LOSSY_TEXT: Final = "answers depend on how the layers are split"
LEFT_OUT_SHOWN: Final = 20
OPEN_TEXT: Final = "OPEN: this mesh has no key, so any device here can join it and read it"


def show(table: RenderableType) -> None:
    """Print a table on stdout; without a terminal as wide as it needs to be."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(table)


def layers_text(span: Span) -> str:
    """Return the span for a person: ``0-7 (8)``."""
    return f"{span.first}-{span.past - 1} ({span.layers})" if span.layers else "-"


def plan_table(report: PlanReport) -> RenderableType:
    """Return the table of a plan, what it is expected to take, and who is left out and why."""
    facts, prediction = report.facts, report.prediction
    wanted = facts.requirements
    title = f"{facts.model.name}: {facts.model.layers} layers, context {wanted.context}"
    times = (">computes", ">hop", ">link") if prediction else ()
    table = _table(
        title, "device", "layers", "", ">weights", ">KV cache", ">in all", *times, ">offers"
    )
    for row in report.rows:
        table.add_row(
            Text(row.name),
            layers_text(row.span),
            "home" if row.is_home else "",
            format_size(row.weights_bytes),
            format_size(row.kv_bytes),
            f"{format_size(row.used_bytes)} ({row.used_percent} %)",
            *(_times(row.predicted) if times else []),
            format_size(row.offered_bytes),
        )
    lines = [f"{row.name} is left out: {row.reason}" for row in report.rows if row.reason]
    if prediction is not None:
        lines.append(_speed_line(report, prediction))
    return Group(table, *(Text(line) for line in lines[-LEFT_OUT_SHOWN - 1 :]))


def _speed_line(report: PlanReport, prediction: Prediction) -> str:
    token_ns, interval_ns = max(1, prediction.token_ns), max(1, prediction.interval_ns)
    line = f"one answer: {ms_text(token_ns)} a token ({1e9 / token_ns:.1f} tokens/s)"
    sessions = report.facts.requirements.sessions_max
    if sessions > 1:
        line += f"; {sessions} at once: {1e9 / interval_ns:.1f} tokens/s in all"
    if report.bound_ns is None:
        return line
    goal_ns = prediction.objective_ns(report.facts.split)
    if goal_ns <= report.bound_ns:
        return f"{line}; no split is better for {report.facts.split}"
    percent = 100 * (goal_ns - report.bound_ns) / report.bound_ns
    return (
        f"{line}; no split takes less than {ms_text(report.bound_ns)} (this: {percent:.0f} % more)"
    )


def _times(times: StageTimes) -> list[str]:
    rate = rate_text(times.bytes_per_s)
    return [ms_text(times.compute_ns), ms_text(times.hop_ns), rate if times.hop_ns else "-"]


def rate_text(bytes_per_s: int) -> str:
    """Return what a link carries for a person: ``40.0 Mbit/s``; a rate not seen yet is ``?``."""
    return f"{bytes_per_s / 125_000:.1f} Mbit/s" if bytes_per_s else "?"


def ms_text(time_ns: int) -> str:
    """Return a time for a person: ``12.3 ms``; nothing known is ``-``."""
    milliseconds = time_ns / 1e6
    if not time_ns:
        return "-"
    return f"{milliseconds:.1f} ms" if milliseconds >= 0.95 else f"{milliseconds:.2f} ms"


def bench_table(title: str, rows: Sequence[BenchRow]) -> Table:
    """Return the table of a benchmark."""
    columns = ">threads", ">tokens/s", ">GOP/s", ">read a token", ">memory reads", ">of that"
    table = _table(title, "test", *columns)
    for row in rows:
        cells = ["", "", ""]
        if row.bytes_per_token is not None:
            cells[0] = format_size(row.bytes_per_token)
        if row.read_bytes_per_second is not None and row.bandwidth_ratio is not None:
            cells[1] = f"{row.read_bytes_per_second / 1e9:.1f} GB/s"
            cells[2] = f"{100 * row.bandwidth_ratio:.0f} %"
        speed = f"{row.tokens_per_second:.1f}", f"{row.giga_operations_per_second:.0f}"
        table.add_row(row.test, str(row.threads), *speed, *cells)
    return table


def mesh_bench_table(bench: MeshBench) -> RenderableType:
    """Return what a mesh has done: a row a stage with its link to the next, and what is slow."""
    computes = _table(None, "stage", "layers", ">computes")
    links = _table(None, "link", ">round trip", ">rate", ">loss", ">a token", ">hop")
    for row in bench.stages:
        computes.add_row(Text(row.name), layers_text(row.layers), _known(row.compute_ms, "ms"))
        if row.next_name is not None:
            sent = "-" if row.bytes_per_token is None else format_size(round(row.bytes_per_token))
            links.add_row(
                Text(f"{row.name} to {row.next_name}"),
                *(_known(row.round_trip_ms, "ms"), _known(row.megabits_per_second, "Mbit/s")),
                *("-" if row.loss is None else f"{100 * row.loss:.1f} %", sent),
                _known(row.hop_ms, "ms"),
            )
    answers = "one answer" if bench.sessions == 1 else f"{bench.sessions} answers at once"
    rate = f"{answers}: {bench.tokens_per_second:.1f} tokens/s"
    rest = f"{bench.rest_ms:.1f} ms of them neither computing nor on the way"
    lines = [
        f"{bench.model}, epoch {bench.epoch}, {rate}",
        f"a token of one answer: {bench.token_ms:.1f} ms, {rest}",
    ]
    tables = [computes, Text(""), links] if len(bench.stages) > 1 else [computes]
    last = Text(f"\nwhat holds it back is {bench.held_back_by}")
    return Group(*map(Text, lines), Text(""), *tables, last)


def _known(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.1f} {unit}"


def models_table(models: Sequence[tuple[PulledModel, str, str]]) -> Table:
    """Return the table of pulled models, each with its type and family."""
    table = _table(None, "name", ">size", "type", "family")
    for model, kind, family in models:
        table.add_row(Text(model.name), format_size(model.size_bytes), Text(kind), Text(family))
    return table


def sessions_table(sessions: Sequence[Summary]) -> Table:
    """Return the table of kept conversations."""
    table = _table(None, "session", ">questions", "last answer", "model", "asked")
    for each in sessions:
        ended = "cut off" if each.state == OPEN else "complete"
        asked = datetime.fromtimestamp(each.asked_ms / 1000).astimezone()
        table.add_row(
            Text(each.name),
            str(each.question),
            f"{ended} after {each.tokens} tokens",
            Text(each.model_name),
            f"{asked:%Y-%m-%d %H:%M}",
        )
    return table


def choices_table(choices: Sequence[Choice]) -> Table:
    """Return the table of the types that a fitted file gets: a row for layers that are alike."""
    table = _table(None, "tensor", "layers", "type", ">size", ">error")
    rows: dict[tuple[str, str], list[Choice]] = {}
    for choice in choices:
        name = LAYER_NAME.sub("", choice.tensor.name)
        rows.setdefault((name, choice.kind_name), []).append(choice)
    for (name, kind_name), alike in rows.items():
        layers = [LAYER_NAME.match(choice.tensor.name) for choice in alike]
        table.add_row(
            Text(name),
            ranges_text([int(layer[1]) for layer in layers if layer]),
            kind_name,
            format_size(sum(choice.bytes for choice in alike)),
            f"{100 * sum(choice.error for choice in alike) / len(alike):.3g} %",
        )
    size = format_size(sum(choice.bytes for choice in choices))
    table.add_row("in all", "", "", size, "")
    return table


def ranges_text(numbers: Sequence[int]) -> str:
    """Return ascending numbers for a person: ``0-3,7``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, each)) for each in ranges)


def status_table(status: StatusReply) -> RenderableType:
    """Return how the mesh stands: a line on the model, then a row a device."""
    lines = [_headline(status)]
    if status.trouble:
        lines.append(Text(status.trouble, style="yellow"))
    if status.open_mesh:
        lines.append(Text(OPEN_TEXT))
    if lossy := [member for member in status.members if member.wire == WIRE_Q8]:
        names = ", ".join(member.record.name for member in lossy)
        lines.append(Text(f"q8 is what {names} sends on: {LOSSY_TEXT}"))
    table = _table(None, "device", "layers", "", "address", ">offers", "kernels", "state", ">link")
    for member in status.members:
        table.add_row(
            Text(member.record.name, style="bold" if member.record.node == status.node else ""),
            layers_text(member.span),
            "home" if member.home else "",
            f"{member.record.host}:{member.record.port}",
            format_size(member.record.ram_bytes),
            member.record.backend,
            _trial_text(member) or state_text(member.record),
            _traffic(member),
            style="" if member.record.state == ALIVE else "dim",
        )
    return Group(*lines, table, *_stage_times(status))


def _stage_times(status: StatusReply) -> list[RenderableType]:
    """Return what each stage takes for a token, beside what was expected of it."""
    stages = [member for member in status.members if member.home or member.span.layers]
    if not any(member.predicted.compute_ns or member.measured.compute_ns for member in stages):
        return []
    stages.sort(key=lambda member: (not member.home, member.span.first))
    columns = (">computes", ">foretold", ">hop to the next", ">foretold", ">link")
    table = _table(None, "stage of a token", "layers", *columns)
    rows = [
        [
            *(member.measured.compute_ns, member.predicted.compute_ns),
            *(member.measured.hop_ns, member.predicted.hop_ns),
        ]
        for member in stages
    ]
    for member, times in zip(stages, rows, strict=True):
        rate = rate_text(member.measured.bytes_per_s) if len(stages) > 1 else "-"
        table.add_row(
            Text(member.record.name), layers_text(member.span), *map(ms_text, times), rate
        )
    if len(stages) > 1:
        # A sum with a part unknown would be taken for the whole.
        sums = [sum(column) if all(column) else 0 for column in zip(*rows, strict=True)]
        table.add_row("in all", "", *map(ms_text, sums), "")
    return [Text(""), table]


def state_text(record: MemberRecord) -> str:
    """Return how a member is: what it intends, while it is alive and does not stay."""
    return record.intent if record.state == ALIVE and record.intent else record.state


def _trial_text(member: MemberStatus) -> str:
    """Return for how long a device that came and went holds no layers yet."""
    waits = member.trial_s and member.record.state == ALIVE and not member.span.layers
    return f"on trial, {member.trial_s} s" if waits else ""


def devices_table(status: StatusReply) -> RenderableType:
    """Return the table of a mesh's devices."""
    table = _table(None, "device", "identity", "address", "state")
    for member in status.members:
        record = member.record
        here = " (answered)" if record.node == status.node else ""
        table.add_row(
            Text(record.name + here),
            record.node,
            f"{record.host}:{record.port}",
            state_text(record),
        )
    return Group(Text(OPEN_TEXT), table) if status.open_mesh else table


def _headline(status: StatusReply) -> Text:
    if not status.model:
        return Text("no device of this mesh offers a model", style="yellow")
    model = status.model[0]
    size = f"{model.layers} layers, {format_size(model.file_bytes)}"
    if status.ready:
        kept = "" if status.kv_kind == KV_F16 else f" in {status.kv_kind}"
        split = "" if status.split == RAM else f", split by speed for {status.split}"
        state = f"ready, epoch {status.epoch}, context {status.context}{kept}{split}"
        return Text(f"{model.name} ({size}): {state}")
    return Text(f"{model.name} ({size}): not ready", style="yellow")


def _traffic(member: MemberStatus) -> str:
    counters = member.counters
    total = counters.bytes_sent + counters.bytes_received
    packets = counters.packets_sent + counters.packets_received
    again = counters.packets_retransmitted
    if member.transport == "tcp":
        return f"{format_size(total)} by TCP"
    return f"{format_size(total)}, {packets} packets" + (f", {again} again" if again else "")


def _table(title: str | None, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=True)
    return table
