"""``edgellama perplexity``: how well a model foretells a text."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path

import click

from edgellama.cli.options import as_json, backend, kv, model_file, note, threads


@click.command(name="perplexity", short_help="Measure how well a model foretells a text.")
@click.argument("text", metavar="FILE")
@click.option("--model", required=True, metavar="FILE", help="The GGUF file of the model.")
@click.option(
    "--context",
    type=click.IntRange(4),
    help="Tokens in a chunk. Default: 512, or the model's where that is less.",
)
@click.option("--chunks", type=click.IntRange(1), help="Stop after so many chunks.")
@kv
@threads
@backend
@as_json
def command(
    text: str,
    model: str,
    context: int | None,
    chunks: int | None,
    kv_kind: str | None,
    threads: int | None,
    backend: str,
    as_json: bool,
) -> None:
    """Print the perplexity of the text in FILE, computed on this device alone.

    It is measured as llama.cpp's llama-perplexity does: in whole chunks of the context, of which
    the second half is scored, so that both numbers can be compared. Lower is better.
    """
    from edgellama.cli.progress import progress_bar
    from edgellama.net.paths import StatePaths
    from edgellama.node.scoring import measured_model, perplexity_of, read_text
    from edgellama.values import KV_F16

    path = model_file(model)
    content = read_text(Path(text).expanduser())
    paths = StatePaths.locate()
    with (
        measured_model(
            *(path, context, threads, backend, paths, note), kv_kind=kv_kind or KV_F16
        ) as measured,
        progress_bar("chunks") as progress,
    ):
        result = perplexity_of(measured, content, chunks, progress)
    if as_json:
        click.echo(json_module.dumps({**asdict(result), "chunks": len(result.nll_chunks)}))
        return
    click.echo(
        f"perplexity {result.ppl:.4f} +/- {result.ppl_error:.4f} "
        f"({len(result.nll_chunks)} chunks of {result.context} tokens, "
        f"{result.nll:.5f} nats a token)"
    )
