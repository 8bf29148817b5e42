"""``edgellama bench``: how fast a model runs on this device, and what bounds it."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from edgellama.cli.options import (
    as_json,
    backend,
    key,
    key_choice,
    kv,
    model_file,
    note,
    peers,
    transport,
)
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from edgellama.node.benchmark import BenchRow

THREADS_MAX: Final = 64


def counts(text: str) -> tuple[int, ...]:
    """Return numbers of threads as people write them, ``1,2``, in their order and each once."""
    found = {int(part): None for part in text.split(",") if part.strip().isdecimal()}
    if len(found) != len(text.split(",")) or not all(0 < n <= THREADS_MAX for n in found):
        raise click.BadParameter(f"{text!r} is no list of numbers from 1 to {THREADS_MAX}")
    return tuple(found)


@click.command(name="bench", short_help="Measure how fast a model runs here.")
@click.argument("model", metavar="MODEL", required=False)
@click.option("--mesh", is_flag=True, help="Measure the running mesh instead of a model here.")
@click.option(
    "--tokens",
    type=click.IntRange(2, 4096),
    default=64,
    help="With --mesh: of each answer. Default: 64.",
)
@click.option(
    "--sessions",
    type=click.IntRange(1, 16),
    default=1,
    help="With --mesh: answers at the same time. Default: 1.",
)
@peers
@transport
@key
@click.option(
    "--threads",
    type=counts,
    metavar="N,N,...",
    help="Measure on so many threads, each in turn. Default: one, and all fast cores.",
)
@click.option(
    "--stages",
    type=click.IntRange(1, 64),
    default=1,
    help="Cut the layers into so many stages, one after the other in this process. Default: 1.",
)
@kv
@backend
@as_json
def command(
    model: str | None,
    mesh: bool,
    tokens: int,
    sessions: int,
    peers: tuple[str, ...],
    transport: str,
    key: str | None,
    threads: tuple[int, ...] | None,
    stages: int,
    kv_kind: str | None,
    backend: str,
    as_json: bool,
) -> None:
    """Print the speed of the GGUF file MODEL on this device, or with --mesh of the mesh.

    pp128 and pp512 read a prompt, tg64 writes an answer, as in llama.cpp's llama-bench. Writing
    reads every weight once a token, so its speed is compared with how fast the same number of
    threads can read the same memory, measured in between. Medians of five.

    --mesh asks the mesh for answers and every stage for what they took: tokens a second, the
    computing of each stage, round trip, loss and bytes a token of each link, and what is slow.
    """
    if mesh:
        from edgellama.cli.bench_mesh import bench_mesh
        from edgellama.cli.reaching import way_to_mesh

        if model is not None:
            raise MisuseError("--mesh measures the mesh's model: leave MODEL out")
        way = way_to_mesh(peers, key_choice(key))
        bench_mesh(way, transport, sessions, tokens, as_json=as_json)
        return
    if model is None:
        raise MisuseError("name a GGUF file, or measure the running mesh with --mesh")
    from edgellama.cli.progress import progress_bar
    from edgellama.net.facts import threads_default
    from edgellama.net.paths import StatePaths
    from edgellama.node.benchmark import benchmark, chosen_backend
    from edgellama.node.scoring import measured_model
    from edgellama.values import KV_F16

    path = model_file(model)
    counts = threads or tuple({1: None, threads_default(): None})
    chosen, kv_kind = chosen_backend(backend), kv_kind or KV_F16
    with (
        measured_model(
            *(path, None, 1, chosen, StatePaths.locate(), note), kv_kind=kv_kind
        ) as measured,
        progress_bar("tests") as progress,
    ):
        rows = list(benchmark(measured.loaded, chosen, counts, stages, progress=progress))
    if as_json:
        results = [
            {key: value for key, value in asdict(row).items() if value is not None} for row in rows
        ]
        report = {"model": path.name, "backend": chosen, "stages": stages, "kv": kv_kind}
        click.echo(json_module.dumps(report | {"results": results}))
        return
    _show(path.name, rows)


def _show(title: str, rows: list[BenchRow]) -> None:
    from edgellama.cli.tables import bench_table, show

    show(bench_table(title, rows))
