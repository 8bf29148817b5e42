"""The numba backend: the reference's numbers from compiled kernels on a team of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels import operations, row_codec_compiled
from edgellama_kernels.checked import CheckedKernels
from edgellama_kernels.entries import entries
from edgellama_kernels.interface import (
    QUAD_NUMBERS,
    CacheKind,
    CacheLayer,
    Float32,
    HiddenRows,
    NonFinite,
    QuantizedBlocks,
    Routing,
    quads_of,
)
from edgellama_kernels.kinds import BLOCK_COLUMNS
from edgellama_kernels.operations import COLUMNS, OPERANDS, expert_operands, matrix_operands
from edgellama_kernels.recording import Recording
from edgellama_kernels.reference import HALF_ROUNDS_TO_INFINITY, ReferenceKernels
from edgellama_kernels.team import Table, Team, address

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from edgellama_kernels.expert_layout import PackedExperts
    from edgellama_kernels.layout import PackedMatrix
    from edgellama_kernels.operations import Operation

_VECTOR = 8
SHARED_WORK_MIN = 1 << 18  # below, waking a thread costs more than it saves


class CompiledKernels(CheckedKernels):
    """Every verb compiled for this machine; the first call compiles them all or loads them."""

    name = "numba"
    row_codec = row_codec_compiled.COMPILED

    def __init__(
        self,
        threads: int = 1,
        equal_cores: bool = True,
        adapt: bool = True,
        cpus: Collection[int] = (),
    ) -> None:
        self.threads = threads
        self.cache_note = entries().note
        self._team = Team(threads, equal_cores, adapt, cpus)

    def record(
        self,
        tokens_max: int,
        width: int,
        head_width: int,
        cache_kind: CacheKind = CacheKind.F16,
    ) -> Recording:
        """Return verbs to write down layers with, to run them in one call."""
        return Recording(self._team, tokens_max, width, head_width, cache_kind)

    def close(self) -> None:
        """End the team's threads."""
        self._team.close()

    def _do(
        self, operation: Operation, tokens: int, work: int, scratch: int = 0, position: int = 0
    ) -> None:
        """Run one operation; raises NonFinite.

        ``work`` estimates its bytes or operations; ``scratch`` is what ``Team.run`` says.
        """
        rows = np.zeros((1, COLUMNS), np.int64)
        rows[0, 0], rows[0, 2:OPERANDS] = operation.code, operation[2:4]
        for column, x in enumerate(operation.operands, OPERANDS):
            rows[0, column] = address(x) if isinstance(x, np.ndarray) else x
        threads = self.threads if work >= SHARED_WORK_MIN else 1
        arrays, scratch = operation.operands, max(scratch, operation.scratch)
        status = self._team.run(Table(rows), arrays, tokens, position, scratch, threads, True)
        if status:
            raise NonFinite(operations.REFUSALS[status])

    def _expand(self, halves: NDArray[np.uint16], exponents: NDArray[np.uint8]) -> Float32:
        tokens, width = halves.shape
        y = np.empty((tokens, width), np.float32)
        operation = operations.expand(halves, exponents, y, width)
        self._do(operation, tokens, y.size)
        return y

    def _shrink(self, x: Float32) -> HiddenRows:
        tokens, width = x.shape
        halves, exponents = np.empty((tokens, width), np.uint16), np.empty(tokens, np.uint8)
        operation = operations.shrink(x, halves, exponents, width)
        self._do(operation, tokens, x.size)
        return HiddenRows(halves, exponents)

    def _rms_norm(self, x: Float32, weight: Float32, epsilon: np.float32) -> Float32:
        tokens, width = x.shape
        y = np.empty_like(x)
        operation = operations.norm(x, weight, y, width, epsilon)
        self._do(operation, tokens, x.size)
        return y

    def _quantize(self, x: Float32) -> QuantizedBlocks:
        tokens, columns = x.shape
        count = columns // BLOCK_COLUMNS
        blocks = QuantizedBlocks(
            np.empty((count, tokens, BLOCK_COLUMNS), np.int8),
            np.empty((count, tokens), np.float32),
            np.empty((count, tokens, 2), np.int16),
        )
        operation = operations.quantize(x, *blocks, columns)
        self._do(operation, tokens, x.size)
        return blocks

    def _matmul_blocks(
        self, matrix: PackedMatrix, blocks: QuantizedBlocks, residual: Float32 | None
    ) -> Float32:
        return self._multiply(matrix, blocks.quants.shape[1], None, blocks, residual)

    def _matmul_float(self, matrix: PackedMatrix, x: Float32, residual: Float32 | None) -> Float32:
        return self._multiply(matrix, len(x), x, None, residual)

    def _multiply(
        self,
        matrix: PackedMatrix,
        tokens: int,
        x: Float32 | None,
        blocks: QuantizedBlocks | None,
        residual: Float32 | None,
    ) -> Float32:
        y = np.empty((tokens, matrix.rows), np.float32)
        nothing = 0
        operation = operations.multiply(
            matrix_operands(matrix),
            nothing if x is None else x,
            blocks or (nothing, nothing, nothing),
            nothing if residual is None else residual,
            y,
            matrix.groups,
        )
        self._do(operation, tokens, matrix.buffer.size * tokens, operations.SUMS_NUMBERS)
        return y

    def _route(self, logits: Float32, used: int) -> Routing:
        tokens, experts = logits.shape
        chosen, shares = np.empty((tokens, used), np.int32), np.empty((tokens, used), np.float32)
        order = np.empty(chosen.size, np.int32)
        operation = operations.route(logits, chosen, shares, order, experts, used)
        self._do(operation, tokens, logits.size)
        return Routing(chosen, shares, order)

    def _expert_matmul(
        self, experts: PackedExperts, x: Float32, blocks: QuantizedBlocks | None, routing: Routing
    ) -> Float32:
        tokens, used = routing.chosen.shape
        y = np.empty((tokens, used, experts.rows), np.float32)
        operation = operations.multiply_experts(
            expert_operands(experts),
            0 if blocks else x,
            blocks or (0, 0, 0),
            1 if x.ndim == 3 else used,
            (routing.chosen, routing.order),
            used,
            y,
        )
        self._do(operation, tokens, experts.bytes_each * tokens * used)
        return y

    def _mix(self, outputs: Float32, shares: Float32, residual: Float32) -> Float32:
        tokens, used, width = outputs.shape
        y = np.empty((tokens, width), np.float32)
        operation = operations.mix(outputs, shares, residual, y, width, used)
        self._do(operation, tokens, outputs.size)
        return y

    def _rope(self, x: Float32, table: Float32) -> None:
        tokens, heads, width = x.shape
        self._do(operations.rope(x, table, heads, width), tokens, x.size)

    def _silu_multiply(self, gate: Float32, up: Float32) -> Float32:
        return self._gated(operations.silu_multiply, gate, up)

    def _gelu_multiply(self, gate: Float32, up: Float32) -> Float32:
        return self._gated(operations.gelu_multiply, gate, up)

    def _gated(self, made: Callable[..., Operation], gate: Float32, up: Float32) -> Float32:
        tokens, width = gate.shape
        y = np.empty_like(gate)
        self._do(made(gate, up, y, width), tokens, 8 * y.size)
        return y

    def _add(self, x: Float32, summand: Float32) -> Float32:
        tokens, width = x.shape
        y = np.empty_like(x)
        stride = width if summand.ndim == 2 else 0
        self._do(operations.add(x, summand, y, width, stride), tokens, y.size)
        return y

    def _store(self, cache: CacheLayer, keys: Float32, values: Float32, position: int) -> None:
        tokens, kv_heads, width = keys.shape
        for numbers in (keys, values):
            if not (np.abs(numbers) < HALF_ROUNDS_TO_INFINITY).all():
                raise NonFinite(operations.REFUSALS[operations.STORE])
        arrays = _arrays(cache)
        operation = operations.store(keys, values, arrays, kv_heads, width, cache.capacity)
        self._do(operation, tokens, keys.size, position=position)

    def _attention(
        self,
        queries: Float32,
        cache: CacheLayer,
        position: int,
        window: int,
        scale: np.float32,
    ) -> Float32:
        tokens, heads, width = queries.shape
        if width < _VECTOR:
            return ReferenceKernels()._attention(queries, cache, position, window, scale)
        y = np.empty_like(queries)
        rounded: tuple[NDArray[Any], NDArray[Any] | int] = np.empty_like(queries), 0
        if cache.kind is CacheKind.Q8:
            quants = np.empty((tokens, heads, quads_of(width), QUAD_NUMBERS), np.int8)
            rounded = quants, np.empty((tokens, heads, 2), np.float32)
        self._do(
            operations.round_queries(queries, *rounded, heads, width, scale), tokens, queries.size
        )
        operation = operations.attend(
            rounded, _arrays(cache), y, heads, cache.kv_heads, width, cache.capacity, window
        )
        scratch = operations.attention_scratch(position + tokens, width)
        self._do(operation, tokens, queries.size * (position + tokens), scratch, position)
        return y


def _arrays(cache: CacheLayer) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | int]:
    """Return a cache's keys, values and scales, 0 where there are none."""
    return cache.keys, cache.values, 0 if cache.scales is None else cache.scales
