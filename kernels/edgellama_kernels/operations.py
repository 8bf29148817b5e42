"""Operations on addresses: what the verbs become, one by one or as a program of many.

An operation is a row of numbers in a table that compiled code runs (``program``). Where an
address belongs stands an array, or what a recording will place later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from edgellama_kernels.interface import TILE_POSITIONS
from edgellama_kernels.kinds import BLOCK_COLUMNS, KIND_CODES
from edgellama_kernels.layout import GROUP_ROWS

if TYPE_CHECKING:
    from edgellama_kernels.expert_layout import PackedExperts
    from edgellama_kernels.layout import PackedMatrix

Operand = Any  # an array, what a recording places later, a size, a number's bits, or an address

EXPAND, NORM, QUANTIZE, MULTIPLY, ROPE, STORE, ROUND, ATTEND, SILU, SHRINK = range(1, 11)
ADD, ROUTE, EXPERTS, MIX, GELU = range(11, 16)

REFUSALS: Final = {
    EXPAND: "a hidden row holds infinity or NaN",
    NORM: "a norm met infinity, NaN or a sum of squares without a root",
    QUANTIZE: "the input of a matmul is infinite or NaN",
    STORE: "a key or value is too large for the cache, infinite or NaN",
    ROUND: "a query is too large, infinite or NaN",
    ROUTE: "the router of a mixture of experts met infinity or NaN",
    SHRINK: "the hidden state became infinite or NaN",
}
"""Why an operation that may refuse its numbers did."""

WRITES: Final = {
    EXPAND: (2,),
    NORM: (2,),
    QUANTIZE: (1, 2, 3),
    MULTIPLY: (10,),
    ROPE: (0,),
    STORE: (2, 3, 4),
    ROUND: (1, 2),
    ATTEND: (5,),
    SILU: (2,),
    GELU: (2,),
    SHRINK: (1, 2),
    ADD: (2,),
    ROUTE: (1, 2, 3),
    EXPERTS: (14,),
    MIX: (3,),
}
"""Which operands an operation writes to; all others that lie in memory it reads."""

TOKENS_TILE = 512  # of a matmul: the sums of eight rows (16 KiB) stay in the first-level cache
SUMS_NUMBERS = GROUP_ROWS * TOKENS_TILE  # of a thread's scratch: these sums
ROWS_AT_ONCE = 4  # of queries that attention works on
MIXED_AT_ONCE = 32  # dimensions of values
PAIRS_TILE = 32  # tokens of one expert, worked on together
PREFETCH_BYTES = 4096  # ahead of the quants being read: the best of 512 to 12288 when measured
SEES_ALL = 1 << 40  # a window beyond any context
PIECE_NUMBERS = 32  # of a row of SiLU or a sum: so few that threads can share a single row


CODE, MEETS, UNITS, UNITS_PER_TOKEN, OPERANDS = range(5)
COLUMNS = 24  # int64 of the table for each operation, as the line above begins them
STALLED = -1  # a run's status when a thread did not come
SYNC_NUMBERS = 32  # int64 that threads meet in


def attention_scratch(positions: int, width: int) -> int:
    """Return how many float32 a thread needs beside it to attend to so many positions."""
    tiles = positions // TILE_POSITIONS + 1
    return ROWS_AT_ONCE * (tiles * TILE_POSITIONS + width + MIXED_AT_ONCE)


def expert_scratch(columns: int, rows: int) -> int:
    """Return the float32 that a thread needs for a tile of pairs: sums, what goes in and out."""
    return SUMS_NUMBERS + PAIRS_TILE * (columns + rows)


class Operation(NamedTuple):
    """A row of the table; T tokens give ``units + T * units_per_token`` units to be shared out.

    ``scratch``: the float32 of its own memory that a thread needs for it.
    """

    code: int
    operands: tuple[Operand, ...]
    units: int = 0
    units_per_token: int = 0
    scratch: int = 0


def matrix_operands(matrix: PackedMatrix) -> tuple[int, int, int, int, int]:
    """Return the first arguments of ``matmul.multiply``: what it has to know of a matrix."""
    kind = KIND_CODES[matrix.kind]
    return kind, matrix.address, matrix.scales_address, matrix.columns, matrix.rows


def expert_operands(experts: PackedExperts) -> tuple[int, int, int, int, int, int]:
    """Return the first arguments of ``multiply_experts``."""
    return *matrix_operands(experts.first), experts.bytes_each


def expand(halves: Operand, exponents: Operand, y: Operand, width: int) -> Operation:
    """Rule 8 backwards: hidden rows to float32 [T, width]."""
    return Operation(EXPAND, (halves, exponents, y, width), units_per_token=1)


def norm(
    x: Operand, weight: Operand, y: Operand, width: int, epsilon: float | np.float32, rows: int = 1
) -> Operation:
    """Rule 3 on float32 [T, rows, width]."""
    return Operation(NORM, (x, weight, y, width, _bits(epsilon)), units_per_token=rows)


def quantize(
    x: Operand, quants: Operand, scales: Operand, sums: Operand, columns: int, rows: int = 1
) -> Operation:
    """Rule 2 on float32 [T, rows, columns]."""
    operands = (x, quants, scales, sums, columns, rows)
    return Operation(QUANTIZE, operands, units_per_token=rows * columns // BLOCK_COLUMNS)


def multiply(
    matrix: tuple[int, int, int, int, int],
    x: Operand,
    blocks: tuple[Operand, Operand, Operand],
    residual: Operand,
    y: Operand,
    groups: int,
) -> Operation:
    """Rule 1; ``matrix`` is what ``matrix_operands`` returns, 0 stands for nothing."""
    return Operation(MULTIPLY, (*matrix, x, *blocks, residual, y), units=groups)


def route(
    logits: Operand, chosen: Operand, shares: Operand, order: Operand, experts: int, used: int
) -> Operation:
    """Rule 11's choice by float32 [T, experts]; writes ``used`` numbers of each for a token."""
    return Operation(ROUTE, (logits, chosen, shares, order, experts, used), 1, 0, experts + 1)


