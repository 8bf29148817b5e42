"""How fast a model runs on this device, beside the memory bandwidth that bounds it.

The tests have llama.cpp's names and meaning: ``pp128`` reads a prompt of 128 tokens in an empty
session, ``tg64`` writes 64 tokens one by one in an empty session. The tokens do not matter.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import edgellama_kernels
from edgellama_kernels import BackendUnavailable, PackedExperts, warming

from edgellama.errors import MisuseError
from edgellama.model.head import Head
from edgellama.model.hidden import take_rows
from edgellama.model.stage import Stage
from edgellama.net.facts import compute_cores
from edgellama.node.kernels import prove
from edgellama.values import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgellama_kernels import Kernels, PackedMatrix
    from edgellama_kernels.bandwidth import MemoryReader

    from edgellama.node.engine import LoadedSpan

    Matrix = PackedMatrix | PackedExperts

PROMPT_TOKENS: Final = (128, 512)
ANSWER_TOKENS: Final = 64
SLICE_TOKENS: Final = 8  # decoded between two looks at the bandwidth, which drifts
REPETITIONS: Final = 5
SESSION: Final = 1


@dataclass(frozen=True)
class BenchRow:
    """One test on one number of threads; medians of ``REPETITIONS``.

    ``giga_operations_per_second`` counts the multiplications and additions of the matmuls alone;
    the time includes all else. Of ``tg`` tests: the bytes of weights that a token reads, the
    bandwidth of plain reading of these weights in between, and how much of it decoding reached.
    """

    test: str
    threads: int
    tokens_per_second: float
    giga_operations_per_second: float
    bytes_per_token: int | None = None
    read_bytes_per_second: float | None = None
    bandwidth_ratio: float | None = None


def chosen_backend(backend: str) -> str:
    """Return "numba" or "numpy" for "auto": what a node computes with in the end."""
    if backend != "auto":
        return backend
    return "numba" if warming.is_installed() else "numpy"


def benchmark(
    loaded: LoadedSpan,
    backend: str,
    thread_counts: Sequence[int],
    splits: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[BenchRow]:
    """Yield the rows of a whole model, which ``loaded`` must hold, cut into ``splits`` stages.

    Prompts longer than the model's context are left out. Raises MisuseError where the backend
    cannot run or there are fewer layers than stages.
    """
    if loaded.span.layers < splits:
        raise MisuseError(f"a model of {loaded.span.layers} layers cannot be cut into {splits}")
    prompts = [count for count in PROMPT_TOKENS if count <= loaded.config.context_max]
    thread_counts = (1,) if backend == "numpy" else thread_counts
    tests = len(thread_counts) * (len(prompts) + 1)
    told = progress or (lambda _done, _total: None)
    done = 0
    for threads in thread_counts:
        try:
            cores = compute_cores(threads)
            kernels = edgellama_kernels.load(
                *(backend, threads), equal_cores=cores.equal, adapt=False, cpus=cores.cpus
            )
        except BackendUnavailable as error:
            raise MisuseError(str(error)) from error
        try:
            prove(kernels)
            model = _Model(loaded, kernels, splits)
            for count in prompts:
                told(done, tests)
                yield model.prompt_row(count)
                done += 1
            told(done, tests)
            yield model.answer_row()
            done += 1
        finally:
            kernels.close()
    told(tests, tests)


class _Model:
    """Stages and head over one thread's kernels."""

    def __init__(self, loaded: LoadedSpan, kernels: Kernels, splits: int) -> None:
        assert loaded.home is not None
        config = loaded.config
        self._kernels = kernels
        self._head = Head(kernels, config, loaded.home)
        cuts = [loaded.span.layers * n // splits for n in range(splits + 1)]
        context = min(config.context_max, max(*PROMPT_TOKENS, ANSWER_TOKENS))
        self._stages = [
            Stage(
                *(kernels, config, Span(first, past), loaded.layers[first:past], context, 1),
                kv_kind=loaded.plan.kv_kind,
            )
            for first, past in itertools.pairwise(cuts)
        ]
        self._vocabulary = config.vocabulary
        self._in_layers = [
            matrix for layer in loaded.layers for matrix in layer.matrices().values()
        ]
        self._experts_used = config.experts_used
        self._output = loaded.home.output

    def prompt_row(self, count: int) -> BenchRow:
        """Measure reading a prompt, up to the logits of its last token."""
        self._pass(min(count, SLICE_TOKENS), 0)
        seconds = [self._timed(lambda: self._pass(count, 0)) for _ in range(REPETITIONS)]
        operations = 2 * (count * self._weights(self._in_layers) + self._weights([self._output]))
        median = statistics.median(seconds)
        return BenchRow(
            f"pp{count}", self._kernels.threads, count / median, operations / median / 1e9
        )

    def answer_row(self) -> BenchRow:
        """Measure writing an answer, with a look at the bandwidth between every few tokens."""
        read = [*self._in_layers, self._output]
        token_bytes = sum(
            self._experts_used * matrix.bytes_each
            if isinstance(matrix, PackedExperts)
            else matrix.buffer.nbytes
            for matrix in read
        )
        reader = _memory_reader(read, self._kernels.threads)
        rates, bandwidths, ratios = [], [], []
        for _ in range(REPETITIONS):
            seconds, looks = 0.0, []
            for first in range(0, ANSWER_TOKENS, SLICE_TOKENS):
                looks.append(reader.bytes_per_second() if reader is not None else 0.0)
                seconds += self._timed(functools.partial(self._answer, first))
            rates.append(ANSWER_TOKENS / seconds)
            bandwidths.append(statistics.fmean(looks))
            ratios.append(rates[-1] * token_bytes / bandwidths[-1] if bandwidths[-1] else 0.0)
        if reader is not None:
            reader.close()
        rate = statistics.median(rates)
        return BenchRow(
            f"tg{ANSWER_TOKENS}",
            self._kernels.threads,
            rate,
            2 * rate * self._weights(read) / 1e9,
            token_bytes,
            statistics.median(bandwidths) or None,
            statistics.median(ratios) or None,
        )

    def _answer(self, first: int) -> None:
        for position in range(first, first + SLICE_TOKENS):
            self._pass(1, position)

    def _pass(self, count: int, position: int) -> None:
        """Compute ``count`` tokens at ``position`` and the logits of the last."""
        tokens = [(7 * n + position) % self._vocabulary for n in range(count)]
        hidden = self._head.embed(tokens)
        for stage in self._stages:
            if position == 0:
                if SESSION in stage.sessions():
                    stage.close(SESSION)
                stage.open(SESSION)
            hidden = stage.forward(SESSION, hidden, position)
        self._head.logits(take_rows(hidden, count - 1, count))

    def _weights(self, matrices: Sequence[Matrix]) -> int:
        """Return how many weights a token meets."""
        return sum(
            (self._experts_used if isinstance(matrix, PackedExperts) else 1)
            * matrix.rows
            * matrix.columns
            for matrix in matrices
        )

    @staticmethod
    def _timed(call: Callable[[], None]) -> float:
        started_s = time.perf_counter()
        call()
        return time.perf_counter() - started_s


def _memory_reader(matrices: Sequence[Matrix], threads: int) -> MemoryReader | None:
    """Return what reads these weights; None where nothing is compiled that could."""
    try:
        from edgellama_kernels.bandwidth import MemoryReader

        return MemoryReader([matrix.buffer for matrix in matrices], threads)
    except (ImportError, OSError):
        return None
