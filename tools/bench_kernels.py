"""Measure single kernels: how near each comes to the speed of memory, and how much it computes.

One row for each type, shape and number of tokens. Matmuls of one token go over so many matrices
that they come from memory, and are compared with how fast the same threads can read these very
bytes, measured before and after each pass. Everything else works from the caches. Medians of
five, or with ``--best`` the best, which is what tuning on a busy machine wants.

    python tools/bench_kernels.py [--threads 1,2] [--kinds Q4_0,Q8_0] [--tokens 1,128]
        [--only matmul,attention,rows] [--best] [--json]

NUMBA_CPU_NAME=znver3 with NUMBA_CPU_FEATURES=+avx2,+fma,+f16c,+sse4.1 measures the kernels of CPUs
that have AVX2 alone (the name by itself leaves the features of this machine),
NUMBA_CPU_NAME=generic the text that runs everywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from edgellama_kernels import (
    CacheKind,
    PackedMatrix,
    WeightKind,
    allocate_cache_layer,
    operations,
)
from edgellama_kernels.bandwidth import MemoryReader
from edgellama_kernels.checked import score_scale
from edgellama_kernels.compiled import CompiledKernels
from edgellama_kernels.kinds import block_fields
from edgellama_kernels.layout import row_bytes
from edgellama_kernels.lowering import compiled_features
from edgellama_kernels.operations import attention_scratch, matrix_operands
from edgellama_kernels.team import Table, Team, address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgellama_kernels.operations import Operation

REPETITIONS = 5
PASS_S = 0.1  # a timed pass repeats what takes less
MEMORY_BYTES = 300 << 20  # of matrices of one shape: far more than any cache
SHAPES = ((2048, 2048), (5632, 2048), (2048, 5632))  # rows, columns of a 1.1B model
HEADS = ((32, 4, 64), (32, 8, 128), (16, 16, 64))  # query heads, key heads, width
WIDTH_MAX = 128
CONTEXTS = (512, 4096)
PROMPT_TOKENS = 128


FEATURES = (
    *("avx2", "f16c", "fma", "sse4.1", "avxvnni", "avx512vnni", "avx512vl"),
    *("aarch64", "neon", "dotprod"),
)
HEADING = (
    f"{'kernel':<18}{'shape':<20}{'tokens':>6}{'threads':>8}{'µs':>13}"
    f"{'GOP/s':>9}{'GB/s':>8}{'of read':>9}"
)


class Row(NamedTuple):
    """One measurement; what does not apply is None."""

    kernel: str
    shape: str
    tokens: int
    threads: int
    microseconds: float
    giga_operations_per_second: float | None = None
    gigabytes_per_second: float | None = None
    bandwidth_ratio: float | None = None


class Bench:
    """A team and how it is timed."""

    def __init__(self, threads: int, typical: Callable[[list[float]], float]) -> None:
        self.threads, self._typical = threads, typical
        self._kernels = CompiledKernels(threads, adapt=False)
        self._team: Team = self._kernels._team

    def table(self, parts: Sequence[Operation]) -> Table:
        """Return a table whose operations do not depend on each other."""
        rows = np.zeros((len(parts), operations.COLUMNS), np.int64)
        for row, operation in zip(rows, parts, strict=True):
            row[0], row[2], row[3] = operation.code, operation.units, operation.units_per_token
            for column, x in enumerate(operation.operands, operations.OPERANDS):
                row[column] = address(x) if isinstance(x, np.ndarray) else x
        return Table(rows)

    def run(self, parts: Sequence[Operation], tokens: int, position: int = 0) -> Callable[[], None]:
        """Return what runs the operations once."""
        table = self.table(parts)
        scratch = max(operations.SUMS_NUMBERS, attention_scratch(position + tokens, WIDTH_MAX))
        claims = tokens > 1  # as programs do

        def once() -> None:
            status = self._team.run(table, parts, tokens, position, scratch, self.threads, claims)
            assert status == 0, status

        return once

    def seconds(self, once: Callable[[], None]) -> float:
        """Return the time of one run."""
        once()
        repeats = max(1, int(PASS_S / self._timed(once, 1)))
        return self._typical([self._timed(once, repeats) for _ in range(REPETITIONS)])

    def beside_reading(
        self, once: Callable[[], None], matrices: Sequence[PackedMatrix]
    ) -> tuple[float, float]:
        """Return the time of a run over matrices in memory, and its speed to that of reading."""
        read = sum(matrix.buffer.nbytes for matrix in matrices)
        reader = MemoryReader([matrix.buffer for matrix in matrices], self.threads)
        times, ratios = [], []
        once()
        before = reader.bytes_per_second()
        for _ in range(REPETITIONS):
            times.append(self._timed(once, 1))
            after = reader.bytes_per_second()
            ratios.append(read / times[-1] / ((before + after) / 2))
            before = after
        reader.close()
        return self._typical(times), statistics.median(ratios)

    @staticmethod
    def _timed(once: Callable[[], None], repeats: int) -> float:
        started_s = time.perf_counter()
        for _ in range(repeats):
            once()
        return (time.perf_counter() - started_s) / repeats

    def close(self) -> None:
        """End the threads."""
        self._kernels.close()

    # ---- matmuls

    def matmuls(self, kind: WeightKind, token_counts: Sequence[int]) -> Iterator[Row]:
        """Yield a row for each shape and number of tokens."""
        for rows, columns in SHAPES:
            one = random_matrix(kind, rows, columns)
            for tokens in token_counts:
                count = -(-MEMORY_BYTES // one.buffer.nbytes) if tokens == 1 else 1
                matrices = [one, *(copied(one) for _ in range(count - 1))]
                x = np.random.default_rng(1).standard_normal((tokens, columns), np.float32)
                y = np.empty((tokens, rows), np.float32)
                blocks: Any = self._kernels.quantize(x) if kind.quantized else (0, 0, 0)
                parts = [
                    operations.multiply(matrix_operands(matrix), x, blocks, 0, y, matrix.groups)
                    for matrix in matrices
                ]
                once = self.run(parts, tokens)
                ratio = None
                if tokens == 1:
                    seconds, ratio = self.beside_reading(once, matrices)
                else:
                    seconds = self.seconds(once)
                seconds /= count
                yield Row(
                    *(f"matmul {kind.value}", f"{rows}x{columns}", tokens, self.threads),
                    *(1e6 * seconds, 2e-9 * rows * columns * tokens / seconds),
                    *(one.buffer.nbytes / seconds / 1e9, ratio),
                )

    # ---- attention

    def attention(self, kind: CacheKind) -> Iterator[Row]:
        """Yield rows of decoding and of a prompt's last chunk, for each shape and context."""
        for heads, kv_heads, width in HEADS:
            for context in CONTEXTS:
                for tokens in (1, PROMPT_TOKENS):
                    yield self._attention(kind, heads, kv_heads, width, context, tokens)

    def _attention(
        self, kind: CacheKind, heads: int, kv_heads: int, width: int, context: int, tokens: int
    ) -> Row:
        generator = np.random.default_rng(1)
        cache = allocate_cache_layer(kv_heads, width, context, kind)
        keys, values = (
            generator.standard_normal((context, kv_heads, width), np.float32) for _ in range(2)
        )
        self._kernels.store(cache, keys, values, 0)
        queries = generator.standard_normal((tokens, heads, width), np.float32)
        y = np.empty_like(queries)
        scales: Any = 0 if kind is CacheKind.F16 else np.empty((tokens, heads, 2), np.float32)
        arrays = cache.keys, cache.values, 0 if cache.scales is None else cache.scales
        rounded = np.empty_like(queries), scales
        position = context - tokens
        self.run(
            [operations.round_queries(queries, *rounded, heads, width, score_scale(width))], tokens
        )()
        shape = heads, kv_heads, width, cache.capacity
        attending = operations.attend(rounded, arrays, y, *shape, window=0)
        seconds = self.seconds(self.run([attending], tokens, position))
        seen = sum(range(position + 1, context + 1))
        held = sum(array.nbytes for array in cache if array is not None)
        return Row(
            f"attention {kind.value}",
            *(f"{heads}/{kv_heads}x{width} of {context}", tokens, self.threads, 1e6 * seconds),
            *(4e-9 * heads * width * seen / seconds, held / seconds / 1e9),
        )

    # ---- rows

    def rows(self, tokens: int, width: int = 2048) -> Iterator[Row]:
        """Yield what is done to rows of float32."""
        generator = np.random.default_rng(1)
        x, y = (generator.standard_normal((tokens, width), np.float32) for _ in range(2))
        weight = np.ones(width, np.float32)
        halves, exponents = np.zeros((tokens, width), np.uint16), np.zeros(tokens, np.uint8)
        blocks = self._kernels.quantize(x)
        turns = np.ones((tokens, 2, 32), np.float32)
        parts = {
            "expand": operations.expand(halves, exponents, y, width),
            "rms_norm": operations.norm(x, weight, y, width, 1e-5),
            "quantize": operations.quantize(x, *blocks, width),
            "rope": operations.rope(y, turns, width // 64, 64),
            "silu_multiply": operations.silu_multiply(x, x, y, width),
            "shrink": operations.shrink(x, halves, exponents, width),
        }
        for name, operation in parts.items():
            seconds = self.seconds(self.run([operation] * 64, tokens)) / 64
            yield Row(name, str(width), tokens, self.threads, 1e6 * seconds)


def random_matrix(kind: WeightKind, rows: int, columns: int) -> PackedMatrix:
    """Return a matrix of random bits with finite, small scales."""
    size = row_bytes(kind, columns)
    raw = np.random.default_rng(1).integers(0, 256, rows * size, np.uint8)
    blocks = raw.reshape(rows, -1, kind.block_bytes)
    if kind.quantized:
        for name, field in block_fields(kind, blocks).items():
            if name in ("scale", "minimum"):
                field[..., 1] &= 0x87
    else:
        blocks[..., -1] &= 0xBF
    matrix = PackedMatrix.zeros(kind, rows, columns)
    matrix.store_rows(0, raw.reshape(rows, size))
    return matrix


def copied(matrix: PackedMatrix) -> PackedMatrix:
    """Return the same matrix elsewhere in memory."""
    other = PackedMatrix.zeros(matrix.kind, matrix.rows, matrix.columns)
    other.buffer[:] = matrix.buffer
    return other


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows that were asked for."""
    for threads in options.threads:
        bench = Bench(threads, min if options.best else statistics.median)
        if "matmul" in options.only:
            for kind in options.kinds:
                yield from bench.matmuls(kind, options.tokens)
        if "attention" in options.only:
            for cache_kind in CacheKind:
                yield from bench.attention(cache_kind)
        if "rows" in options.only:
            for tokens in (1, PROMPT_TOKENS):
                yield from bench.rows(tokens)
        bench.close()


def numbers(text: str) -> list[int]:
    """Return the numbers of a list such as 1,2."""
    return [int(each) for each in text.split(",")]


def shown(row: Row) -> str:
    """Return a row as a line of the table."""
    operations_, bytes_, ratio = row[5:]
    cells = (
        f"{row.kernel:<18}{row.shape:<20}{row.tokens:>6}{row.threads:>8}{row.microseconds:>13.1f}",
        f"{operations_:>9.1f}" if operations_ is not None else " " * 9,
        f"{bytes_:>8.1f}" if bytes_ is not None else " " * 8,
        f"{ratio:>9.0%}" if ratio is not None else "",
    )
    return "".join(cells).rstrip()


def main() -> None:
    """Print the table, or a list of objects."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=numbers, default=[1])
    parser.add_argument("--tokens", type=numbers, default=[1, 8, 128, 512])
    parser.add_argument(
        "--kinds",
        type=lambda text: [WeightKind(name) for name in text.split(",")],
        default=list(WeightKind),
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=["matmul", "attention", "rows"]
    )
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    features = [name for name in FEATURES if name in compiled_features()]
    if options.json:
        rows = [row._asdict() for row in measured(options)]
        print(json.dumps({"features": features, "results": rows}))
        return
    print(f"compiled for {' '.join(features) or 'no extension'}")
    print(HEADING)
    for row in measured(options):
        print(shown(row), flush=True)


if __name__ == "__main__":
    main()
