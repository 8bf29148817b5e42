"""Words for blocks of quantised weights: all of these integers are exact, however computed.

A block is 32 weights of each of eight rows: eight vectors of 32 bytes, byte ``4r + i`` of vector
``p`` being the weight of row ``r`` in column ``4p + i``.
"""
# numba's decorators are untyped, and it counts a word's arguments: they have to be there.
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types

from edgellama_kernels.byte_dots import Range, dots
from edgellama_kernels.lowering import (
    BLOCK,
    BYTES_32,
    I8,
    I32,
    I32_X8,
    Block,
    I32x8,
    Lowering,
    Value,
    constant,
    loaded,
    splatted,
    word,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

NIBBLES = Range(15, signed=False)
BYTES = Range(128, signed=True)


def _load_bytes(b: Any, address: Value, index: Value, vectors: int) -> list[Value]:
    at = [b.add(index, ir.Constant(index.type, 32 * vector)) for vector in range(vectors)]
    return [loaded(b, address, offset, I8, BYTES_32) for offset in at]


def _block(b: Any, vectors: Sequence[Value]) -> Value:
    block = ir.Constant(BLOCK, ir.Undefined)
    for position, vector in enumerate(vectors):
        block = b.insert_value(block, vector, position)
    return block


def _load_nibbles(to: Lowering, address: Value, index: Value) -> Value:
    b = to.builder
    stored = _load_bytes(b, address, index, 4)
    low = [b.and_(vector, constant(BYTES_32, 15)) for vector in stored]
    high = [b.lshr(vector, constant(BYTES_32, 4)) for vector in stored]
    return _block(b, low + high)


def _load_block(to: Lowering, address: Value, index: Value) -> Value:
    return _block(to.builder, _load_bytes(to.builder, address, index, 8))


def _activations(b: Any, x: Value, index: Value) -> list[Value]:
    """Return 32 int8, each four of them in every lane of a vector."""
    fours = [b.add(index, ir.Constant(index.type, 4 * vector)) for vector in range(8)]
    return [b.bitcast(splatted(b, loaded(b, x, four, I8, I32)), BYTES_32) for four in fours]


def _dot(to: Lowering, block: Value, x: Value, index: Value, bounds: Range, start: Value) -> Value:
    b = to.builder
    weights = [b.extract_value(block, vector) for vector in range(8)]
    return dots(to, weights, _activations(b, x, index), bounds, start)


def _dot_nibbles(to: Lowering, block: Value, x: Value, index: Value, start: Value) -> Value:
    return _dot(to, block, x, index, NIBBLES, start)


def _dot_bytes(to: Lowering, block: Value, x: Value, index: Value) -> Value:
    return _dot(to, block, x, index, BYTES, constant(I32_X8, 0))


load_nibbles = word(Block, (types.intp, types.intp), _load_nibbles)
load_block = word(Block, (types.intp, types.intp), _load_block)
dot_nibbles = word(I32x8, (Block, types.intp, types.intp, I32x8), _dot_nibbles)
"""``start`` plus the dot products of eight rows of nibbles 0..15 with 32 int8 at x + index."""
dot_bytes = word(I32x8, (Block, types.intp, types.intp), _dot_bytes)
"""The dot products of eight rows of int8 with 32 int8 at x + index."""
