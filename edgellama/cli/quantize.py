"""``edgellama quantize``: a model in fewer bits, of one type or fitted to a size."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellama.cli.options import backend, key, model_file, note, peers, size_in_bytes, threads
from edgellama.cli.status import facts_of_mesh
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from edgellama.model.weight_source import WeightSource
    from edgellama.node.quantizing import Importance
    from edgellama.wire.measurement_messages import FactsReply

MESH = "mesh"
TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "F16", "BF16", "F32")


@click.command(name="quantize", short_help="Write a model in fewer bits.")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--type",
    "kind_name",
    type=click.Choice(TYPES, case_sensitive=False),
    help="The type of every matrix.",
)
@click.option(
    "--fit",
    metavar="SIZE|mesh",
    help="Choose each tensor's type to lose least within this size of file, or within the memory "
    "that the devices of the mesh offer.",
)
@click.option("--calibrate", metavar="FILE", help="A text that shows which weights count most.")
@threads
@backend
@peers
@key
def command(
    source: str,
    target: str,
    kind_name: str | None,
    fit: str | None,
    calibrate: str | None,
    threads: int | None,
    backend: str,
    peers: tuple[str, ...],
    key: str | None,
) -> None:
    """Write the model IN to the GGUF file OUT with its matrices quantized.

    IN is a GGUF file or a folder with safetensors as Hugging Face lays them out. Norms and biases
    stay F32. Where a row is no whole number of blocks, a K type becomes Q8_0, and Q8_0 or Q4_0
    becomes F16.
    """
    from edgellama.cli.progress import progress_bar
    from edgellama.net.facts import threads_default
    from edgellama.node.quantizing import same_kind, write_quantized
    from edgellama.plan.sizes import format_size

    if (kind_name is None) == (fit is None):
        raise MisuseError("say either --type or --fit, so that it is clear what to write")
    output = Path(target).expanduser()
    room = _room(fit, peers, key) if fit is not None else None
    with contextlib.ExitStack() as opened:
        weights = _opened(source, output, opened)
        importance: Importance = {}
        if calibrate is not None:
            importance = _importance(weights, calibrate, threads, backend)
        team = threads or threads_default()
        if room is not None:
            kinds = _fitting_kinds(weights, room, importance, team)
        else:
            assert kind_name is not None
            kinds = same_kind(weights, kind_name)
        with progress_bar("writing", in_bytes=True) as progress:
            size = write_quantized(weights, kinds, output, importance, team, progress)
    note(f"{output}: {format_size(size)}")


def _room(fit: str, peers: tuple[str, ...], key: str | None) -> int | FactsReply:
    """Return the size that was named, or what the mesh says of its devices."""
    if fit == MESH:
        return facts_of_mesh(peers, key)
    if peers or key:
        raise MisuseError(f"--peer and --key go with --fit {MESH}")
    return size_in_bytes(fit)


def _fitting_kinds(
    weights: WeightSource, room: int | FactsReply, importance: Importance, team: int
) -> dict[str, str]:
    """Choose the types, and show what each matrix becomes."""
    from edgellama.cli.progress import progress_bar
    from edgellama.cli.tables import choices_table, show
    from edgellama.mesh.wishes import CONTEXT_DEFAULT
    from edgellama.node.fitting import Fitting
    from edgellama.plan.ram import Requirements

    with progress_bar("measuring") as progress:
        fitting = Fitting(weights, importance, team, progress)
    if isinstance(room, int):
        choices = fitting.within(room)
    else:
        context = room.context or CONTEXT_DEFAULT
        requirements = Requirements(context, room.sessions_max, room.kv_kind)
        choices = fitting.on_devices(room.devices, requirements)
        names = ", ".join(device.name for device in room.devices)
        note(f"for a context of {context} on {names}")
    show(choices_table(choices))
    return {choice.tensor.name: choice.kind_name for choice in choices}


def _opened(source: str, output: Path, opened: contextlib.ExitStack) -> WeightSource:
    from edgellama.model.gguf import GgufFile
    from edgellama.model.weight_source import GgufSource

    if output.is_dir():
        raise MisuseError(f"{output} is a folder; name the file to write")
    if not output.parent.is_dir():
        raise MisuseError(f"there is no folder {output.parent} to write to")
    folder = Path(source).expanduser()
    if folder.is_dir():
        from edgellama.model.hugging_face_source import HuggingFaceSource

        return HuggingFaceSource(folder)
    path = model_file(source, "IN")
    if output.exists() and output.samefile(path):
        raise MisuseError("IN and OUT are the same file")
    return GgufSource(opened.enter_context(GgufFile.open(path)))


def _importance(
    weights: WeightSource, calibrate: str, threads: int | None, backend: str
) -> Importance:
    """Run the model over a text; one that is no GGUF file yet becomes one for as long."""
    from edgellama.cli.progress import progress_bar
    from edgellama.model.weight_source import GgufSource
    from edgellama.net.facts import threads_default
    from edgellama.net.paths import StatePaths
    from edgellama.node.calibrating import importance_of
    from edgellama.node.quantizing import stored_kinds, write_quantized
    from edgellama.node.scoring import measured_model, read_text

    text = read_text(Path(calibrate).expanduser())
    paths = StatePaths.locate()
    paths.make()
    with tempfile.TemporaryDirectory(prefix="calibrating-", dir=paths.cache) as folder:
        scratch = Path(folder)
        model, kept = Path(weights.name), None
        if not isinstance(weights, GgufSource):
            model, kept = scratch / "model.gguf", scratch
            with progress_bar("converting", in_bytes=True) as progress:
                kinds = stored_kinds(weights)
                write_quantized(weights, kinds, model, {}, threads or threads_default(), progress)
        with (
            measured_model(model, None, threads, backend, paths, note, kept) as measured,
            progress_bar("calibrating") as progress,
        ):
            return importance_of(measured, text, progress)
