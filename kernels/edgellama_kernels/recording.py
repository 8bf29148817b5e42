"""Records the verbs of some layers once, to run them all in one call for each thread.

A recording looks like kernels to whoever writes down a layer, but its arrays have no numbers yet:
each verb adds an operation to a list, and ``finish`` makes a program of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellama_kernels import operations
from edgellama_kernels.arena import Arena, CacheOperand, Storage
from edgellama_kernels.checked import score_scale
from edgellama_kernels.expert_layout import EXPERTS_MAX
from edgellama_kernels.interface import (
    QUAD_NUMBERS,
    CacheKind,
    Float32,
    Unrecordable,
    quads_of,
)
from edgellama_kernels.kinds import BLOCK_COLUMNS
from edgellama_kernels.operations import expert_operands, matrix_operands
from edgellama_kernels.prepared import Program
from edgellama_kernels.team import Team, address

if TYPE_CHECKING:
    from edgellama_kernels.expert_layout import PackedExperts
    from edgellama_kernels.layout import PackedMatrix
    from edgellama_kernels.operations import Operation

VECTOR = 8


class RecordedArray(NamedTuple):
    """Numbers that the program will compute, [T, *shape]."""

    storage: Storage
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """How many numbers a token has."""
        return int(np.prod(self.shape))

    def reshape(self, _tokens: int, *shape: int) -> RecordedArray:
        """Return the same numbers in another shape; the tokens stay first."""
        return RecordedArray(self.storage, shape)


Blocks = tuple[Storage, Storage, Storage]


class RecordedRows:
    """Activations on their way into matmuls; quantised once, on first need."""

    def __init__(self, values: RecordedArray) -> None:
        self.values = values
        self.blocks: Blocks | None = None


class RecordedRouting(NamedTuple):
    """What ``operations.route`` writes and how much: ``used`` numbers of each for a token."""

    chosen: Storage
    shares: Storage
    order: Storage
    experts: int
    used: int


class Recording:
    """The verbs of ``interface.Verbs``, written down. Its arrays hold up to ``tokens_max`` tokens.

    ``hidden`` is what each run is given, hidden rows of ``width``, and so are RoPE tables for heads
    of ``head_width``, ``turns(table)``. Positions and caches are those of the run as well, so that
    the arguments of that name are not looked at; a layer's cache is ``cache(layer)``.
    """

    def __init__(
        self, team: Team, tokens_max: int, width: int, head_width: int, cache_kind: CacheKind
    ) -> None:
        self._team = team
        self._tokens_max = tokens_max
        self._operations: list[Operation] = []
        self._width, self._head_width, self._cache_kind = width, head_width, cache_kind
        self.hidden = Storage(2 * width), Storage(1)
        self._turns: list[RecordedArray] = []

    def turns(self, table: int) -> RecordedArray:
        """Return what stands for the ``table``-th RoPE table that a run is given."""
        while len(self._turns) <= table:
            shape = (2, self._head_width // 2)
            self._turns.append(RecordedArray(Storage(4 * self._head_width), shape))
        return self._turns[table]

    def cache(self, layer: int) -> int:
        """Return what stands for the cache of the run's ``layer``-th layer."""
        return layer

    def expand(self, hidden: Any) -> Any:
        """Record ``Verbs.expand``."""
        halves, exponents = hidden
        y = _numbers(self._width)
        self._operations.append(operations.expand(halves, exponents, y.storage, y.width))
        return y

    def shrink(self, x: Any) -> Any:
        """Record ``Verbs.shrink``."""
        halves, exponents = Storage(2 * x.width), Storage(1)
        self._operations.append(operations.shrink(x.storage, halves, exponents, x.width))
        return halves, exponents

    def rms_norm(self, x: Any, weight: Float32, epsilon: float) -> Any:
        """Record ``Verbs.rms_norm``."""
        width = x.shape[-1]
        _check(weight.shape == (width,) and weight.dtype == np.float32)
        y, rows = _numbers(*x.shape), x.width // width
        self._operations.append(
            operations.norm(x.storage, address(weight), y.storage, width, epsilon, rows)
        )
        return y

    def prepare(self, x: Any) -> Any:
        """Record ``Verbs.prepare``."""
        return RecordedRows(x)

    def matmul(self, matrix: PackedMatrix, rows: Any, residual: Any = None) -> Any:
        """Record ``Verbs.matmul``."""
        _check(rows.values.shape == (matrix.columns,))
        _check(residual is None or residual.width == matrix.rows)
        nothing = 0, 0, 0
        quantized = matrix.kind.quantized
        blocks = self._blocks(rows) if quantized else nothing
        x = 0 if quantized else rows.values.storage
        y = _numbers(matrix.rows)
        added = 0 if residual is None else residual.storage
        self._operations.append(
            operations.multiply(matrix_operands(matrix), x, blocks, added, y.storage, matrix.groups)
        )
        return y

    def _blocks(self, rows: RecordedRows) -> Blocks:
        if rows.blocks is None:
            columns, width = rows.values.shape[-1], rows.values.width
            _check(columns % BLOCK_COLUMNS == 0)
            count = width // BLOCK_COLUMNS
            rows.blocks = (Storage(width), Storage(4 * count), Storage(4 * count))
            self._operations.append(
                operations.quantize(rows.values.storage, *rows.blocks, columns, width // columns)
            )
        return rows.blocks

    def route(self, logits: Any, used: int) -> Any:
        """Record ``Verbs.route``."""
        _check(len(logits.shape) == 1 and 1 <= used <= logits.width <= EXPERTS_MAX)
        size = 4 * used
        routing = RecordedRouting(Storage(size), Storage(size), Storage(size), logits.width, used)
        self._operations.append(operations.route(logits.storage, *routing))
        return routing

    def expert_matmul(self, experts: PackedExperts, rows: Any, routing: Any) -> Any:
        """Record ``Verbs.expert_matmul``."""
        used, columns = routing.used, experts.columns
        _check(experts.count == routing.experts)
        _check(rows.values.shape in ((columns,), (used, columns)))
        quantized = experts.kind.quantized
        y = _numbers(used, experts.rows)
        self._operations.append(
            operations.multiply_experts(
                expert_operands(experts),
                0 if quantized else rows.values.storage,
                self._blocks(rows) if quantized else (0, 0, 0),
                1 if len(rows.values.shape) == 2 else used,
                (routing.chosen, routing.order),
                used,
                y.storage,
            )
        )
        return y

    def mix(self, outputs: Any, routing: Any, residual: Any) -> Any:
        """Record ``Verbs.mix``."""
        used, width = outputs.shape
        _check(used == routing.used and residual.shape == (width,))
        y = _numbers(width)
        self._operations.append(
            operations.mix(
                outputs.storage, routing.shares, residual.storage, y.storage, width, used
            )
        )
        return y

    def rope(self, x: Any, table: Any) -> None:
        """Record ``Verbs.rope``."""
        heads, width = x.shape
        _check(table.shape == (2, width // 2))
        self._operations.append(operations.rope(x.storage, table.storage, heads, width))

    def silu_multiply(self, gate: Any, up: Any) -> Any:
        """Record ``Verbs.silu_multiply``."""
        return self._gated(operations.silu_multiply, gate, up)

    def gelu_multiply(self, gate: Any, up: Any) -> Any:
        """Record ``Verbs.gelu_multiply``."""
        return self._gated(operations.gelu_multiply, gate, up)

    def _gated(self, operation: Any, gate: Any, up: Any) -> Any:
        _check(gate.shape == up.shape)
        y = _numbers(*gate.shape)
        self._operations.append(operation(gate.storage, up.storage, y.storage, y.width))
        return y

    def add(self, x: Any, summand: Any) -> Any:
        """Record ``Verbs.add``; a summand of numbers is a bias."""
        bias = isinstance(summand, np.ndarray)
        _check(summand.shape == (x.width,) and (not bias or summand.dtype == np.float32))
        y, stride = _numbers(x.width), 0 if bias else x.width
        place = address(summand) if bias else summand.storage
        self._operations.append(operations.add(x.storage, place, y.storage, y.width, stride))
        return y

    def store(self, cache: Any, keys: Any, values: Any, position: int) -> None:
        """Record ``Verbs.store``."""
        kv_heads, width = keys.shape
        _check(values.shape == keys.shape and width == self._head_width)
        arrays, capacity = self._cache_operands(cache)
        self._operations.append(
            operations.store(keys.storage, values.storage, arrays, kv_heads, width, capacity)
        )
        self._kv_heads = kv_heads

    def attention(
        self, queries: Any, cache: Any, position: int, window: int = 0, scale: float | None = None
    ) -> Any:
        """Record ``Verbs.attention``."""
        heads, width = queries.shape
        _check(width == self._head_width and heads % self._kv_heads == 0 and window >= 0)
        if width < VECTOR:
            raise Unrecordable(f"heads of {width} are narrower than a vector")
        y = _numbers(heads * width)
        rounded: tuple[Storage, Storage | int] = Storage(4 * heads * width), 0
        if self._cache_kind is CacheKind.Q8:
            rounded = Storage(QUAD_NUMBERS * quads_of(width) * heads), Storage(8 * heads)
        arrays, capacity = self._cache_operands(cache)
        factor = score_scale(width) if scale is None else np.float32(scale)
        self._operations.append(
            operations.round_queries(queries.storage, *rounded, heads, width, factor)
        )
        shape = heads, self._kv_heads, width, capacity
        self._operations.append(operations.attend(rounded, arrays, y.storage, *shape, window))
        return y

    def _cache_operands(
        self, layer: int
    ) -> tuple[tuple[CacheOperand, CacheOperand, CacheOperand | int], CacheOperand]:
        scales = CacheOperand(layer, "scales") if self._cache_kind is CacheKind.Q8 else 0
        arrays = CacheOperand(layer, "keys"), CacheOperand(layer, "values"), scales
        return arrays, CacheOperand(layer, "capacity")

    def finish(self, hidden: Any) -> Program:
        """Return the program whose result is ``hidden``."""
        given = (*self.hidden, *(table.storage for table in self._turns))
        arena = Arena(self._operations, given, hidden, self._tokens_max)
        cache_shape = (self._cache_kind, self._kv_heads, self._head_width)
        return Program(self._team, self._operations, arena, cache_shape)


def _numbers(*shape: int) -> RecordedArray:
    return RecordedArray(Storage(4 * int(np.prod(shape))), shape)


def _check(fits: bool) -> None:
    if not fits:
        raise ValueError("the shapes of a recorded layer do not fit")
