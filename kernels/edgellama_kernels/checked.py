"""The verbs of a backend with their checks: shapes may come from a damaged file or a peer.

A backend computes in the underscored methods, which may rely on what is checked here: float32 in
C order, shapes that fit, positions inside the cache.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels.expert_layout import EXPERTS_MAX
from edgellama_kernels.interface import (
    GROUP_POSITIONS,
    LANE_POSITIONS,
    QUAD_NUMBERS,
    ROW_EXPONENT_MAX,
    TILE_POSITIONS,
    CacheKind,
    CacheLayer,
    Float32,
    HiddenRows,
    NonFinite,
    QuantizedBlocks,
    Recording,
    Routing,
    Rows,
    quads_of,
)
from edgellama_kernels.kinds import BLOCK_COLUMNS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellama_kernels.expert_layout import PackedExperts
    from edgellama_kernels.layout import PackedMatrix


def fitting(x: Float32, what: str, *shape: int | None) -> Float32:
    """Return x in C order if it is float32 of this shape (None: any size), or raise ValueError."""
    if x.dtype != np.float32 or len(x.shape) != len(shape):
        raise ValueError(f"{what} must be float32 with {len(shape)} dimensions")
    for size, expected in zip(x.shape, shape, strict=True):
        if expected is not None and size != expected:
            raise ValueError(f"{what} has shape {x.shape}, expected {shape}")
    return x if x.flags.c_contiguous else np.ascontiguousarray(x)


class CheckedKernels(abc.ABC):
    """Checks of shapes and bounds in front of a backend's arithmetic."""

    name: str
    threads: int
    cache_note: str | None = None

    def embed(
        self, matrix: PackedMatrix, token_ids: NDArray[np.int64], scale: float = 1.0
    ) -> HiddenRows:
        """Return the rows of ``token_ids`` [T], times ``scale``, as hidden rows (rule 8)."""
        rows = matrix.dequantized_rows(token_ids)
        if scale != 1:
            with np.errstate(all="ignore"):  # what overflows is refused when it is rounded
                rows = rows * np.float32(scale)
        return self._shrink(rows)

    def expand(self, hidden: HiddenRows) -> Float32:
        """Return hidden rows as float32 [T, width]; raises NonFinite."""
        halves, exponents = hidden
        if halves.dtype != np.uint16 or exponents.dtype != np.uint8 or halves.ndim != 2:
            raise ValueError("hidden rows are uint16 [T, width] and uint8 [T]")
        if exponents.shape != halves.shape[:1]:
            raise ValueError("hidden rows need one exponent a row")
        if exponents.size and exponents.max() > ROW_EXPONENT_MAX:
            raise NonFinite("a hidden row is scaled beyond every finite number")
        return self._expand(np.ascontiguousarray(halves), np.ascontiguousarray(exponents))

    def shrink(self, x: Float32) -> HiddenRows:
        """Round x [T, n] to hidden rows (rule 8); raises NonFinite."""
        return self._shrink(fitting(x, "a hidden state", None, None))

    def rms_norm(self, x: Float32, weight: Float32, epsilon: float) -> Float32:
        """Normalise each row of x [T, n] or [T, heads, n], weighed with ``weight`` [n] (rule 3)."""
        x = fitting(x, "the input of a norm", *_any_rows(x))
        weight = fitting(weight, "the weights of a norm", x.shape[-1])
        rows = x.reshape(-1, x.shape[-1])
        return self._rms_norm(rows, weight, np.float32(epsilon)).reshape(x.shape)

    def prepare(self, x: Float32) -> Rows:
        """Make x [T, K] or [T, used, K] ready for matmuls with any kind of weights."""
        return Rows(fitting(x, "the input of a matmul", *_any_rows(x)))

    def matmul(self, matrix: PackedMatrix, rows: Rows, residual: Float32 | None = None) -> Float32:
        """Return W x, float32 [T, matrix.rows], plus ``residual`` (rule 1)."""
        x = fitting(rows.values, "the input of a matmul", None, matrix.columns)
        if residual is not None:
            residual = fitting(residual, "a residual", len(x), matrix.rows)
        if not matrix.kind.quantized:
            return self._matmul_float(matrix, x, residual)
        return self._matmul_blocks(matrix, self._blocks(rows), residual)

    def _blocks(self, rows: Rows) -> QuantizedBlocks:
        if rows.blocks is None:
            rows.blocks = self.quantize(rows.values.reshape(-1, rows.values.shape[-1]))
        return rows.blocks

    def quantize(self, x: Float32) -> QuantizedBlocks:
        """Quantise x [T, K] in blocks of 32 columns (rule 2); raises NonFinite."""
        x = fitting(x, "the input of a matmul", None, None)
        if x.shape[1] % BLOCK_COLUMNS:
            raise ValueError("quantised activations need a multiple of 32 columns")
        return self._quantize(x)

    def route(self, logits: Float32, used: int) -> Routing:
        """Choose each token's ``used`` experts by logits [T, experts] (rule 11)."""
        logits = fitting(logits, "the logits of a router", None, None)
        if not 1 <= used <= logits.shape[1] <= EXPERTS_MAX:
            raise ValueError(f"{used} of {logits.shape[1]} experts cannot be used")
        return self._route(logits, used)

    def expert_matmul(self, experts: PackedExperts, rows: Rows, routing: Routing) -> Float32:
        """Return what each token's experts make of it, float32 [T, used, experts.rows]."""
        tokens, used = _check_routing(routing, experts.count)
        x = rows.values
        if x.shape not in ((tokens, experts.columns), (tokens, used, experts.columns)):
            raise ValueError(f"activations {x.shape} are not those of {tokens} routed tokens")
        blocks = self._blocks(rows) if experts.kind.quantized else None
        return self._expert_matmul(experts, x, blocks, routing)

    def mix(self, outputs: Float32, routing: Routing, residual: Float32) -> Float32:
        """Return ``residual`` [T, n] plus the experts' ``outputs`` [T, used, n] by their shares."""
        outputs = fitting(outputs, "the output of experts", *routing.chosen.shape, None)
        tokens, _, width = outputs.shape
        residual = fitting(residual, "a residual", tokens, width)
        return self._mix(outputs, fitting(routing.shares, "shares", *outputs.shape[:2]), residual)

    def rope(self, x: Float32, table: Float32) -> None:
        """Rotate the pairs (i, i + D/2) of x [T, heads, D] in place (rule 6)."""
        if fitting(x, "the input of RoPE", None, None, None) is not x:
            raise ValueError("RoPE works in place and needs its input in C order")
        tokens, _, width = x.shape
        if width % 2:
            raise ValueError(f"RoPE rotates pairs: {width} dimensions are odd")
        self._rope(x, fitting(table, "a RoPE table", tokens, 2, width // 2))

    def silu_multiply(self, gate: Float32, up: Float32) -> Float32:
        """Return silu(gate) * up, all [T, n] (rule 5)."""
        gates, ups = _gated(gate, up)
        return self._silu_multiply(gates, ups).reshape(gate.shape)

    def gelu_multiply(self, gate: Float32, up: Float32) -> Float32:
        """Return gelu(gate) * up, all [T, n] or [T, used, n] (rule 5)."""
        gates, ups = _gated(gate, up)
        return self._gelu_multiply(gates, ups).reshape(gate.shape)

    def add(self, x: Float32, summand: Float32) -> Float32:
        """Return x [T, n] plus a bias [n], or plus [T, n] (rule 1)."""
        x = fitting(x, "a sum", None, None)
        return self._add(x, fitting(summand, "a summand", *x.shape[-summand.ndim :]))

    def store(self, cache: CacheLayer, keys: Float32, values: Float32, position: int) -> None:
        """Write keys and values [T, kv_heads, D] of the positions from ``position`` on."""
        keys = fitting(keys, "keys", None, cache.kv_heads, cache.head_width)
        values = fitting(values, "values", *keys.shape)
        _check_positions(cache, position, len(keys))
        self._store(cache, keys, values, position)

    def attention(
        self,
        queries: Float32,
        cache: CacheLayer,
        position: int,
        window: int = 0,
        scale: float | None = None,
    ) -> Float32:
        """Return [T, heads * D] for queries [T, heads, D] at ``position + t`` (rule 7)."""
        if window < 0:
            raise ValueError(f"a window of {window} positions shows nothing")
        queries = fitting(queries, "queries", None, None, cache.head_width)
        tokens, heads, width = queries.shape
        if heads == 0 or heads % cache.kv_heads:
            raise ValueError(f"{heads} query heads do not share {cache.kv_heads} key heads")
        _check_positions(cache, position, tokens)
        factor = score_scale(width) if scale is None else np.float32(scale)
        mixed = self._attention(queries, cache, position, window, factor)
        return mixed.reshape(tokens, heads * width)

    def record(
        self,
        tokens_max: int,
        width: int,
        head_width: int,
        cache_kind: CacheKind = CacheKind.F16,
    ) -> Recording | None:
        """Return None: a program would not be faster."""
        return None

    @abc.abstractmethod
    def _expand(self, halves: NDArray[np.uint16], exponents: NDArray[np.uint8]) -> Float32: ...

    @abc.abstractmethod
    def _shrink(self, x: Float32) -> HiddenRows: ...

    @abc.abstractmethod
    def _rms_norm(self, x: Float32, weight: Float32, epsilon: np.float32) -> Float32: ...

    @abc.abstractmethod
    def _quantize(self, x: Float32) -> QuantizedBlocks: ...

    @abc.abstractmethod
    def _matmul_blocks(
        self, matrix: PackedMatrix, blocks: QuantizedBlocks, residual: Float32 | None
    ) -> Float32: ...

    @abc.abstractmethod
    def _matmul_float(
        self, matrix: PackedMatrix, x: Float32, residual: Float32 | None
    ) -> Float32: ...

    @abc.abstractmethod
    def _route(self, logits: Float32, used: int) -> Routing: ...

    @abc.abstractmethod
    def _expert_matmul(
        self, experts: PackedExperts, x: Float32, blocks: QuantizedBlocks | None, routing: Routing
    ) -> Float32: ...

    @abc.abstractmethod
    def _mix(self, outputs: Float32, shares: Float32, residual: Float32) -> Float32: ...

    @abc.abstractmethod
    def _rope(self, x: Float32, table: Float32) -> None: ...

    @abc.abstractmethod
    def _silu_multiply(self, gate: Float32, up: Float32) -> Float32: ...

    @abc.abstractmethod
    def _gelu_multiply(self, gate: Float32, up: Float32) -> Float32: ...

    @abc.abstractmethod
    def _add(self, x: Float32, summand: Float32) -> Float32: ...

    @abc.abstractmethod
    def _store(self, cache: CacheLayer, keys: Float32, values: Float32, position: int) -> None: ...

    @abc.abstractmethod
    def _attention(
        self,
        queries: Float32,
        cache: CacheLayer,
        position: int,
        window: int,
        scale: np.float32,
    ) -> NDArray[Any]: ...


def score_scale(width: int) -> np.float32:
    """Return rule 7's 1 / sqrt(D) for heads of ``width``."""
    scale: np.float32 = np.float32(1) / square_root(np.float32(width))
    return scale


def square_root(x: Any) -> Any:
    """Return the nearest float32, by way of float64: NumPy's own is an estimate on 32-bit ARM.

    53 bits are enough that the second rounding changes nothing (2 * 24 + 2 would do).
    """
    return np.sqrt(np.asarray(x, np.float64)).astype(np.float32)


def _gated(gate: Float32, up: Float32) -> tuple[Float32, Float32]:
    """Return both as rows, [n, width]."""
    gate = fitting(gate, "a gate", *_any_rows(gate))
    up = fitting(up, "a gated input", *gate.shape)
    rows = (-1, gate.shape[-1])
    return gate.reshape(rows), up.reshape(rows)


def _any_rows(x: Float32) -> list[None]:
    """Return the shape of rows, [T, n] or [T, parts, n], as ``fitting`` takes it."""
    return [None] * max(2, min(x.ndim, 3))


def _check_routing(routing: Routing, experts: int) -> tuple[int, int]:
    """Return the tokens and how many experts each has; a wrong number would leave the memory."""
    chosen, _, order = routing
    if chosen.ndim != 2 or chosen.dtype != np.int32 or order.dtype != np.int32:
        raise ValueError("a routing is int32 [T, used] and int32 [T * used]")
    contiguous = chosen.flags.c_contiguous and order.flags.c_contiguous
    if order.shape != (chosen.size,) or not contiguous:
        raise ValueError("a routing needs the order of all its pairs")
    if chosen.size and not (0 <= chosen.min() <= chosen.max() < experts):
        raise ValueError(f"a routing names none of {experts} experts")
    if (np.sort(order) != np.arange(order.size)).any():
        raise ValueError("the order of a routing is none of its pairs")
    tokens, used = chosen.shape
    return tokens, used


def _check_positions(cache: CacheLayer, position: int, tokens: int) -> None:
    heads, capacity, width = cache.kv_heads, cache.capacity, cache.head_width
    arrays: list[NDArray[Any]] = [cache.keys, cache.values]
    dtype: type[np.generic] = np.uint16
    tiled: tuple[int, ...] = (heads, capacity // LANE_POSITIONS, width, LANE_POSITIONS)
    if cache.scales is not None:
        arrays.append(cache.scales)
        dtype, quads = np.int8, quads_of(width)
        tiled = (heads, capacity // GROUP_POSITIONS, quads, GROUP_POSITIONS, QUAD_NUMBERS)
        if cache.scales.shape != (2, heads, capacity) or cache.scales.dtype != np.float32:
            raise ValueError("the scales of a cache do not have its values' shape")
    if cache.keys.shape != tiled or capacity % TILE_POSITIONS:
        raise ValueError("the keys of a cache do not have its values' shape")
    if not cache.keys.dtype == cache.values.dtype == dtype:
        raise ValueError("the keys and values of a cache are uint16, or int8 with scales")
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("a cache is in C order")
    if not 0 <= position <= position + tokens <= cache.capacity:
        raise ValueError(
            f"positions {position} to {position + tokens} do not fit {cache.capacity} positions"
        )
