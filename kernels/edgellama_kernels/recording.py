"""Records the verbs of some layers once, to run them all in one call for each thread.

A recording looks like kernels to whoever writes down a layer, but its arrays have no numbers yet:
each verb adds an operation to a table. ``finish`` then places the arrays in one piece of memory,
where those whose time is over make room for later ones, and finds out before which operations
threads must meet: where one reads what another of the same group wrote, or the reverse.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellama_kernels import operations, program
from edgellama_kernels.interface import (
    CacheLayer,
    Float32,
    HiddenRows,
    NonFinite,
    Unrecordable,
)
from edgellama_kernels.matmul import matrix_operands
from edgellama_kernels.row_sums import TOKENS_TILE
from edgellama_kernels.team import Table, Team, TeamStalled, address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama_kernels.layout import PackedMatrix
    from edgellama_kernels.operations import Operation

ALIGNMENT_BYTES = 64
BLOCK_COLUMNS = 32
VECTOR = 8


class Storage:
    """Memory for one array of ``token_bytes`` a token; where, is found at the end."""

    __slots__ = ("token_bytes",)

    def __init__(self, token_bytes: int) -> None:
        self.token_bytes = token_bytes


class CacheOperand(NamedTuple):
    """One of the arrays of a layer's cache, or its capacity: known when the program runs."""

    layer: int
    field: str


Place = Storage | CacheOperand


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


