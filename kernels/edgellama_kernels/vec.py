"""A small vocabulary of vectors for numba, each word one operation whose bits IEEE 754 fixes.

Numbers are read and written by address: an integer from NumPy and an index in elements. Nothing
is checked here; who calls has checked the shapes. Arithmetic is written with ``+ - * /``.

Most words mean the same LLVM instruction everywhere; ``lowering`` says what the others do.
"""
# numba's decorators are untyped, and it counts a word's arguments: they have to be there.
# mypy: disable-error-code="no-untyped-call, misc"
# ruff: noqa: ARG005

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types

from edgellama_kernels.lowering import (
    FLOAT,
    FLOAT_X8,
    HALF_X8,
    I8,
    I16,
    I16_X8,
    I32,
    I32_X8,
    I64,
    F32x8,
    I32x8,
    Lowering,
    Value,
    call,
    constant,
    define_operator,
    loaded,
    loader,
    part,
    pointer_to,
    splatted,
    storer,
    word,
)

if TYPE_CHECKING:
    from collections.abc import Callable

define_operator(operator.add, F32x8, lambda b, x, y: b.fadd(x, y))
define_operator(operator.sub, F32x8, lambda b, x, y: b.fsub(x, y))
define_operator(operator.mul, F32x8, lambda b, x, y: b.fmul(x, y))
define_operator(operator.truediv, F32x8, lambda b, x, y: b.fdiv(x, y))
define_operator(operator.add, I32x8, lambda b, x, y: b.add(x, y))

# ---- memory

load_f32 = loader(types.float32, FLOAT, FLOAT)
"""One float32."""
load_f32x8 = loader(F32x8, FLOAT, FLOAT_X8)
"""Eight neighbouring float32."""
load_u8 = loader(types.uint8, I8, I8)
"""One byte, 0..255."""
load_u16 = loader(types.uint16, I16, I16)
"""One uint16, which may be the bits of an fp16."""
load_i32x8 = loader(I32x8, I32, I32_X8)
"""Eight neighbouring int32."""
load_i64 = loader(types.int64, I64, I64)
"""One int64."""
load_index = word(
    types.intp,
    (types.intp, types.intp),
    lambda to, address, index: to.builder.sext(loaded(to.builder, address, index, I32, I32), I64),
)
"""One int32, wide enough to count with."""
store_f32 = storer(types.float32, FLOAT, FLOAT)
"""Write one float32."""
store_f32x8 = storer(F32x8, FLOAT, FLOAT_X8)
"""Write eight neighbouring float32."""
store_i32 = storer(types.int32, I32, I32)
"""Write one int32."""
store_i32x8 = storer(I32x8, I32, I32_X8)
"""Write eight neighbouring int32."""
store_u8 = storer(types.uint8, I8, I8)
"""Write one byte."""
store_u16 = storer(types.uint16, I16, I16)
"""Write one uint16."""


def _prefetch(to: Lowering, address: Value, index: Value) -> None:
    b = to.builder
    pointer = b.inttoptr(b.add(address, index), I8.as_pointer())  # past the end is harmless
    name = "llvm.prefetch.p0" if getattr(pointer.type, "is_opaque", True) else "llvm.prefetch.p0i8"
    flags = (ir.Constant(I32, flag) for flag in (0, 3, 1))  # read, keep in every cache, data
    call(b, name, ir.VoidType(), pointer, *flags)


prefetch = word(types.void, (types.intp, types.intp), _prefetch)
"""Ask for the cache line with this byte; no memory that is not there does harm."""

broadcast_f32 = word(
    F32x8,
    (types.intp, types.intp),
    lambda to, address, index: splatted(
        to.builder, loaded(to.builder, address, index, FLOAT, FLOAT)
    ),
)
"""One float32 of memory in all lanes."""
broadcast_i32 = word(
    I32x8,
    (types.intp, types.intp),
    lambda to, address, index: splatted(to.builder, loaded(to.builder, address, index, I32, I32)),
)
"""One int32 of memory in all lanes."""

# ---- lanes

zeros_f32x8 = word(F32x8, (), lambda to: constant(FLOAT_X8, 0.0))
"""+0 in all lanes."""
zeros_i32x8 = word(I32x8, (), lambda to: constant(I32_X8, 0))
"""0 in all lanes."""
splat_f32 = word(F32x8, (types.float32,), lambda to, x: splatted(to.builder, x))
"""A number in all lanes."""
splat_i32 = word(I32x8, (types.int32,), lambda to, x: splatted(to.builder, x))
"""An integer in all lanes."""
lane_f32 = word(
    types.float32, (F32x8, types.intp), lambda to, v, i: to.builder.extract_element(v, i)
)
"""One lane, 0..7."""
lane_i32 = word(types.int32, (I32x8, types.intp), lambda to, v, i: to.builder.extract_element(v, i))
"""One lane, 0..7."""
with_lane_f32 = word(
    F32x8,
    (F32x8, types.intp, types.float32),
    lambda to, v, i, x: to.builder.insert_element(v, x, i),
)
"""The vector with another number in one lane."""


