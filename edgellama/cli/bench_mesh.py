"""What ``edgellama bench --mesh`` does: measure the running mesh."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgellama.cli.reaching import Way
    from edgellama.node.mesh_benchmark import MeshBench


def bench_mesh(way: Way, transport: str, sessions: int, tokens: int, *, as_json: bool) -> None:
    """Measure the mesh and print what it does."""
    from edgellama.cli.progress import progress_bar
    from edgellama.node.mesh_benchmark import benchmark_mesh

    with progress_bar("tokens") as progress:
        bench = benchmark_mesh(*way, transport, sessions, tokens, progress)
    if as_json:
        click.echo(json_module.dumps(bench_object(bench)))
        return
    from edgellama.cli.tables import mesh_bench_table, show

    show(mesh_bench_table(bench))


def bench_object(bench: MeshBench) -> dict[str, Any]:
    """Return the object that ``bench --mesh --json`` prints; what is not known is left out."""
    stages = []
    for row in bench.stages:
        known = {name: value for name, value in asdict(row).items() if value is not None}
        stages.append(known | {"layers": list(row.layers)})
    return asdict(bench) | {"stages": stages}