class Recording:
    """The verbs of ``interface.Verbs``, written down. Its arrays hold up to ``tokens_max`` tokens.

    ``hidden`` and ``turns`` are what each run is given: hidden rows of ``width``, and a RoPE table
    of heads of ``head_width``. Positions and caches are those of the run as well, so that the
    arguments of that name are not looked at; a layer's cache is ``cache(layer)``.
    """

    def __init__(self, team: Team, tokens_max: int, width: int, head_width: int) -> None:
        self._team = team
        self._tokens_max = tokens_max
        self._operations: list[Operation] = []
        self._width, self._head_width = width, head_width
        self.hidden = Storage(2 * width), Storage(1)
        self.turns = RecordedArray(Storage(4 * head_width), (2, head_width // 2))

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
        _check(weight.shape == x.shape and weight.dtype == np.float32)
        y = _numbers(x.width)
        self._operations.append(
            operations.norm(x.storage, address(weight), y.storage, x.width, epsilon)
        )
        return y

    def prepare(self, x: Any) -> Any:
        """Record ``Verbs.prepare``."""
        return RecordedRows(x)

    def matmul(self, matrix: PackedMatrix, rows: Any, residual: Any = None) -> Any:
        """Record ``Verbs.matmul``."""
        _check(rows.values.width == matrix.columns)
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
            width = rows.values.width
            _check(width % BLOCK_COLUMNS == 0)
            count = width // BLOCK_COLUMNS
            rows.blocks = (Storage(width), Storage(4 * count), Storage(4 * count))
            self._operations.append(operations.quantize(rows.values.storage, *rows.blocks, width))
        return rows.blocks

    def rope(self, x: Any, table: Any) -> None:
        """Record ``Verbs.rope``."""
        heads, width = x.shape
        _check(table.shape == (2, width // 2))
        self._operations.append(operations.rope(x.storage, table.storage, heads, width))

    def silu_multiply(self, gate: Any, up: Any) -> Any:
        """Record ``Verbs.silu_multiply``."""
        _check(gate.shape == up.shape)
        y = _numbers(gate.width)
        self._operations.append(
            operations.silu_multiply(gate.storage, up.storage, y.storage, y.width)
        )
        return y

    def store(self, cache: Any, keys: Any, values: Any, position: int) -> None:
        """Record ``Verbs.store``."""
        kv_heads, width = keys.shape
        _check(values.shape == keys.shape and width == self._head_width)
        arrays, capacity = _cache_operands(cache)
        self._operations.append(
            operations.store(keys.storage, values.storage, arrays, kv_heads, width, capacity)
        )
        self._kv_heads = kv_heads

    def attention(self, queries: Any, cache: Any, position: int) -> Any:
        """Record ``Verbs.attention``."""
        heads, width = queries.shape
        _check(width == self._head_width and heads % self._kv_heads == 0)
        if width < VECTOR:
            raise Unrecordable(f"heads of {width} are narrower than a vector")
        rounded, y = _numbers(heads, width), _numbers(heads * width)
        arrays, capacity = _cache_operands(cache)
        self._operations.append(
            operations.round_queries(queries.storage, rounded.storage, heads, width)
        )
        self._operations.append(
            operations.attend(
                rounded.storage, arrays, y.storage, heads, self._kv_heads, width, capacity
            )
        )
        return y

    def finish(self, hidden: Any) -> Program:
        """Return the program whose result is ``hidden``."""
        given = (*self.hidden, self.turns.storage)
        layout = _Layout(self._operations, given, hidden, self._tokens_max)
        cache_shape = (self._kv_heads, self._head_width)
        return Program(self._team, self._operations, layout, cache_shape)


def _numbers(*shape: int) -> RecordedArray:
    return RecordedArray(Storage(4 * int(np.prod(shape))), shape)


def _cache_operands(layer: int) -> tuple[tuple[CacheOperand, CacheOperand], CacheOperand]:
    arrays = CacheOperand(layer, "keys"), CacheOperand(layer, "values")
    return arrays, CacheOperand(layer, "capacity")


def _check(fits: bool) -> None:
    if not fits:
        raise ValueError("the shapes of a recorded layer do not fit")


class _Layout:
    """Where each array of a recording lies, and before which operations threads meet."""

    def __init__(
        self,
        recorded: Sequence[Operation],
        given: Sequence[Storage],
        result: Sequence[Storage],
        tokens_max: int,
    ) -> None:
        self.given, self.result, self.tokens_max = tuple(given), tuple(result), tokens_max
        self.offsets: dict[Storage, int] = {}
        self.meets: list[bool] = []
        self.size_bytes = 0
        self._free: dict[int, list[int]] = defaultdict(list)  # offsets by size
        for storage in (*given, *result):
            self._place(storage)
        last = {x: n for n, operation in enumerate(recorded) for x in _places(operation)}
        kept: set[Place] = {*given, *result}
        written: set[Place] = set()
        read: set[Place] = set()
        for number, operation in enumerate(recorded):
            writes = {operation.operands[i] for i in operations.WRITES[operation.code]}
            reads = _places(operation) - writes
            together = not (reads & written or writes & (read | written))
            self.meets.append(not together)
            if not together:
                ended = {x for x in (read | written) - kept if last[x] < number}
                self._make_free(ended)
                kept |= ended
                written, read = set(), set()
            written |= writes
            read |= reads
            for place in reads | writes:
                self._place(place)

    def _make_free(self, ended: set[Place]) -> None:
        for place in ended:
            if isinstance(place, Storage):
                self._free[self._bytes(place)].append(self.offsets[place])

    def _place(self, place: Place) -> None:
        if place in self.offsets or not isinstance(place, Storage):
            return
        size = self._bytes(place)
        if self._free[size]:
            self.offsets[place] = self._free[size].pop()
        else:
            self.offsets[place] = self.size_bytes
            self.size_bytes += size

    def _bytes(self, storage: Storage) -> int:
        return -(-storage.token_bytes * self.tokens_max // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _places(operation: Operation) -> set[Place]:
    """Return the operands that lie in memory, weights apart."""
    return {x for x in operation.operands if isinstance(x, Storage | CacheOperand)}


class Program:
    """Recorded operations, placed and ready to run for up to ``tokens_max`` tokens at a time."""

    def __init__(
        self,
        team: Team,
        recorded: Sequence[Operation],
        layout: _Layout,
        cache_shape: tuple[int, int],
    ) -> None:
        self.tokens_max = layout.tokens_max
        self._team, self._layout, self._cache_shape = team, layout, cache_shape
        self._rows = np.zeros((len(recorded), program.COLUMNS), np.int64)
        self._placed: list[tuple[int, int, int]] = []  # row, column, offset
        self._cached: list[tuple[int, int, CacheOperand]] = []
        for row, operation in enumerate(recorded):
            units = operation.units, operation.units_per_token
            self._rows[row, : program.OPERANDS] = operation.code, layout.meets[row], *units
            for column, operand in enumerate(operation.operands, program.OPERANDS):
                if isinstance(operand, Storage):
                    self._placed.append((row, column, layout.offsets[operand]))
                elif isinstance(operand, CacheOperand):
                    self._cached.append((row, column, operand))
                else:
                    self._rows[row, column] = operand
        self._layers = 1 + max(operand.layer for _, _, operand in self._cached)
        self._caches: Sequence[CacheLayer] = ()
        self._renew_memory()

    @property
    def memory_bytes(self) -> int:
        """What the arrays between the operations take."""
        return self._layout.size_bytes

    def run(
        self, hidden: HiddenRows, turns: Float32, caches: Sequence[CacheLayer], position: int
    ) -> HiddenRows:
        """Return the hidden rows that the program makes of T tokens from ``position`` on.

        ``turns``: float32 [T, 2, head_width // 2]; ``caches``: one for each layer, all alike.
        Raises NonFinite; what the caches held before ``position`` is then still there.
        """
        tokens = len(hidden.exponents)
        self._bind(caches)
        if not 0 <= position <= position + tokens <= caches[0].capacity:
            raise ValueError(f"the caches do not hold {position + tokens} positions")
        scratch = max(4 * (position + tokens + 64), VECTOR * TOKENS_TILE)
        try:
            status = self._attempt(hidden, turns, position, scratch)
        except TeamStalled:  # a late thread may still write to the old memory
            self._renew_memory()
            status = self._attempt(hidden, turns, position, scratch)
        if status:
            raise NonFinite(operations.REFUSALS[status])
        halves, exponents = (self._array(x, tokens) for x in self._layout.result)
        return HiddenRows(halves.view(np.uint16).copy(), exponents[:, 0].copy())

    def _attempt(self, hidden: HiddenRows, turns: Float32, position: int, scratch: int) -> int:
        tokens = len(hidden.exponents)
        arrays = hidden.halves, hidden.exponents, turns
        for storage, array in zip(self._layout.given, arrays, strict=True):
            room = self._array(storage, tokens)
            room[:] = np.ascontiguousarray(array).view(np.uint8).reshape(room.shape)
        table = Table(self._rows, (self._memory, self._caches))
        return self._team.run(table, tokens, position, scratch, self._rows.size << 20)

    def _array(self, storage: Storage, tokens: int) -> np.ndarray[Any, Any]:
        """Return an array's bytes, uint8 [tokens, bytes of a token]."""
        start = self._layout.offsets[storage]
        size = storage.token_bytes
        return self._memory[start : start + tokens * size].reshape(tokens, size)

    def _renew_memory(self) -> None:
        room = np.zeros(self._layout.size_bytes + ALIGNMENT_BYTES, np.uint8)
        self._memory = room[-address(room) % ALIGNMENT_BYTES :]
        start = address(self._memory)
        for row, column, offset in self._placed:
            self._rows[row, column] = start + offset

    def _bind(self, caches: Sequence[CacheLayer]) -> None:
        """Let the operations work on these caches."""
        if caches is self._caches:
            return
        shapes = {(x.kv_heads, x.head_width, x.capacity) for x in caches}
        if len(caches) != self._layers or shapes != {(*self._cache_shape, caches[0].capacity)}:
            raise ValueError("the caches are not those of the recorded layers")
        for row, column, (layer, field) in self._cached:
            value = getattr(caches[layer], field)
            self._rows[row, column] = value if isinstance(value, int) else address(value)
        self._caches = caches