def _tree(b: Any, v: Value, join: Callable[[Value, Value], Value]) -> Value:
    for half in (4, 2, 1):
        v = join(part(b, v, 0, half), part(b, v, half, half))
    return b.extract_element(v, ir.Constant(I32, 0))


def _larger(b: Any, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _smaller(b: Any, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def _tree_max(to: Lowering, v: Value) -> Value:
    return _tree(to.builder, v, functools.partial(_larger, to.builder))


def _tree_integer_max(to: Lowering, v: Value) -> Value:
    b = to.builder
    return _tree(b, v, lambda x, y: b.select(b.icmp_signed(">", x, y), x, y))


tree_sum = word(types.float32, (F32x8,), lambda to, v: _tree(to.builder, v, to.builder.fadd))
"""The lanes' sum by rule 0's tree."""
tree_max = word(types.float32, (F32x8,), _tree_max)
"""The greatest lane; of zeros of unlike sign the one of the upper half."""
sum_i32 = word(types.int32, (I32x8,), lambda to, v: _tree(to.builder, v, to.builder.add))
"""The lanes' sum, modulo 2^32."""
max_i32 = word(types.int32, (I32x8,), _tree_integer_max)
"""The greatest lane."""

# ---- arithmetic beyond the operators

larger = word(F32x8, (F32x8, F32x8), lambda to, x, y: _larger(to.builder, x, y))
"""``x`` where it is greater, else ``y``: of equals the second."""
smaller = word(F32x8, (F32x8, F32x8), lambda to, x, y: _smaller(to.builder, x, y))
"""``x`` where it is less, else ``y``: of equals the second."""
larger_i32 = word(
    I32x8,
    (I32x8, I32x8),
    lambda to, x, y: to.builder.select(to.builder.icmp_signed(">", x, y), x, y),
)
"""The greater of each two lanes."""
square_root = word(F32x8, (F32x8,), lambda to, x: call(to.builder, "llvm.sqrt.v8f32", FLOAT_X8, x))
"""Each lane's square root, rounded once."""
float_from_i32 = word(F32x8, (I32x8,), lambda to, x: to.builder.sitofp(x, FLOAT_X8))
"""The nearest float32, half to even."""
i32_from_float = word(I32x8, (F32x8,), lambda to, x: to.builder.fptosi(x, I32_X8))
"""Without the fraction; for magnitudes below 2^31."""
magnitude_bits = word(
    I32x8,
    (F32x8,),
    lambda to, x: to.builder.and_(to.builder.bitcast(x, I32_X8), constant(I32_X8, 0x7FFFFFFF)),
)
"""The bits without the sign: they compare as the magnitudes do."""
power_of_two = word(
    F32x8,
    (I32x8,),
    lambda to, k: to.builder.bitcast(
        to.builder.shl(to.builder.add(k, constant(I32_X8, 127)), constant(I32_X8, 23)), FLOAT_X8
    ),
)
"""2^k for -126..127, the exponents of normal float32."""
bits_f32 = word(types.float32, (types.int32,), lambda to, x: to.builder.bitcast(x, FLOAT))
"""The float32 of these bits."""


def _nearest(to: Lowering, x: Value) -> Value:
    if to.rounds:
        return call(to.builder, "llvm.nearbyint.v8f32", FLOAT_X8, x)
    shift = constant(FLOAT_X8, 1.5 * 2.0**23)  # the sum's last bit is worth 1
    return to.builder.fsub(to.builder.fadd(x, shift), shift)


nearest = word(F32x8, (F32x8,), _nearest)
"""Round to an integral value, half to even, for magnitudes below 2^22; a zero may lose its sign."""


def _multiply_add_exact(to: Lowering, x: Value, y: Value, z: Value) -> Value:
    if to.fused:
        return call(to.builder, "llvm.fma.v8f32", FLOAT_X8, x, y, z)
    return to.builder.fadd(z, to.builder.fmul(x, y))


multiply_add_exact = word(F32x8, (F32x8, F32x8, F32x8), _multiply_add_exact)
"""``z + x * y`` for products that are exact in float32, so that fusing changes no bit (rule 7)."""


def _rounded_13_bits(to: Lowering, x: Value) -> Value:
    b = to.builder
    bits = b.bitcast(x, I32_X8)
    odd = b.and_(b.lshr(bits, constant(I32_X8, 11)), constant(I32_X8, 1))
    up = b.add(b.add(bits, constant(I32_X8, 0x3FF)), odd)
    rounded = b.and_(up, constant(I32_X8, ~0x7FF))
    magnitude = b.and_(bits, constant(I32_X8, 0x7FFFFFFF))
    tiny = b.icmp_signed("<", magnitude, constant(I32_X8, 63 << 23))
    return b.bitcast(b.select(tiny, constant(I32_X8, 0), rounded), FLOAT_X8)


rounded_13_bits = word(F32x8, (F32x8,), _rounded_13_bits)
"""Rule 7's r13: 13 significant bits, half to even, and +0 below 2^-64."""

# ---- fp16 and bfloat16


def _from_half(to: Lowering, address: Value, index: Value) -> Value:
    b = to.builder
    if to.halves:
        return b.fpext(loaded(b, address, index, I16, HALF_X8), FLOAT_X8)
    bits = b.zext(loaded(b, address, index, I16, I16_X8), I32_X8)
    magnitude = b.shl(b.and_(bits, constant(I32_X8, 0x7FFF)), constant(I32_X8, 13))
    scaled = b.fmul(b.bitcast(magnitude, FLOAT_X8), constant(FLOAT_X8, 2.0**112))  # exact
    not_finite = b.icmp_signed(">=", magnitude, constant(I32_X8, 0x7C00 << 13))
    kept = b.or_(magnitude, constant(I32_X8, 0x7F800000))
    number = b.select(not_finite, kept, b.bitcast(scaled, I32_X8))
    sign = b.shl(b.and_(bits, constant(I32_X8, 0x8000)), constant(I32_X8, 16))
    return b.bitcast(b.or_(number, sign), FLOAT_X8)


def _half_bits(to: Lowering, x: Value) -> Value:
    """Round to fp16, nearest even, as <8 x i16>; finite numbers only."""
    b = to.builder
    if to.halves:
        return b.bitcast(b.fptrunc(x, HALF_X8), I16_X8)
    bits = b.bitcast(x, I32_X8)
    sign = b.and_(b.lshr(bits, constant(I32_X8, 16)), constant(I32_X8, 0x8000))
    magnitude = b.and_(bits, constant(I32_X8, 0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, constant(I32_X8, 13)), constant(I32_X8, 1))
    rebased = b.sub(magnitude, constant(I32_X8, 112 << 23))
    normal = b.lshr(b.add(b.add(rebased, constant(I32_X8, 0xFFF)), odd), constant(I32_X8, 13))
    half = constant(FLOAT_X8, 0.5)  # its last bit is worth 2^-24, fp16's smallest step
    summed = b.fadd(b.bitcast(magnitude, FLOAT_X8), half)
    subnormal = b.sub(b.bitcast(summed, I32_X8), b.bitcast(half, I32_X8))
    small = b.icmp_signed("<", magnitude, constant(I32_X8, 113 << 23))
    infinite = b.icmp_signed(">=", magnitude, constant(I32_X8, 0x477FF000))
    number = b.select(small, subnormal, normal)
    number = b.select(infinite, constant(I32_X8, 0x7C00), number)
    return b.trunc(b.or_(number, sign), I16_X8)


def _store_half(to: Lowering, address: Value, index: Value, x: Value) -> None:
    pointer = pointer_to(to.builder, address, index, I16, I16_X8)
    to.builder.store(_half_bits(to, x), pointer, align=1)


def _lane_half(to: Lowering, x: Value, lane: Value) -> Value:
    return to.builder.extract_element(_half_bits(to, x), lane)


def _from_bfloat(to: Lowering, address: Value, index: Value) -> Value:
    b = to.builder
    bits = b.zext(loaded(b, address, index, I16, I16_X8), I32_X8)
    return b.bitcast(b.shl(bits, constant(I32_X8, 16)), FLOAT_X8)


load_half_x8 = word(F32x8, (types.intp, types.intp), _from_half)
"""Eight fp16 as float32, exact."""
load_bfloat_x8 = word(F32x8, (types.intp, types.intp), _from_bfloat)
"""Eight bfloat16 as float32, exact."""
store_half_x8 = word(types.void, (types.intp, types.intp, F32x8), _store_half)
"""Write eight finite numbers rounded to fp16, half to even."""
lane_half = word(types.uint16, (F32x8, types.intp), _lane_half)
"""One lane, finite, rounded to the bits of an fp16."""


def _store_narrow(to: Lowering, address: Value, index: Value, x: Value) -> None:
    eight = ir.VectorType(I8, 8)
    pointer = pointer_to(to.builder, address, index, I8, eight)
    to.builder.store(to.builder.trunc(x, eight), pointer, align=1)


store_i32x8_as_i8 = word(types.void, (types.intp, types.intp, I32x8), _store_narrow)
"""Write each lane's lowest byte."""
