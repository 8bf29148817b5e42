"""Words for blocks of quantised weights: all of these integers are exact, however computed.

A block is 32 weights of each of eight rows: eight vectors of 32 bytes, byte ``4r + i`` of vector
``p`` being the weight of row ``r`` in column ``4p + i``.
"""
# numba's decorators are untyped, and it counts a word's arguments: they have to be there.
# mypy: disable-error-code="no-untyped-call, misc"

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types

from edgellama_kernels.byte_dots import Range, dots, signed_start
from edgellama_kernels.layout import BYTE_VECTORS, PLANE_BITS
from edgellama_kernels.lowering import (
    BLOCK,
    BYTES_32,
    I8,
    I16,
    I32,
    I32_X8,
    Block,
    I32x8,
    Lowering,
    Value,
    constant,
    define_operator,
    loaded,
    splatted,
    word,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

THREES = Range(7, signed=False)
NIBBLES = Range(15, signed=False)
FIVES = Range(31, signed=False)
SIXES = Range(63, signed=False)
BYTES = Range(128, signed=True)

define_operator(operator.sub, I32x8, lambda b, x, y: b.sub(x, y))
define_operator(operator.mul, I32x8, lambda b, x, y: b.mul(x, y))

# ---- quants: each plane's bits are brought to where they stand in the quant


def _load_bytes(b: Any, address: Value, index: Value, vectors: int) -> list[Value]:
    at = [b.add(index, ir.Constant(index.type, 32 * vector)) for vector in range(vectors)]
    return [loaded(b, address, offset, I8, BYTES_32) for offset in at]


def _block(b: Any, vectors: Sequence[Value]) -> Value:
    block = ir.Constant(BLOCK, ir.Undefined)
    for position, vector in enumerate(vectors):
        block = b.insert_value(block, vector, position)
    return block


def _bits(b: Any, v: Value, source: int, target: int, width: int) -> Value:
    """Move ``width`` bits of every byte from bit ``source`` to bit ``target``, the others off."""
    if width == I8.width:
        return v
    if source > target:
        v = b.lshr(v, constant(BYTES_32, source - target))
    elif source < target:
        v = b.shl(v, constant(BYTES_32, target - source))
    return b.and_(v, constant(BYTES_32, ((1 << width) - 1) << target))


def _load_quants(to: Lowering, bits: int, address: Value, index: Value) -> Value:
    b = to.builder
    stored = _load_bytes(b, address, index, bits)
    block = []
    for vector in range(BYTE_VECTORS):
        pieces, first = [], 0
        for width in PLANE_BITS[bits]:
            n, u = divmod(vector, width)
            pieces.append(_bits(b, stored[first + u], width * n, first, width))
            first += width
        block.append(functools.reduce(b.or_, pieces))
    return _block(b, block)


def _quants(bits: int) -> Any:
    return word(
        Block,
        (types.intp, types.intp),
        lambda to, address, index: _load_quants(to, bits, address, index),
    )


load_twos, load_threes, load_nibbles, load_fives, load_sixes, load_block = map(_quants, PLANE_BITS)
"""A block's 32 quants of each of eight rows, one byte each, from planes of 2 to 8 bits."""

# ---- dot products with 32 int8 at x + index


def _activations(b: Any, x: Value, index: Value) -> list[Value]:
    """Return 32 int8, each four of them in every lane of a vector."""
    fours = [b.add(index, ir.Constant(index.type, 4 * vector)) for vector in range(BYTE_VECTORS)]
    return [b.bitcast(splatted(b, loaded(b, x, four, I8, I32)), BYTES_32) for four in fours]


def _dot(to: Lowering, block: Value, x: Value, index: Value, bounds: Range, start: Value) -> Value:
    b = to.builder
    weights = [b.extract_value(block, vector) for vector in range(BYTE_VECTORS)]
    return dots(to, weights, _activations(b, x, index), bounds, start)


def _dots_of(bounds: Range) -> Any:
    return word(
        I32x8,
        (Block, types.intp, types.intp, I32x8),
        lambda to, block, x, index, start: _dot(to, block, x, index, bounds, start),
    )


def _dot_quads(
    to: Lowering, quads: tuple[Value, Value], x: tuple[Value, Value], start: Value
) -> Value:
    b = to.builder
    activations = b.bitcast(splatted(b, loaded(b, *x, I8, I32)), BYTES_32)
    return dots(to, [loaded(b, *quads, I8, BYTES_32)], [activations], BYTES, start)


def _scaled_dots_of(bounds: Range) -> Any:
    def build(
        to: Lowering, block: Value, x: Value, index: Value, first: Value, second: Value
    ) -> Value:
        b, zero, half = to.builder, constant(I32_X8, 0), BYTE_VECTORS // 2
        weights = [b.extract_value(block, vector) for vector in range(BYTE_VECTORS)]
        activations = _activations(b, x, index)
        one = dots(to, weights[:half], activations[:half], bounds, zero)
        other = dots(to, weights[half:], activations[half:], bounds, zero)
        return b.add(b.mul(one, first), b.mul(other, second))

    return word(I32x8, (Block, types.intp, types.intp, I32x8, I32x8), build)


dot_nibbles, dot_fives = _dots_of(NIBBLES), _dots_of(FIVES)
"""The last argument plus the dot products of eight rows of quants 0..15, or 0..31."""
dot_bytes = _dots_of(BYTES)
"""The last argument plus the dot products of eight rows of int8."""
bytes_start = word(I32x8, (I32x8,), signed_start)
"""Where sums of products of int8 start, for the sum of all activations that they will meet."""
dot_quads = word(
    I32x8,
    (types.intp, types.intp, types.intp, types.intp, I32x8),
    lambda to, quads, at, x, index, start: _dot_quads(to, (quads, at), (x, index), start),
)
"""The last argument plus the dot products of eight rows of four int8 each, 32 bytes."""
dot_scaled_threes, dot_scaled_sixes = _scaled_dots_of(THREES), _scaled_dots_of(SIXES)
"""The dot products of quants 0..7, or 0..63; the last arguments multiply either half's sums."""

# ---- what quants are multiplied with beside the activations


def _load_factors(to: Lowering, address: Value, index: Value, signed: bool) -> Value:
    b = to.builder
    stored = loaded(b, address, index, I8, ir.VectorType(I8, 8))
    return b.sext(stored, I32_X8) if signed else b.zext(stored, I32_X8)


load_u8x8 = word(
    I32x8, (types.intp, types.intp), lambda to, a, i: _load_factors(to, a, i, signed=False)
)
"""Eight factors 0..255."""
load_i8x8 = word(
    I32x8, (types.intp, types.intp), lambda to, a, i: _load_factors(to, a, i, signed=True)
)
"""Eight factors -128..127."""
low_nibbles = word(I32x8, (I32x8,), lambda to, v: to.builder.and_(v, constant(I32_X8, 15)))
"""The lower four bits of factors 0..255."""
high_nibbles = word(I32x8, (I32x8,), lambda to, v: to.builder.lshr(v, constant(I32_X8, 4)))
"""The upper four bits of factors 0..255."""


def _sum(to: Lowering, sums: Value, index: Value, place: int) -> Value:
    b = to.builder
    at = b.add(b.shl(index, ir.Constant(index.type, 1)), ir.Constant(index.type, place))
    return splatted(b, b.sext(loaded(b, sums, at, I16, I16), I32))


first_sum = word(I32x8, (types.intp, types.intp), lambda to, sums, i: _sum(to, sums, i, 0))
"""The sum of the first 16 activations of a block."""
whole_sum = word(I32x8, (types.intp, types.intp), lambda to, sums, i: _sum(to, sums, i, 1))
"""The sum of all 32."""
