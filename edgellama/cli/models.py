"""``edgellama models``: the models that were pulled, and ``models rm`` to remove one."""

from __future__ import annotations

import json as json_module
from typing import TYPE_CHECKING

import click

from edgellama.cli.options import as_json, note
from edgellama.errors import EdgellamaError, MisuseError

if TYPE_CHECKING:
    from edgellama.net.model_store import ModelStore, PulledModel

UNKNOWN = "-"


@click.group(name="models", invoke_without_command=True, short_help="List or remove pulled models.")
@as_json
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the models that `edgellama pull` has fetched; --model takes their names."""
    if context.invoked_subcommand is not None:
        return
    models = _store().models()
    described = [(model, *_type_and_family(model)) for model in models]
    if as_json:
        rows = [
            {
                "name": model.name,
                "reference": model.reference,
                "path": str(model.path),
                "size_bytes": model.size_bytes,
                "type": kind,
                "family": family,
            }
            for model, kind, family in described
        ]
        click.echo(json_module.dumps(rows))
    elif not models:
        note("no models yet; fetch one with edgellama pull hf:ORG/REPO")
    else:
        from edgellama.cli.tables import models_table, show

        show(models_table(described))


@command.command(name="rm", short_help="Remove a pulled model.")
@click.argument("name")
def remove(name: str) -> None:
    """Remove the model NAME, as `edgellama models` lists it, from this device."""
    from edgellama.plan.sizes import format_size

    store = _store()
    model = store.find(name)
    if model is None:
        raise MisuseError(f"there is no pulled model {name}; edgellama models lists them")
    store.remove(model)
    note(f"removed {model.name}, {format_size(model.size_bytes)}")


def _store() -> ModelStore:
    from edgellama.net.model_store import ModelStore
    from edgellama.net.paths import StatePaths

    return ModelStore(StatePaths.locate().models)


def _type_and_family(model: PulledModel) -> tuple[str, str]:
    """Return what the file says of itself; a file that cannot be read is listed all the same."""
    from edgellama.model.file_types import family_name, file_type_name
    from edgellama.model.gguf import GgufFile

    try:
        with GgufFile.open(model.path) as gguf:
            return file_type_name(gguf) or UNKNOWN, family_name(gguf) or UNKNOWN
    except EdgellamaError:
        return UNKNOWN, UNKNOWN
