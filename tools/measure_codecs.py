"""What does each activation codec cost, and which form of q8 errs least? Bytes, error, perplexity.

    python tools/measure_codecs.py edgellama/demo/little-stories.gguf [MODEL ...]

Each model tells little texts, as in measure_quantization.py, and reads them again cut into two
stages and into one a layer, every hop of the ring (the one back to home, too) through the codec.
Beside q8 stand forms of it that were not chosen: other blocks, other numbers of outliers, blocks
rotated by a Hadamard matrix. Then the same error on rows with heavy tails, which small models do
not have and large ones do. The tables on stdout stand in docs/measurements/codecs.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import timeit
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import lz4.block
import numpy as np
from edgellama_kernels import HiddenRows, load
from edgellama_kernels.row_codec import REFERENCE
from measure_quantization import CHUNK_TOKENS, SESSION, told

from edgellama.errors import EdgellamaError
from edgellama.model.head import Head
from edgellama.model.hidden import take_rows
from edgellama.model.perplexity import negative_log_likelihoods
from edgellama.model.stage import Stage
from edgellama.net.paths import StatePaths
from edgellama.node.scoring import MeasuredModel, measured_model
from edgellama.values import Span
from edgellama.wire.lossy_activations import row_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Halves = NDArray[np.uint16]

THREADS = 2
TIMED_WIDTH = 4096
TAILS_ROWS, TAILS_WIDTH = 64, 4096


class Codec(NamedTuple):
    """What becomes of fp16 rows on their way, and how many bytes a row of a width takes."""

    name: str
    carried: Callable[[Halves], Halves]
    row_bytes: Callable[[int], int]


def numbers(halves: Halves) -> NDArray[np.float32]:
    return halves.view(np.float16).astype(np.float32)


def rotated(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply blocks [..., n], n a power of two, by the orthogonal Hadamard matrix."""
    size = x.shape[-1]
    half = 1
    while half < size:
        pairs = x.reshape(*x.shape[:-1], size // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], axis=-2).reshape(x.shape)
        half *= 2
    return x * np.float32(size**-0.5)


def form(block: int, outliers: int, *, hadamard: bool) -> Codec:
    """Return a form of q8."""

    def carried(halves: Halves) -> Halves:
        x = numbers(halves)
        rows, width = x.shape
        largest = np.argsort(-np.abs(x), axis=1, kind="stable")[:, :outliers]
        taken = np.take_along_axis(x, largest, axis=1)
        np.put_along_axis(x, largest, np.float32(0), axis=1)
        blocks = np.pad(x, ((0, 0), (0, -width % block))).reshape(rows, -1, block)
        blocks = rotated(blocks) if hadamard else blocks
        scales = (np.abs(blocks).max(axis=2, keepdims=True) / 127).astype(np.float16)
        wide = scales.astype(np.float32)
        quants = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide > 0)
        y = np.clip(np.rint(quants), -127, 127) * wide
        y = (rotated(y) if hadamard else y).reshape(rows, -1)[:, :width].copy()
        np.put_along_axis(y, largest, taken, axis=1)
        return np.clip(y, -65504, 65504).astype(np.float16).view(np.uint16)

    name = f"blocks of {block}, {outliers} outliers{', Hadamard' if hadamard else ''}"
    return Codec(name, carried, lambda width: 1 + width + 2 * -(-width // block) + 4 * outliers)


EXACT = Codec("f16", lambda halves: halves, lambda width: 1 + 2 * width)


def carried_by_q8(halves: Halves) -> Halves:
    return REFERENCE.unpack(REFERENCE.pack(halves), halves.shape[1])


Q8 = Codec("**q8**", carried_by_q8, row_bytes)
FORMS = [
    form(block, outliers, hadamard=hadamard)
    for block in (32, 64)
    for outliers in (0, 2, 4, 8)
    for hadamard in (False, True)
    if (block, outliers, hadamard) != (64, 4, True)  # that is q8
]


def relative_error(before: Halves, after: Halves) -> float:
    """Return the L2 norm of the difference over that of the rows."""
    x, y = numbers(before).astype(np.float64), numbers(after).astype(np.float64)
    return float(np.sqrt(((x - y) ** 2).sum() / (x**2).sum()))


class Reading(NamedTuple):
    """A text as a split model read it: log-probabilities, likelihoods of what came, the error."""

    log_probabilities: NDArray[np.float64]
    nll: NDArray[np.float64]
    error: float


class SplitModel:
    """A model's stages in one process, each hop through a codec."""

    def __init__(self, model: MeasuredModel, cuts: Sequence[int]) -> None:
        loaded = model.loaded
        assert loaded.home is not None
        bounds = [0, *cuts, loaded.config.layers]
        self.stages = [
            Stage(
                *(model.kernels, loaded.config, Span(first, past)),
                *(loaded.layers[first:past], CHUNK_TOKENS, 1),
            )
            for first, past in pairwise(bounds)
        ]
        self.head = Head(model.kernels, loaded.config, loaded.home)

    def read(self, chunks: list[list[int]], codec: Codec) -> Reading:
        """Read chunks, each a text of its own; the second half of each is scored."""
        rows, nlls, errors = [], [], []
        for chunk in chunks:
            hidden = self.head.embed(chunk[:-1])
            for stage in self.stages:
                stage.open(SESSION)
                hidden = stage.forward(SESSION, hidden, 0)
                stage.close(SESSION)
                carried = codec.carried(hidden.halves)
                errors.append(relative_error(hidden.halves, carried))
                hidden = HiddenRows(carried, hidden.exponents)
            first = len(chunk) // 2
            logits = self.head.logits(take_rows(hidden, first, len(chunk) - 1))
            nlls.append(negative_log_likelihoods(logits, chunk[first + 1 :]))
            wide = logits.astype(np.float64)
            wide -= wide.max(axis=1, keepdims=True)
            rows.append(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))
        return Reading(np.concatenate(rows), np.concatenate(nlls), float(np.mean(errors)))


def row(codec: Codec, width: int, base: Reading, reading: Reading) -> str:
    p, q = base.log_probabilities, reading.log_probabilities
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    same = float((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    change = float(np.exp(reading.nll.mean() - base.nll.mean()) - 1)
    spread = float((reading.nll - base.nll).std(ddof=1) / np.sqrt(base.nll.size))
    return (
        f"| {codec.name} | {codec.row_bytes(width)} | {100 * reading.error:.3f} % "
        f"| {np.exp(reading.nll.mean()):.4f} | {100 * change:+.3f} ± {100 * spread:.3f} % "
        f"| {divergence:.6f} | {100 * same:.2f} % |"
    )


def model_tables(path: Path, stories: int, *, forms: bool) -> Iterator[str]:
    """Yield a table for a model in two stages, and in as many as it has layers."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        paths = StatePaths.locate()
        opened = measured_model(path, CHUNK_TOKENS, THREADS, "numba", paths, _hush, scratch)
        model = stack.enter_context(opened)
        chunks = [told(model, seed) for seed in range(stories)]
        chunks = [chunk for chunk in chunks if len(chunk) == CHUNK_TOKENS]
        layers, width = model.loaded.config.layers, model.loaded.config.width
        for cuts in ([layers // 2], list(range(1, layers))):
            split = SplitModel(model, cuts)
            base = split.read(chunks, EXACT)
            yield (
                f"{path.name}, width {width}, {len(cuts) + 1} stages: "
                f"{len(chunks)} chunks, {base.nll.size} tokens scored\n"
            )
            yield "| codec | bytes a row | error | perplexity | change | KL | same first choice |"
            yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
            for codec in [EXACT, Q8, *(FORMS if forms else [])]:
                yield row(codec, width, base, split.read(chunks, codec))
            yield ""


def heavy_tails(kind: str) -> Halves:
    """Return rows such as large models have: Student's t, channels of their own scale."""
    dice = np.random.default_rng(5)
    x = dice.standard_t(5, (TAILS_ROWS, TAILS_WIDTH))
    if kind != "Student t":
        x *= np.exp(dice.normal(0, 0.5, TAILS_WIDTH))
    if kind == "and 4 massive channels":
        x[:, dice.permutation(TAILS_WIDTH)[:4]] *= 200
    if kind == "and 8 massive channels":
        x[:, dice.permutation(TAILS_WIDTH)[:8]] *= 200
    return x.astype(np.float16).view(np.uint16)


def tail_table() -> Iterator[str]:
    """Yield the errors on rows with heavy tails, of all but the massive channels' energy."""
    kinds = ("Student t", "scaled channels", "and 4 massive channels", "and 8 massive channels")
    yield f"Rows of {TAILS_WIDTH} with heavy tails, error of the ordinary channels\n"
    yield "| codec | bytes a row | " + " | ".join(kinds) + " |"
    yield "| --- | ---: | " + "---: | " * len(kinds)
    for codec in [Q8, *FORMS]:
        cells = []
        for kind in kinds:
            halves = heavy_tails(kind)
            ordinary = np.abs(numbers(halves)).max(axis=0) < 100
            carried = codec.carried(halves)
            cells.append(relative_error(halves[:, ordinary].copy(), carried[:, ordinary].copy()))
        shown = " | ".join(f"{100 * cell:.3f} %" for cell in cells)
        yield f"| {codec.name} | {codec.row_bytes(TAILS_WIDTH)} | {shown} |"
    yield ""


def lz4_table() -> Iterator[str]:
    """Yield what lz4 leaves of exact rows."""
    gauss = np.random.default_rng(5).normal(0, 1, (32, 2048)).astype(np.float16)
    padded = gauss.copy()
    padded[16:] = 0
    repeated = np.repeat(gauss[:8], 4, axis=0)
    yield "| exact rows of 2048 | lz4, of the bytes | is it sent so? |\n| --- | ---: | --- |"
    for name, halves in (
        ("one row, as they come", gauss[:1]),
        ("32 rows, as they come", gauss),
        ("32 rows, half of them zeros", padded),
        ("32 rows, each four times", repeated),
    ):
        raw = halves.tobytes()
        share = len(lz4.block.compress(raw, store_size=False)) / len(raw)
        yield f"| {name} | {share:.3f} | {'yes' if share <= 15 / 16 else 'no'} |"
    yield ""


def time_table() -> Iterator[str]:
    """Yield how long q8 takes beside the exact bytes."""
    yield f"| rows of {TIMED_WIDTH} | pack | unpack |\n| --- | ---: | ---: |"
    codecs = {"numba": load("numba").row_codec, "NumPy": REFERENCE}
    for rows in (1, 32):
        halves = np.random.default_rng(5).normal(0, 1, (rows, TIMED_WIDTH))
        narrow = halves.astype(np.float16).view(np.uint16)
        raw = _us(narrow.tobytes)
        for name, codec in codecs.items():
            pack = _us(partial(codec.pack, narrow))
            unpack = _us(partial(codec.unpack, codec.pack(narrow), TIMED_WIDTH))
            yield f"| {rows}, {name} | {pack:.1f} µs | {unpack:.1f} µs |"
        yield f"| {rows}, exact (a copy) | {raw:.1f} µs | |"


def _us(call: Callable[[], object]) -> float:
    """Return the median of five runs, in microseconds a call."""
    count = max(1, int(0.05 / min(timeit.repeat(call, number=1, repeat=5))))
    return 1e6 * sorted(timeit.repeat(call, number=count, repeat=5))[2] / count


def _hush(_text: str) -> None:
    """Say nothing: the tables are all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="GGUF files")
    parser.add_argument("--stories", type=int, default=100, help="how many texts a model tells")
    parser.add_argument("--forms", action="store_true", help="forms of q8 that were not chosen too")
    arguments = parser.parse_args()
    try:
        for path in arguments.models:
            for line in model_tables(path, arguments.stories, forms=arguments.forms):
                print(line, flush=True)
    except EdgellamaError as error:
        sys.exit(str(error))
    for table in (tail_table(), lz4_table(), time_table()):
        for line in table:
            print(line, flush=True)


if __name__ == "__main__":
    main()