def multiply_experts(
    experts: tuple[int, int, int, int, int, int],
    x: Operand,
    blocks: tuple[Operand, Operand, Operand],
    slots: int,
    routing: tuple[Operand, Operand],
    used: int,
    y: Operand,
) -> Operation:
    """Rule 1 for each token's experts; y is float32 [T, used, rows].

    ``experts`` is what ``expert_operands`` returns, ``routing`` are ``chosen`` and ``order``.
    ``slots``: 1 where each expert has activations of its own, ``used`` where they are the token's.
    """
    *_, columns, rows, _ = experts
    return Operation(
        EXPERTS,
        (*experts, x, *blocks, slots, *routing, used, y),
        units=-(-rows // GROUP_ROWS),
        scratch=expert_scratch(columns, rows),
    )


def mix(
    outputs: Operand, shares: Operand, residual: Operand, y: Operand, width: int, used: int
) -> Operation:
    """Rule 11's sum over float32 [T, used, width]."""
    operands = (outputs, shares, residual, y, width, used)
    return Operation(MIX, operands, units_per_token=-(-width // PIECE_NUMBERS))


def rope(x: Operand, table: Operand, heads: int, width: int) -> Operation:
    """Rule 6 in place on float32 [T, heads, width]."""
    return Operation(ROPE, (x, table, heads, width), units_per_token=heads)


def store(
    keys: Operand,
    values: Operand,
    cache: tuple[Operand, Operand, Operand],
    kv_heads: int,
    width: int,
    capacity: Operand,
) -> Operation:
    """Write float32 [T, kv_heads, width] into a cache: its keys, values and scales, 0 for fp16."""
    return Operation(
        STORE, (keys, values, *cache, kv_heads, width, capacity), units_per_token=kv_heads
    )


def round_queries(
    queries: Operand,
    rounded: Operand,
    scales: Operand,
    heads: int,
    width: int,
    scale: np.float32,
) -> Operation:
    """Rule 7 (a) on float32 [T, heads, width]; with ``scales`` for an int8 cache, 0 for fp16."""
    return Operation(ROUND, (queries, rounded, scales, width, _bits(scale)), units_per_token=heads)


def attend(
    rounded: tuple[Operand, Operand],
    cache: tuple[Operand, Operand, Operand],
    y: Operand,
    heads: int,
    kv_heads: int,
    width: int,
    capacity: Operand,
    window: int,
) -> Operation:
    """Rule 7 for queries [T, heads, width] as ``round_queries`` made them.

    Each sees ``window`` positions, 0 stands for all. What a unit is depends on T.
    """
    window = window or SEES_ALL
    return Operation(ATTEND, (*rounded, *cache, y, heads, kv_heads, width, capacity, window))


def silu_multiply(gate: Operand, up: Operand, y: Operand, width: int) -> Operation:
    """Rule 5 on float32 [T, width]."""
    return Operation(SILU, (gate, up, y, width), units_per_token=-(-width // PIECE_NUMBERS))


def gelu_multiply(gate: Operand, up: Operand, y: Operand, width: int) -> Operation:
    """Rule 5's GELU on float32 [T, width]."""
    return silu_multiply(gate, up, y, width)._replace(code=GELU)


def add(x: Operand, summand: Operand, y: Operand, width: int, stride: int) -> Operation:
    """Add float32 [width] (``stride`` 0) or [T, width] (``stride`` the width) to [T, width]."""
    operands = (x, summand, y, width, stride)
    return Operation(ADD, operands, units_per_token=-(-width // PIECE_NUMBERS))


def shrink(x: Operand, halves: Operand, exponents: Operand, width: int) -> Operation:
    """Rule 8: float32 [T, width] to hidden rows."""
    return Operation(SHRINK, (x, halves, exponents, width), units_per_token=1)


def _bits(number: float | np.float32) -> int:
    """Return a float32 as the integer of its bits."""
    return int(np.float32(number).view(np.int32))
