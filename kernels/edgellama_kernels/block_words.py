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

from edgellama_kernels.lowering import (
    BLOCK,
    BYTES_32,
    I8,
    I16_X16,
    I32,
    I32_X8,
    Block,
    I32x8,
    Lowering,
    Value,
    call,
    constant,
    loaded,
    splatted,
    word,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


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


def _signed_low(b: Any, v: Value) -> Value:
    half = constant(v.type, v.type.element.width // 2)
    return b.ashr(b.shl(v, half), half)


def _signed_high(b: Any, v: Value) -> Value:
    return b.ashr(v, constant(v.type, v.type.element.width // 2))


def _pair_products(to: Lowering, weights: Value, x: Value, signed: bool) -> Value:
    """Return sums of two neighbouring products of bytes, <16 x i16>; |x| is at most 127."""
    b = to.builder
    if "avx2" not in to.features:
        weights, x = b.bitcast(weights, I16_X16), b.bitcast(x, I16_X16)
        low = b.mul(_signed_low(b, weights), _signed_low(b, x))
        return b.add(low, b.mul(_signed_high(b, weights), _signed_high(b, x)))
    if signed:  # the instruction wants its first factors unsigned: move their signs to x
        x = call(b, "llvm.x86.avx2.psign.b", BYTES_32, x, weights)
        negative = b.icmp_signed("<", weights, constant(BYTES_32, 0))
        weights = b.select(negative, b.neg(weights), weights)
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", I16_X16, weights, x)


def _pair_sums(to: Lowering, v: Value) -> Value:
    """Return sums of two neighbouring 16-bit numbers, <8 x i32>."""
    b = to.builder
    if "avx2" in to.features:
        return call(b, "llvm.x86.avx2.pmadd.wd", I32_X8, v, constant(I16_X16, 1))
    v = b.bitcast(v, I32_X8)
    return b.add(_signed_low(b, v), _signed_high(b, v))


def _sum_of(b: Any, values: Sequence[Value]) -> Value:
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [b.add(x, y) for x, y in pairs]
    return values[0]


def _products(to: Lowering, block: Value, x: Value, index: Value, signed: bool) -> list[Value]:
    b, products = to.builder, []
    for vector in range(8):
        four = b.add(index, ir.Constant(index.type, 4 * vector))
        activations = b.bitcast(splatted(b, loaded(b, x, four, I8, I32)), BYTES_32)
        weights = b.extract_value(block, vector)
        products.append(_pair_products(to, weights, activations, signed))
    return products


def _dot_nibbles(to: Lowering, block: Value, x: Value, index: Value, start: Value) -> Value:
    b = to.builder  # eight sums of two products fit 16 bits: 16 * 15 * 127 = 30480
    sums = _sum_of(b, _products(to, block, x, index, signed=False))
    return b.add(_pair_sums(to, sums), start)


def _dot_bytes(to: Lowering, block: Value, x: Value, index: Value) -> Value:
    sums = [_pair_sums(to, pair) for pair in _products(to, block, x, index, signed=True)]
    return _sum_of(to.builder, sums)


load_nibbles = word(Block, (types.intp, types.intp), _load_nibbles)
load_block = word(Block, (types.intp, types.intp), _load_block)
dot_nibbles = word(I32x8, (Block, types.intp, types.intp, I32x8), _dot_nibbles)
"""``start`` plus the dot products of eight rows of nibbles 0..15 with 32 int8 at x + index."""
dot_bytes = word(I32x8, (Block, types.intp, types.intp), _dot_bytes)
"""The dot products of eight rows of int8 with 32 int8 at x + index."""
