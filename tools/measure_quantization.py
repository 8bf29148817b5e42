"""What do fewer bits cost a model? Size, perplexity, divergence from its F32 weights.

    python tools/measure_quantization.py edgellama/demo/little-stories.gguf [MODEL ...]

Each model tells little texts, with F32 weights, at temperature 1 and from fixed seeds, and
each text that reaches 96 tokens is one chunk. Quantized to every type, it reads these chunks,
scored as `edgellama perplexity` does: the second half of each. Then the same with keys and values
as int8, and over links that carry q8, in two stages and in one a layer. The tables on stdout
stand in docs/measurements/quantization.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgellama.errors import EdgellamaError
from edgellama.model.gguf import GgufFile
from edgellama.model.hidden import take_rows
from edgellama.model.perplexity import scored_logits
from edgellama.model.sampling import sample
from edgellama.model.stage import Stage
from edgellama.model.type_choice import RUNNABLE_KINDS
from edgellama.model.weight_source import GgufSource
from edgellama.net.paths import StatePaths
from edgellama.node.calibrating import importance_of
from edgellama.node.fitting import fitting_kinds
from edgellama.node.quantizing import same_kind, write_quantized
from edgellama.node.scoring import MeasuredModel, measured_model
from edgellama.values import KV_F16, KV_Q8, WIRE_Q8, SamplingSettings, Span
from edgellama.wire.activations import ActivationEncoder, decode_hidden

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")
THREADS = 2
SESSION = 2
CHUNK_TOKENS = 96  # the demo model's stories are 150 tokens long, and it knows nothing after them
FITS = (1.1, 1.25, 1.4)  # sizes, in files of 4.5 bits a weight
CALIBRATION_SEED = 100_000  # a text of its own, so that no choice has seen what it is judged by


class Reading(NamedTuple):
    """A text as a model read it: log-probabilities [scored tokens, vocabulary], and the tokens."""

    log_probabilities: NDArray[np.float32]
    targets: NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """Over all scored tokens."""
        chosen = self.log_probabilities[np.arange(len(self.targets)), self.targets]
        return float(np.exp(-chosen.astype(np.float64).mean()))


def told(model: MeasuredModel, seed: int) -> list[int]:
    """Return a chunk that the model tells from BOS on; a shorter one where it ends before."""
    tokens = model.tokenizer.encode("")
    stage, head = model.parts()
    settings = SamplingSettings(temperature=1.0, seed=seed)
    stage.open(SESSION)
    new = list(tokens)
    while len(tokens) < CHUNK_TOKENS:
        hidden = stage.forward(SESSION, head.embed(new), len(tokens) - len(new))
        last = len(hidden.exponents) - 1
        logits = head.logits(take_rows(hidden, last, last + 1))[0]
        token = sample(logits, settings, len(tokens), tokens)
        if token in model.tokenizer.end_tokens:
            break
        tokens.append(token)
        new = [token]
    stage.close(SESSION)
    return tokens


def read(model: MeasuredModel, chunks: list[list[int]]) -> Reading:
    """Read chunks, each a text of its own."""
    rows, targets = [], []
    for chunk in chunks:
        for logits, follows in scored_logits(*model.parts(), chunk):
            rows.append(log_probabilities(logits))
            targets += follows
    return Reading(np.concatenate(rows), np.array(targets))


def read_split(model: MeasuredModel, stages: int, kv_kind: str, chunks: list[list[int]]) -> Reading:
    """Read chunks as a mesh of so many stages does whose links carry q8, back to home too."""
    loaded, head = model.loaded, model.parts()[1]
    layers, width = loaded.config.layers, loaded.config.width
    bounds = [layers * stage // stages for stage in range(stages + 1)]
    ring = [
        Stage(
            *(model.kernels, loaded.config, Span(first, past), loaded.layers[first:past]),
            *(CHUNK_TOKENS, 1, kv_kind),
        )
        for first, past in pairwise(bounds)
    ]
    encoder = ActivationEncoder(peer_reads_lz4=False, wire=WIRE_Q8)
    rows, targets = [], []
    for chunk in chunks:
        hidden = head.embed(chunk[:-1])
        for stage in ring:
            stage.open(SESSION)
            hidden = stage.forward(SESSION, hidden, 0)
            stage.close(SESSION)
            codec, payload = encoder.encode(hidden)
            hidden = decode_hidden(codec, len(hidden.exponents), width, payload, wire=WIRE_Q8)
        first = len(chunk) // 2
        rows.append(log_probabilities(head.logits(take_rows(hidden, first, len(chunk) - 1))))
        targets += chunk[first + 1 :]
    return Reading(np.concatenate(rows), np.array(targets))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide.astype(np.float32)


def row(name: str, path: Path, base: Reading, reading: Reading) -> str:
    p, q = (each.log_probabilities.astype(np.float64) for each in (base, reading))
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    return (
        f"| {name} | {path.stat().st_size:,} | {reading.perplexity:.4f} "
        f"| {divergence.mean():.6f} | {np.quantile(divergence, 0.99):.4f} | {100 * same:.2f} % |"
    )


class Bench:
    """One model: quantized copies in a scratch folder, and the text that it told itself."""

    def __init__(self, source: Path, stories: int, folder: Path) -> None:
        self.source, self.stories, self.folder = source, stories, folder

    def opened(self, path: Path, stack: ExitStack, kv_kind: str = KV_F16) -> MeasuredModel:
        """Open a copy; what is made of it stays in the scratch folder."""
        scratch = self.folder / "scratch"
        paths = StatePaths.locate()
        opened = measured_model(
            *(path, CHUNK_TOKENS, THREADS, "auto", paths, lambda _text: None, scratch),
            kv_kind=kv_kind,
        )
        return stack.enter_context(opened)

    def rows(self) -> Iterator[str]:
        """Yield the lines of the table."""
        with ExitStack() as stack:
            weights = GgufSource(stack.enter_context(GgufFile.open(self.source)))
            wide = self.folder / "F32.gguf"
            write_quantized(weights, same_kind(weights, "F32"), wide, {}, THREADS, nothing)
            model = self.opened(wide, stack)
            chunks = [told(model, seed) for seed in range(self.stories)]
            chunks = [chunk for chunk in chunks if len(chunk) == CHUNK_TOKENS]
            other = [told(model, CALIBRATION_SEED + seed) for seed in range(self.stories // 2)]
            text = "\n".join(model.tokenizer.decode(tokens[1:]) for tokens in other)
            importance = importance_of(model, text, nothing)
            base = read(model, chunks)
            yield f"{self.source.name}: {len(chunks)} chunks, {len(base.targets)} tokens scored\n"
            yield "| weights | bytes | perplexity | KL mean | KL 99 % | same first choice |"
            yield "| --- | ---: | ---: | ---: | ---: | ---: |"
            seen: list[dict[str, str]] = []
            for kind in TYPES:
                kinds = same_kind(weights, kind)
                # Rows of no whole blocks make one type of another.
                if kinds not in seen and RUNNABLE_KINDS.issuperset(kinds.values()):
                    seen.append(kinds)
                    yield self.measured(kind, kinds, {}, base, chunks)
            narrow = same_kind(weights, "Q4_0")
            size = write_quantized(weights, narrow, self.folder / "x", {}, THREADS, nothing)
            for share in FITS:
                choices = fitting_kinds(weights, int(size * share), importance, THREADS, nothing)
                kinds = {choice.tensor.name: choice.kind_name for choice in choices}
                name = f"fit to {share} of Q4_0's size"
                yield self.measured(name, kinds, importance, base, chunks)
            yield from self.others(wide, base, chunks)

    def others(self, wide: Path, base: Reading, chunks: list[list[int]]) -> Iterator[str]:
        """Yield the rows of what is not weights: the KV cache, and the links."""
        narrow = self.folder / "Q8_0.gguf"
        with ExitStack() as stack:
            weights = GgufSource(stack.enter_context(GgufFile.open(self.source)))
            write_quantized(weights, same_kind(weights, "Q8_0"), narrow, {}, THREADS, nothing)
        for path in (wide, narrow):
            for kv_kind in (KV_F16, KV_Q8):
                with ExitStack() as stack:
                    model = self.opened(path, stack, kv_kind)
                    layers = model.loaded.config.layers
                    what = f"{path.stem}, KV {kv_kind}"
                    if kv_kind == KV_Q8:
                        yield row(what, path, base, read(model, chunks))
                    for stages in sorted({2, layers}):
                        split = read_split(model, stages, kv_kind, chunks)
                        yield row(f"{what}, q8 links of {stages} stages", path, base, split)

    def measured(
        self,
        name: str,
        kinds: dict[str, str],
        importance: dict[str, NDArray[np.float32]],
        base: Reading,
        chunks: list[list[int]],
    ) -> str:
        """Return the row of one quantized copy."""
        path = self.folder / "copy.gguf"
        with ExitStack() as stack:
            weights = GgufSource(stack.enter_context(GgufFile.open(self.source)))
            write_quantized(weights, kinds, path, importance, THREADS, nothing)
            return row(name, path, base, read(self.opened(path, stack), chunks))


def nothing(_done: int, _total: int) -> None:
    """Show no progress."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="GGUF files")
    parser.add_argument("--stories", type=int, default=200, help="how many texts a model tells")
    arguments = parser.parse_args()
    for source in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for line in Bench(source, arguments.stories, Path(folder)).rows():
                    print(line, flush=True)
            except EdgellamaError as error:
                sys.exit(str(error))
        print()


if __name__ == "__main__":
    main()
