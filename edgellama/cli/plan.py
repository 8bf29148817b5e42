"""``edgellama plan``: how a model would be split, without any network."""

from __future__ import annotations

import json as json_module

import click

from edgellama.cli.options import Size, as_json, kv, model_file
from edgellama.errors import MisuseError, UnplaceableError


@click.command(name="plan", short_help="Print how a model would be split.")
@click.option("--model", required=True, metavar="FILE", help="The GGUF file of the model.")
@click.option(
    "--ram",
    required=True,
    metavar="SIZE,SIZE,...",
    help="What each device offers, such as 2G,1G,300M.",
)
@click.option("--context", type=click.IntRange(16), help="Positions of KV cache to keep room for.")
@click.option(
    "--sessions", type=click.IntRange(1, 64), default=None, help="Answers made at the same time."
)
@kv
@as_json
def command(
    model: str,
    ram: str,
    context: int | None,
    sessions: int | None,
    kv_kind: str | None,
    as_json: bool,
) -> None:
    """Print the split of the layers in proportion to RAM, without any network."""
    from edgellama.mesh.planning import CONTEXT_DEFAULT
    from edgellama.model.cost import model_facts
    from edgellama.model.gguf import GgufFile
    from edgellama.node.member import SESSIONS_MAX
    from edgellama.plan.ram import Requirements, Unplaceable, place
    from edgellama.plan.table import plan_rows
    from edgellama.values import KV_F16, DeviceFacts

    path = model_file(model)
    sizes = [Size().convert(text, None, None) for text in ram.split(",")]
    with GgufFile.open(path) as gguf:
        facts = model_facts(gguf, "00" * 32, path.stem)  # the split does not depend on the hash
    if context is not None and context > facts.context_max:
        raise MisuseError(f"--context {context}: the model was made for {facts.context_max}")
    requirements = Requirements(
        context or min(facts.context_max, CONTEXT_DEFAULT),
        sessions or SESSIONS_MAX,
        kv_kind or KV_F16,
    )
    devices = [
        DeviceFacts(f"{number:032x}", f"device {number}", size)
        for number, size in enumerate(sizes, start=1)
    ]
    stages = place(facts, devices, requirements)
    if isinstance(stages, Unplaceable):
        raise UnplaceableError(stages.reason)
    rows = plan_rows(facts, devices, requirements, stages)
    if as_json:
        click.echo(
            json_module.dumps(
                {
                    "model": facts.name,
                    "layers": facts.layers,
                    "context": requirements.context,
                    "sessions": requirements.sessions_max,
                    "kv": requirements.kv_kind,
                    "stages": [
                        {
                            "name": row.name,
                            "layers": list(row.span),
                            "home": row.is_home,
                            "weights_bytes": row.weights_bytes,
                            "kv_bytes": row.kv_bytes,
                            "used_bytes": row.used_bytes,
                            "ram_bytes": row.offered_bytes,
                        }
                        for row in rows
                    ],
                }
            )
        )
        return
    from edgellama.cli.tables import plan_table, show

    title = f"{facts.name}: {facts.layers} layers, context {requirements.context}"
    show(plan_table(title, rows))
