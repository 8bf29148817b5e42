"""Programs: recorded operations, placed, and run in one call for each thread."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels import operations, program
from edgellama_kernels.arena import ALIGNMENT_BYTES, Arena, CacheOperand, Storage
from edgellama_kernels.attention import ROWS_AT_ONCE
from edgellama_kernels.interface import (
    TILE_POSITIONS,
    CacheLayer,
    Float32,
    HiddenRows,
    NonFinite,
)
from edgellama_kernels.pace import Pace
from edgellama_kernels.row_sums import TOKENS_TILE
from edgellama_kernels.team import Table, Team, TeamStalled, address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgellama_kernels.operations import Operation

LANES = 8


class Program:
    """Recorded operations, placed and ready to run for up to ``tokens_max`` tokens at a time."""

    def __init__(
        self,
        team: Team,
        recorded: Sequence[Operation],
        arena: Arena,
        cache_shape: tuple[int, int],
    ) -> None:
        self.tokens_max = arena.tokens_max
        self._team, self._arena, self._cache_shape = team, arena, cache_shape
        self._rows = np.zeros((len(recorded), program.COLUMNS), np.int64)
        self._placed: list[tuple[int, int, int]] = []  # row, column, offset
        self._cached: list[tuple[int, int, CacheOperand]] = []
        for row, operation in enumerate(recorded):
            units = operation.units, operation.units_per_token
            self._rows[row, : program.OPERANDS] = operation.code, arena.meets[row], *units
            for column, operand in enumerate(operation.operands, program.OPERANDS):
                if isinstance(operand, Storage):
                    self._placed.append((row, column, arena.offsets[operand]))
                elif isinstance(operand, CacheOperand):
                    self._cached.append((row, column, operand))
                else:
                    self._rows[row, column] = operand
        self._layers = 1 + max(operand.layer for _, _, operand in self._cached)
        self._bound: Callable[[], NDArray[Any] | None] = lambda: None
        self._pace = Pace(team.threads)
        self._renew_memory()

    @property
    def memory_bytes(self) -> int:
        """What the arrays between the operations take."""
        return self._arena.size_bytes

    def run(
        self, hidden: HiddenRows, turns: Float32, caches: Sequence[CacheLayer], position: int
    ) -> HiddenRows:
        """Return the hidden rows that the program makes of T tokens from ``position`` on.

        ``turns``: float32 [T, 2, head_width // 2]; ``caches``: one for each layer, all alike.
        Raises NonFinite; what the caches held before ``position`` is then still there.
        """
        tokens = len(hidden.exponents)
        if not 1 <= tokens <= self.tokens_max:
            raise ValueError(f"a program runs 1 to {self.tokens_max} tokens, not {tokens}")
        self._bind(caches)
        if not 0 <= position <= position + tokens <= caches[0].capacity:
            raise ValueError(f"the caches do not hold {position + tokens} positions")
        scratch = max(ROWS_AT_ONCE * (position + tokens + TILE_POSITIONS), LANES * TOKENS_TILE)
        try:
            status = self._attempt((*hidden, turns), caches, tokens, position, scratch)
        except TeamStalled:  # a late thread may still write to the old memory
            self._renew_memory()
            status = self._attempt((*hidden, turns), caches, tokens, position, scratch)
        if status:
            raise NonFinite(operations.REFUSALS[status])
        halves, exponents = (self._array(x, tokens) for x in self._arena.result)
        return HiddenRows(halves.view(np.uint16).copy(), exponents[:, 0].copy())

    def _attempt(
        self,
        given: Sequence[NDArray[Any]],
        caches: Sequence[CacheLayer],
        tokens: int,
        position: int,
        scratch: int,
    ) -> int:
        for storage, array in zip(self._arena.given, given, strict=True):
            room = self._array(storage, tokens)
            if array.nbytes != room.nbytes:
                raise ValueError("the input of a program does not fit")
            room[:] = np.ascontiguousarray(array).view(np.uint8).reshape(room.shape)
        table = Table(self._rows, (self._memory, caches))
        if tokens > 1:  # parts are long, so taking them one by one costs nothing
            return self._team.run(table, tokens, position, scratch, self._team.threads, True)
        threads = self._pace.next_threads()
        started_s = time.perf_counter()
        claims = not self._team.equal_cores
        status = self._team.run(table, tokens, position, scratch, threads, claims)
        self._pace.learn(threads, time.perf_counter() - started_s)
        return status

    def _array(self, storage: Storage, tokens: int) -> NDArray[Any]:
        """Return an array's bytes, uint8 [tokens, bytes of a token]."""
        start = self._arena.offsets[storage]
        size = storage.token_bytes
        return self._memory[start : start + tokens * size].reshape(tokens, size)

    def _renew_memory(self) -> None:
        room = np.zeros(self._arena.size_bytes + ALIGNMENT_BYTES, np.uint8)
        self._memory = room[-address(room) % ALIGNMENT_BYTES :]
        start = address(self._memory)
        for row, column, offset in self._placed:
            self._rows[row, column] = start + offset

    def _bind(self, caches: Sequence[CacheLayer]) -> None:
        """Let the operations work on these caches."""
        if caches and self._bound() is caches[0].keys:
            return
        shapes = {(x.kv_heads, x.head_width, x.capacity) for x in caches}
        fitting = {shape[:2] for shape in shapes} == {self._cache_shape} and len(shapes) == 1
        if len(caches) != self._layers or not fitting:
            raise ValueError("the caches are not those of the recorded layers")
        for row, column, (layer, field) in self._cached:
            value = getattr(caches[layer], field)
            self._rows[row, column] = value if isinstance(value, int) else address(value)
        self._bound = weakref.ref(caches[0].keys)  # a closed session's memory must go
