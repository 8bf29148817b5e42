"""``edgellama pull``: fetch a model from a hub into this device's own store."""

from __future__ import annotations

import click

from edgellama.cli.options import note


@click.command(name="pull", short_help="Fetch a model from a hub.")
@click.argument("reference", metavar="hf:ORG/REPO[:FILE or type]")
def command(reference: str) -> None:
    """Fetch a GGUF model, such as hf:ORG/REPO:Q4_K_M, and print the name to use it by.

    An interrupted pull goes on where it ended. HF_ENDPOINT names another hub than
    huggingface.co, HF_TOKEN opens repositories that need one.
    """
    from edgellama.cli.progress import progress_bar
    from edgellama.net.hub_reference import HubReference
    from edgellama.net.model_store import ModelStore
    from edgellama.net.paths import StatePaths

    wanted = HubReference.parse(reference)
    paths = StatePaths.locate()
    paths.make()
    with progress_bar("checking", in_bytes=True) as progress:
        model = ModelStore(paths.models).pull(wanted, note, progress)
    _warn_if_unusable(model.path.as_posix())
    note(f"use it as --model {model.name}")
    click.echo(model.name)


def _warn_if_unusable(path: str) -> None:
    """Say at once, and not at the first question, when this edgellama cannot run a model."""
    from edgellama.errors import EdgellamaError
    from edgellama.model.config import ModelConfig
    from edgellama.model.gguf import GgufFile

    try:
        with GgufFile.open(path) as gguf:
            ModelConfig.from_gguf(gguf)
    except EdgellamaError as error:
        note(f"pulled, but this edgellama cannot run it: {error}")
