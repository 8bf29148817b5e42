"""The numba backend: the reference's numbers from compiled kernels on a team of threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels import attention, elementwise, jit, matmul
from edgellama_kernels.checked import CheckedKernels
from edgellama_kernels.interface import (
    TILE_POSITIONS,
    CacheLayer,
    Float32,
    HiddenRows,
    NonFinite,
    QuantizedBlocks,
)
from edgellama_kernels.layout import BLOCK_COLUMNS, PackedMatrix
from edgellama_kernels.reference import ONE, ReferenceKernels
from edgellama_kernels.team import Team

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VECTOR = 8


def _address(array: NDArray[Any] | None) -> int:
    return 0 if array is None else int(array.__array_interface__["data"][0])


class CompiledKernels(CheckedKernels):
    """Every kernel compiled for this machine; the first call of each compiles it or loads it."""

    name = "numba"
    cache_note = jit.CACHE_NOTE

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._team = Team(threads)

    def close(self) -> None:
        """End the team's threads."""
        self._team.close()

    def _expand(self, halves: NDArray[np.uint16], exponents: NDArray[np.uint8]) -> Float32:
        tokens, width = halves.shape
        y = np.empty((tokens, width), np.float32)
        arguments = (_address(halves), _address(exponents), _address(y), width)
        if self._team.run(elementwise.expand, arguments, tokens, y.size):
            raise NonFinite("a hidden row holds infinity or NaN")
        return y

    def _shrink(self, x: Float32) -> HiddenRows:
        tokens, width = x.shape
        hidden = HiddenRows(np.empty((tokens, width), np.uint16), np.empty(tokens, np.uint8))
        arguments = (_address(x), _address(hidden.halves), _address(hidden.exponents), width)
        if self._team.run(elementwise.shrink, arguments, tokens, x.size):
            raise NonFinite("the hidden state became infinite or NaN")
        return hidden

    def _rms_norm(self, x: Float32, weight: Float32, epsilon: np.float32) -> Float32:
        tokens, width = x.shape
        y = np.empty_like(x)
        arguments = (_address(x), _address(weight), _address(y), width, epsilon)
        if self._team.run(elementwise.rms_norm, arguments, tokens, x.size):
            raise NonFinite("a norm met infinity, NaN or a sum of squares without a root")
        return y

    def _quantize(self, x: Float32) -> QuantizedBlocks:
        tokens, columns = x.shape
        count = columns // BLOCK_COLUMNS
        blocks = QuantizedBlocks(
            np.empty((count, tokens, BLOCK_COLUMNS), np.int8),
            np.empty((count, tokens), np.float32),
            np.empty((count, tokens), np.int32),
        )
        addresses = (_address(array) for array in blocks)
        arguments = (_address(x), *addresses, tokens, columns)
        if self._team.run(elementwise.quantize, arguments, tokens, x.size):
            raise NonFinite("the input of a matmul is infinite or NaN")
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
        quantized = (_address(array) for array in blocks or (None, None, None))
        arguments = (
            matmul.KIND_CODES[matrix.kind], matrix.address, matrix.scales_address, matrix.columns,
            matrix.rows, _address(x), *quantized, _address(residual), _address(y), tokens,
        )  # fmt: skip
        work, scratch = matrix.buffer.size * tokens, matmul.TOKENS_TILE * _VECTOR
        self._team.run(matmul.multiply, arguments, matrix.groups, work, scratch)
        return y

    def _rope(self, x: Float32, table: Float32) -> None:
        tokens, heads, width = x.shape
        arguments = (_address(x), _address(table), heads, width)
        self._team.run(elementwise.rope, arguments, tokens, x.size)

    def _silu_multiply(self, gate: Float32, up: Float32) -> Float32:
        tokens, width = gate.shape
        y = np.empty_like(gate)
        arguments = (_address(gate), _address(up), _address(y), width)
        self._team.run(elementwise.silu_multiply, arguments, tokens, 8 * y.size)
        return y

    def _store(self, cache: CacheLayer, keys: Float32, values: Float32, position: int) -> None:
        tokens, kv_heads, width = keys.shape
        arguments = (
            _address(keys), _address(values), _address(cache.keys), _address(cache.values),
            kv_heads, width, cache.capacity, position,
        )  # fmt: skip
        if elementwise.store_cache(*arguments, 0, tokens):
            raise NonFinite("a key or value is too large for the cache, infinite or NaN")

    def _attention(self, queries: Float32, cache: CacheLayer, position: int) -> Float32:
        tokens, heads, width = queries.shape
        if width < _VECTOR:
            return ReferenceKernels()._attention(queries, cache, position)
        rounded, y = np.empty_like(queries), np.empty_like(queries)
        scale = ONE / np.sqrt(np.float32(width))
        if attention.round_queries(_address(queries), scale, _address(rounded), queries.size):
            raise NonFinite("a query is too large, infinite or NaN")
        rows = tokens * (heads // cache.kv_heads)
        units = cache.kv_heads * -(-rows // attention.ROWS_AT_ONCE)
        arguments = (
            _address(rounded), _address(cache.keys), _address(cache.values), _address(y),
            tokens, heads, cache.kv_heads, width, cache.capacity, position,
        )  # fmt: skip
        scratch = attention.ROWS_AT_ONCE * (position + tokens + TILE_POSITIONS)
        work = queries.size * (position + tokens)
        self._team.run(attention.attend, arguments, units, work, scratch)
        return y
