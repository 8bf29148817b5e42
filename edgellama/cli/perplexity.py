"""``edgellama perplexity``: how well a model foretells a text."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellama.cli.options import (
    as_json,
    backend,
    code,
    key,
    key_choice,
    kv,
    model_file,
    note,
    peers,
    threads,
    transport,
)
from edgellama.cli.reaching import way_to_mesh
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from edgellama.cli.reaching import Way
    from edgellama.model.perplexity import Perplexity


@click.command(name="perplexity", short_help="Measure how well a model foretells a text.")
@click.argument("text", metavar="FILE")
@click.option("--model", metavar="FILE", help="Measure this GGUF file on this device alone.")
@click.option(
    "--context",
    type=click.IntRange(4),
    help="Tokens in a chunk. Default: 512, or the model's or mesh's where that is less.",
)
@click.option("--chunks", type=click.IntRange(1), help="Stop after so many chunks.")
@kv
@threads
@backend
@peers
@transport
@key
@code
@as_json
def command(
    text: str,
    model: str | None,
    context: int | None,
    chunks: int | None,
    kv_kind: str | None,
    threads: int | None,
    backend: str,
    peers: tuple[str, ...],
    transport: str,
    key: str | None,
    code: str | None,
    as_json: bool,
) -> None:
    """Print the perplexity of the text in FILE, over the mesh or with --model on this device.

    It is measured as llama.cpp's llama-perplexity does: in whole chunks of the context, of which
    the second half is scored, so that both numbers can be compared. Lower is better.
    """
    from edgellama.node.scoring import read_text

    content = read_text(Path(text).expanduser())
    if model is not None:
        result = _on_this_device(content, model, context, chunks, kv_kind, threads, backend)
    elif kv_kind or threads or backend != "auto":
        raise MisuseError("--kv, --threads and --backend go with --model, or with edgellama join")
    else:
        way = way_to_mesh(peers, key_choice(key, code))
        result = _over_the_mesh(content, context, chunks, way, transport)
    if as_json:
        click.echo(json_module.dumps({**asdict(result), "chunks": len(result.nll_chunks)}))
        return
    click.echo(
        f"perplexity {result.ppl:.4f} +/- {result.ppl_error:.4f} "
        f"({len(result.nll_chunks)} chunks of {result.context} tokens, "
        f"{result.nll:.5f} nats a token)"
    )


def _on_this_device(
    text: str,
    model: str,
    context: int | None,
    chunks: int | None,
    kv_kind: str | None,
    threads: int | None,
    backend: str,
) -> Perplexity:
    from edgellama.cli.progress import progress_bar
    from edgellama.net.paths import StatePaths
    from edgellama.node.scoring import measured_model, perplexity_of
    from edgellama.values import KV_F16

    path, paths = model_file(model), StatePaths.locate()
    with (
        measured_model(
            *(path, context, threads, backend, paths, note), kv_kind=kv_kind or KV_F16
        ) as measured,
        progress_bar("chunks") as progress,
    ):
        return perplexity_of(measured, text, chunks, progress)


def _over_the_mesh(
    text: str, context: int | None, chunks: int | None, way: Way, transport: str
) -> Perplexity:
    from edgellama.cli.progress import progress_bar
    from edgellama.node.asking import mesh_asker
    from edgellama.node.mesh_scoring import perplexity_of_mesh

    with (
        mesh_asker(*way, transport) as asker,
        progress_bar("chunks") as progress,
    ):
        return perplexity_of_mesh(asker, text, context, chunks, progress, note)
