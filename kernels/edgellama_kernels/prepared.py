"""Programs: recorded operations, placed in memory, and run in one call for each thread."""

from __future__ import annotations

import operator
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels import operations
from edgellama_kernels.arena import ALIGNMENT_BYTES, Arena, CacheOperand, Storage
from edgellama_kernels.interface import (
    CacheKind,
    CacheLayer,
    Float32,
    HiddenRows,
    NonFinite,
)
from edgellama_kernels.pace import Pace
from edgellama_kernels.team import Table, Team, TeamStalled, address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellama_kernels.operations import Operation


class Program:
    """Recorded operations, placed and ready to run for up to ``tokens_max`` tokens at a time."""

    def __init__(
        self,
        team: Team,
        recorded: Sequence[Operation],
        arena: Arena,
        cache_shape: tuple[CacheKind, int, int],
    ) -> None:
        self.tokens_max = arena.tokens_max
        self._team, self._arena, self._cache_shape = team, arena, cache_shape
        self._rows = np.zeros((len(recorded), operations.COLUMNS), np.int64)
        self._scratch = operations.SUMS_NUMBERS
        self._placed: list[tuple[int, int, int]] = []  # row, column, offset
        self._cached: list[tuple[int, int, CacheOperand]] = []
        for row, operation in enumerate(recorded):
            units = operation.units, operation.units_per_token
            self._scratch = max(self._scratch, operation.scratch)
            self._rows[row, : operations.OPERANDS] = operation.code, arena.meets[row], *units
            for column, operand in enumerate(operation.operands, operations.OPERANDS):
                if isinstance(operand, Storage):
                    self._placed.append((row, column, arena.offsets[operand]))
                elif isinstance(operand, CacheOperand):
                    self._cached.append((row, column, operand))
                else:
                    self._rows[row, column] = operand
        self._layers = 1 + max(operand.layer for _, _, operand in self._cached)
        self._bound: tuple[weakref.ref[NDArray[Any]], ...] = ()
        self._pace = Pace(team.threads) if team.adapts else None
        self._renew_memory()

    @property
    def memory_bytes(self) -> int:
        """What the arrays between the operations take."""
        return self._arena.size_bytes

    def run(
        self,
        hidden: HiddenRows,
        turns: Sequence[Float32],
        caches: Sequence[CacheLayer],
        position: int,
    ) -> HiddenRows:
        """Return the hidden rows that the program makes of T tokens from ``position`` on.

        ``turns``: float32 [T, 2, head_width // 2] each; ``caches``: one for each layer, all alike.
        Raises NonFinite; what the caches held before ``position`` is then still there.
        """
        tokens = len(hidden.exponents)
        if not 1 <= tokens <= self.tokens_max:
            raise ValueError(f"a program runs 1 to {self.tokens_max} tokens, not {tokens}")
        self._bind(caches)
        if not 0 <= position <= position + tokens <= caches[0].capacity:
            raise ValueError(f"the caches do not hold {position + tokens} positions")
        arrays: tuple[NDArray[Any], ...] = (*hidden, *turns)
        try:
            status = self._attempt(arrays, caches, tokens, position)
        except TeamStalled:  # a late thread may still use the old table and memory
            self._renew_memory()
            status = self._attempt(arrays, caches, tokens, position)
        if status:
            raise NonFinite(operations.REFUSALS[status])
        *_, halves, exponents = self._views(tokens)
        return HiddenRows(halves.copy(), exponents.copy())

    def _attempt(
        self,
        arrays: Sequence[NDArray[Any]],
        caches: Sequence[CacheLayer],
        tokens: int,
        position: int,
    ) -> int:
        if len(arrays) != len(self._arena.given):
            raise ValueError("the input of a program does not fit")
        for view, array in zip(self._views(tokens), arrays, strict=False):
            if array.shape != view.shape or array.dtype != view.dtype:
                raise ValueError("the input of a program does not fit")
            view[:] = array
        attending = operations.attention_scratch(position + tokens, self._cache_shape[2])
        scratch = max(attending, self._scratch)
        team, pace, memory = self._team, self._pace, (self._memory, caches)
        if tokens > 1:  # parts are long, so taking them one by one costs nothing
            return team.run(self._table, memory, tokens, position, scratch, team.threads, True)
        threads = team.threads if pace is None else pace.next_threads()
        started_s = time.perf_counter()
        claims = not team.equal_cores
        status = team.run(self._table, memory, tokens, position, scratch, threads, claims)
        if pace is not None:
            pace.learn(threads, time.perf_counter() - started_s)
        return status

    def _views(self, tokens: int) -> tuple[NDArray[Any], ...]:
        """Return the input's arrays, halves, exponents and all turns, then the output's two."""
        if tokens not in self._views_by_tokens:
            self._views_by_tokens[tokens] = tuple(
                self._view(storage, tokens) for storage in (*self._arena.given, *self._arena.result)
            )
        return self._views_by_tokens[tokens]

    def _view(self, storage: Storage, tokens: int) -> NDArray[Any]:
        start, size = self._arena.offsets[storage], storage.token_bytes
        data = self._memory[start : start + tokens * size]
        if storage in self._arena.given[2:]:
            return data.view(np.float32).reshape(tokens, 2, -1)
        return data if size == 1 else data.view(np.uint16).reshape(tokens, -1)

    def _renew_memory(self) -> None:
        """Take new memory for everything that a run writes to, and a new table over it."""
        self._views_by_tokens: dict[int, tuple[NDArray[Any], ...]] = {}
        self._rows = self._rows.copy()
        room = np.zeros(self._arena.size_bytes + ALIGNMENT_BYTES, np.uint8)
        self._memory = room[-address(room) % ALIGNMENT_BYTES :]
        start = address(self._memory)
        for row, column, offset in self._placed:
            self._rows[row, column] = start + offset
        self._table = Table(self._rows)

    def _bind(self, caches: Sequence[CacheLayer]) -> None:
        """Let the operations work on these caches."""
        bound = [reference() for reference in self._bound]
        if len(caches) == len(bound) and all(map(operator.is_, bound, (x.keys for x in caches))):
            return
        shapes = {(x.kind, x.kv_heads, x.head_width, x.capacity) for x in caches}
        fitting = {shape[:3] for shape in shapes} == {self._cache_shape} and len(shapes) == 1
        if len(caches) != self._layers or not fitting:
            raise ValueError("the caches are not those of the recorded layers")
        for row, column, (layer, field) in self._cached:
            value = getattr(caches[layer], field)
            self._rows[row, column] = value if isinstance(value, int) else address(value)
        # Weakly: a closed session's memory must go.
        self._bound = tuple(weakref.ref(cache.keys) for cache in caches)
