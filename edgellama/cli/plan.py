"""``edgellama plan``: how a model would be split, over the running mesh or over stated devices."""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from edgellama.cli.options import (
    as_json,
    key,
    kv,
    model_file,
    peers,
    size_in_bytes,
    split,
    split_choice,
    transport,
)
from edgellama.cli.status import facts_of_mesh
from edgellama.errors import MisuseError, NoMeshError

if TYPE_CHECKING:
    from edgellama.plan.ram import Requirements
    from edgellama.plan.report import PlanFacts, PlanReport
    from edgellama.values import ModelFacts
    from edgellama.wire.measurement_messages import FactsReply


@click.command(name="plan", short_help="Print how a model would be split.")
@click.option("--model", metavar="FILE", help="The GGUF file of the model. Default: the mesh's.")
@click.option(
    "--ram",
    metavar="SIZE,SIZE,...",
    help="What each device offers, such as 2G,1G,300M: then no mesh is asked.",
)
@click.option(
    "--speed",
    metavar="MS,MS,...",
    help="With --ram: milliseconds a layer on each device, or one number for all.",
)
@click.option(
    "--rtt",
    metavar="MS,MS,...",
    help="With --ram: round trip in milliseconds between two such devices, for each or for all.",
)
@click.option(
    "--rate", metavar="MBIT,...", help="With --rtt: megabits a second, for each or for all."
)
@split
@click.option("--context", type=click.IntRange(16), help="Positions of KV cache to keep room for.")
@click.option("--sessions", type=click.IntRange(1, 64), help="Answers made at the same time.")
@kv
@peers
@transport
@key
@as_json
def command(
    model: str | None,
    ram: str | None,
    speed: str | None,
    rtt: str | None,
    rate: str | None,
    split: str | None,
    purpose: str | None,
    context: int | None,
    sessions: int | None,
    kv_kind: str | None,
    peers: tuple[str, ...],
    transport: str,
    key: str | None,
    as_json: bool,
) -> None:
    """Print how the layers are split, what each stage takes, and why devices are left out.

    Without --ram the running mesh is asked what its devices offer and have measured; nothing of
    it is changed. The plan is made as if there were none before.
    """
    from edgellama.plan.report import plan_report

    wanted = split_choice(split, purpose)
    stated = _model(model) if model is not None else None
    measured = {"--speed": speed, "--rtt": rtt, "--rate": rate}
    if ram is not None:
        facts = _stated_facts(stated, ram, measured)
    elif given := next((option for option, text in measured.items() if text is not None), None):
        raise MisuseError(f"{given} goes with --ram: the mesh measures by itself")
    else:
        facts = _facts_of_mesh(stated, facts_of_mesh(peers, key, transport))
    requirements = _requirements(facts, context, sessions, kv_kind)
    facts = replace(facts, requirements=requirements, split=wanted or facts.split)
    report = plan_report(facts)
    if as_json:
        click.echo(json_module.dumps(plan_object(report)))
        return
    from edgellama.cli.tables import plan_table, show

    show(plan_table(report))


def _model(text: str) -> ModelFacts:
    from edgellama.model.cost import model_facts
    from edgellama.model.gguf import GgufFile

    path = model_file(text)
    with GgufFile.open(path) as gguf:
        return model_facts(gguf, "00" * 32, path.stem)  # the split does not depend on the hash


def _stated_facts(model: ModelFacts | None, ram: str, measured: dict[str, str | None]) -> PlanFacts:
    from edgellama.mesh.wishes import CONTEXT_DEFAULT
    from edgellama.node.member import SESSIONS_MAX
    from edgellama.plan.by_hand import (
        MEGABITS_MAX,
        MILLISECONDS_MAX,
        parse_numbers,
        stated_devices,
        stated_links,
    )
    from edgellama.plan.ram import Requirements
    from edgellama.plan.report import PlanFacts
    from edgellama.values import RAM

    if model is None:
        raise MisuseError("--ram needs --model as well: no mesh is asked")
    numbers = {
        option: parse_numbers(text, option, limit) if text is not None else []
        for (option, text), limit in zip(
            measured.items(), (MILLISECONDS_MAX, MILLISECONDS_MAX, MEGABITS_MAX), strict=True
        )
    }
    if numbers["--rate"] and not numbers["--rtt"]:
        raise MisuseError("--rate goes with --rtt")
    sizes = [size_in_bytes(text) for text in ram.split(",")]
    devices = stated_devices(model, sizes, numbers["--speed"])
    links = stated_links(devices, numbers["--rtt"], numbers["--rate"])
    usual = Requirements(min(model.context_max, CONTEXT_DEFAULT), SESSIONS_MAX)
    return PlanFacts(model, tuple(devices), tuple(links), usual, RAM)


def _facts_of_mesh(model: ModelFacts | None, reply: FactsReply) -> PlanFacts:
    from edgellama.mesh.wishes import CONTEXT_DEFAULT
    from edgellama.node.member import SESSIONS_MAX
    from edgellama.plan.ram import Requirements
    from edgellama.plan.report import PlanFacts

    if model is not None:
        usual = Requirements(min(model.context_max, CONTEXT_DEFAULT), SESSIONS_MAX, reply.kv_kind)
        return PlanFacts(model, reply.devices, reply.links, usual, reply.split)
    if not reply.model:
        raise NoMeshError("no device of this mesh offers a model: name one with --model FILE")
    requirements = Requirements(reply.context, reply.sessions_max, reply.kv_kind)
    return PlanFacts(reply.model[0], reply.devices, reply.links, requirements, reply.split)


def _requirements(
    facts: PlanFacts, context: int | None, sessions: int | None, kv_kind: str | None
) -> Requirements:
    """Return the requirements with what a person said instead; MisuseError where it cannot be."""
    if context is not None and context > facts.model.context_max:
        raise MisuseError(f"--context {context}: the model was made for {facts.model.context_max}")
    so_far = facts.requirements
    return replace(
        so_far,
        context=context or so_far.context,
        sessions_max=sessions or so_far.sessions_max,
        kv_kind=kv_kind or so_far.kv_kind,
    )


def plan_object(report: PlanReport) -> dict[str, Any]:
    """Return the object that ``plan --json`` prints; what is not known is left out."""
    facts, prediction = report.facts, report.prediction
    totals: dict[str, Any] = {}
    if prediction is not None:
        totals = {
            "token_ms": prediction.token_ns / 1e6,
            "interval_ms": prediction.interval_ns / 1e6,
            "tokens_per_second": 1e9 / max(1, prediction.token_ns),
            "tokens_per_second_in_all": 1e9 / max(1, prediction.interval_ns),
        }
    if report.bound_ns is not None:
        totals["bound_ms"] = report.bound_ns / 1e6
    return {
        "model": facts.model.name,
        "layers": facts.model.layers,
        "context": facts.requirements.context,
        "sessions": facts.requirements.sessions_max,
        "kv": facts.requirements.kv_kind,
        "split": facts.split,
        **totals,
        "stages": [
            {
                "name": row.name,
                "layers": list(row.span),
                "home": row.is_home,
                "weights_bytes": row.weights_bytes,
                "kv_bytes": row.kv_bytes,
                "used_bytes": row.used_bytes,
                "ram_bytes": row.offered_bytes,
                **(
                    {
                        "predicted_ms": row.predicted.compute_ns / 1e6,
                        "predicted_hop_ms": row.predicted.hop_ns / 1e6,
                        "link_bytes_per_s": row.predicted.bytes_per_s or None,
                    }
                    if prediction is not None and row.used_bytes
                    else {}
                ),
                **({"left_out": row.reason} if row.reason else {}),
            }
            for row in report.rows
        ],
    }
