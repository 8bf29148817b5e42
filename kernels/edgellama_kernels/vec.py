"""A small vocabulary of vectors for numba, each word one operation whose bits IEEE 754 fixes.

Numbers are read and written by address: an integer from NumPy and an index in elements. Nothing
is checked here; who calls has checked the shapes. Arithmetic is written with ``+ - * /``.

Most words mean the same LLVM instruction everywhere. A few have one text for any machine and
another for machines with fitting instructions; which one is taken is asked of the compiler's own
list of features, never of the CPU: LLVM aborts the process over an instruction that it was not
told of. Both give the same bits.
"""
# numba's decorators are untyped, and it counts a word's arguments: they have to be there.
# mypy: disable-error-code="no-untyped-call, misc"
# ruff: noqa: ARG005

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, register_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Value = Any  # an llvmlite value

_i8, _i16, _i32 = (ir.IntType(bits) for bits in (8, 16, 32))
_f32 = ir.FloatType()
_bytes32 = ir.VectorType(_i8, 32)
_i16x16 = ir.VectorType(_i16, 16)
_i32x8 = ir.VectorType(_i32, 8)
_f32x8 = ir.VectorType(_f32, 8)
_half8 = ir.VectorType(ir.HalfType(), 8)
_u16x8 = ir.VectorType(_i16, 8)

_LLVM_TYPES = {
    "f32x8": _f32x8,
    "i32x8": _i32x8,
    "block": ir.ArrayType(_bytes32, 8),  # 32 weights of each of 8 rows, one byte a weight
}


class Vector(types.Type):
    """A vector as a type of numba's."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)


class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _LLVM_TYPES[vector.name])


register_model(Vector)(_VectorModel)

F32x8, I32x8, Block = Vector("f32x8"), Vector("i32x8"), Vector("block")


class Lowering(NamedTuple):
    """Where an operation's instructions go, and what the target can do."""

    builder: Any
    features: frozenset[str]

    @property
    def fused(self) -> bool:
        """Whether a fused multiply-add is an instruction."""
        return bool({"fma", "aarch64"} & self.features)

    @property
    def halves(self) -> bool:
        """Whether conversions between fp16 and float32 are instructions."""
        return bool({"f16c", "aarch64"} & self.features)

    @property
    def rounds(self) -> bool:
        """Whether rounding to an integral value is an instruction."""
        return bool({"sse4.1", "aarch64"} & self.features)


@functools.cache
def target_features(magic: tuple[str, str, str]) -> frozenset[str]:
    """Return the architecture and the features that numba compiles for, from its own key."""
    triple, _, features = magic
    architecture = triple.split("-")[0].replace("arm64", "aarch64")
    enabled = {name[1:] for name in features.split(",") if name.startswith("+")}
    return frozenset(enabled | {architecture})


def _word(returns: types.Type, arguments: Sequence[types.Type], build: Callable[..., Value]) -> Any:
    """Make a function of numba's from ``build(lowering, *values)``, which emits its code."""

    def generate(context: Any, builder: Any, _signature: Any, values: Sequence[Value]) -> Value:
        features = target_features(tuple(context.codegen().magic_tuple()))
        result = build(Lowering(builder, features), *values)
        return context.get_dummy_value() if result is None else result

    typed = returns(*arguments), generate
    shapes: list[Callable[..., Any]] = [
        lambda typing: typed,
        lambda typing, a: typed,
        lambda typing, a, b: typed,
        lambda typing, a, b, c: typed,
        lambda typing, a, b, c, d: typed,
    ]
    return intrinsic(shapes[len(arguments)])


def _operator(symbol: Any, vector: Vector, build: Callable[[Any, Value, Value], Value]) -> None:
    """Give vectors one of Python's operators."""

    class _Template(ConcreteTemplate):
        cases = [signature(vector, vector, vector)]  # noqa: RUF012 - numba's way

    infer_global(symbol)(_Template)

    def generate(_context: Any, builder: Any, _signature: Any, values: Sequence[Value]) -> Value:
        return build(builder, *values)

    lower_builtin(symbol, vector, vector)(generate)


_operator(operator.add, F32x8, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, F32x8, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, F32x8, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, F32x8, lambda b, x, y: b.fdiv(x, y))
_operator(operator.add, I32x8, lambda b, x, y: b.add(x, y))


def _constant(vector: Any, value: float) -> Value:
    return ir.Constant(vector, [value] * vector.count)


def _call(b: Any, name: str, returns: Any, *values: Value) -> Value:
    shape = ir.FunctionType(returns, [value.type for value in values])
    return b.call(cgutils.get_or_insert_function(b.module, shape, name), values)


def _splat(b: Any, value: Value, lanes: int = 8) -> Value:
    vector = ir.VectorType(value.type, lanes)
    one = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_i32, 0))
    zeros = ir.Constant(ir.VectorType(_i32, lanes), [0] * lanes)
    return b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _part(b: Any, vector: Value, first: int, count: int) -> Value:
    lanes = ir.Constant(ir.VectorType(_i32, count), list(range(first, first + count)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


# ---- memory


def _pointer(b: Any, address: Value, index: Value, element: Any, value: Any) -> Value:
    """Return a pointer to a ``value`` at ``address``, ``index`` elements on."""
    start = b.inttoptr(address, element.as_pointer())
    return b.bitcast(b.gep(start, [index]), value.as_pointer())


def _load(b: Any, address: Value, index: Value, element: Any, value: Any) -> Value:
    return b.load(_pointer(b, address, index, element, value), align=1)


def _loader(returns: types.Type, element: Any, value: Any) -> Any:
    return _word(
        returns,
        (types.intp, types.intp),
        lambda to, address, index: _load(to.builder, address, index, element, value),
    )


def _storer(numba_type: types.Type, element: Any, value: Any) -> Any:
    def build(to: Lowering, address: Value, index: Value, stored: Value) -> None:
        pointer = _pointer(to.builder, address, index, element, value)
        to.builder.store(stored, pointer, align=1)

    return _word(types.void, (types.intp, types.intp, numba_type), build)


load_f32 = _loader(types.float32, _f32, _f32)
load_f32x8 = _loader(F32x8, _f32, _f32x8)
load_u8 = _loader(types.uint8, _i8, _i8)
load_u16 = _loader(types.uint16, _i16, _i16)
store_f32 = _storer(types.float32, _f32, _f32)
store_f32x8 = _storer(F32x8, _f32, _f32x8)
store_i32 = _storer(types.int32, _i32, _i32)
store_u8 = _storer(types.uint8, _i8, _i8)
store_u16 = _storer(types.uint16, _i16, _i16)

PREFETCH_BYTES = 1024  # ahead of the quants being read: the best of 512 to 4096 when measured


def _prefetch(to: Lowering, address: Value, index: Value) -> None:
    b = to.builder
    pointer = b.inttoptr(b.add(address, index), _i8.as_pointer())  # past the end is harmless
    name = "llvm.prefetch.p0" if getattr(pointer.type, "is_opaque", True) else "llvm.prefetch.p0i8"
    flags = (ir.Constant(_i32, flag) for flag in (0, 3, 1))  # read, keep in every cache, data
    _call(b, name, ir.VoidType(), pointer, *flags)


prefetch = _word(types.void, (types.intp, types.intp), _prefetch)

broadcast_f32 = _word(
    F32x8,
    (types.intp, types.intp),
    lambda to, address, index: _splat(to.builder, _load(to.builder, address, index, _f32, _f32)),
)
broadcast_i32 = _word(
    I32x8,
    (types.intp, types.intp),
    lambda to, address, index: _splat(to.builder, _load(to.builder, address, index, _i32, _i32)),
)

# ---- lanes

zeros_f32x8 = _word(F32x8, (), lambda to: _constant(_f32x8, 0.0))
zeros_i32x8 = _word(I32x8, (), lambda to: _constant(_i32x8, 0))
splat_f32 = _word(F32x8, (types.float32,), lambda to, x: _splat(to.builder, x))
splat_i32 = _word(I32x8, (types.int32,), lambda to, x: _splat(to.builder, x))
lane_f32 = _word(
    types.float32, (F32x8, types.intp), lambda to, v, i: to.builder.extract_element(v, i)
)
with_lane_f32 = _word(
    F32x8,
    (F32x8, types.intp, types.float32),
    lambda to, v, i, x: to.builder.insert_element(v, x, i),
)


def _tree(b: Any, v: Value, join: Callable[[Value, Value], Value]) -> Value:
    for half in (4, 2, 1):
        v = join(_part(b, v, 0, half), _part(b, v, half, half))
    return b.extract_element(v, ir.Constant(_i32, 0))


def _larger(b: Any, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _smaller(b: Any, x: Value, y: Value) -> Value:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def _tree_max(to: Lowering, v: Value) -> Value:
    return _tree(to.builder, v, functools.partial(_larger, to.builder))


def _tree_integer_max(to: Lowering, v: Value) -> Value:
    b = to.builder
    return _tree(b, v, lambda x, y: b.select(b.icmp_signed(">", x, y), x, y))


tree_sum = _word(types.float32, (F32x8,), lambda to, v: _tree(to.builder, v, to.builder.fadd))
tree_max = _word(types.float32, (F32x8,), _tree_max)
sum_i32 = _word(types.int32, (I32x8,), lambda to, v: _tree(to.builder, v, to.builder.add))
max_i32 = _word(types.int32, (I32x8,), _tree_integer_max)

# ---- arithmetic beyond the operators

larger = _word(F32x8, (F32x8, F32x8), lambda to, x, y: _larger(to.builder, x, y))
smaller = _word(F32x8, (F32x8, F32x8), lambda to, x, y: _smaller(to.builder, x, y))
larger_i32 = _word(
    I32x8,
    (I32x8, I32x8),
    lambda to, x, y: to.builder.select(to.builder.icmp_signed(">", x, y), x, y),
)
square_root = _word(F32x8, (F32x8,), lambda to, x: _call(to.builder, "llvm.sqrt.v8f32", _f32x8, x))
float_from_i32 = _word(F32x8, (I32x8,), lambda to, x: to.builder.sitofp(x, _f32x8))
i32_from_float = _word(I32x8, (F32x8,), lambda to, x: to.builder.fptosi(x, _i32x8))
magnitude_bits = _word(
    I32x8,
    (F32x8,),
    lambda to, x: to.builder.and_(to.builder.bitcast(x, _i32x8), _constant(_i32x8, 0x7FFFFFFF)),
)
power_of_two = _word(  # of exponents of normal float32
    F32x8,
    (I32x8,),
    lambda to, k: to.builder.bitcast(
        to.builder.shl(to.builder.add(k, _constant(_i32x8, 127)), _constant(_i32x8, 23)), _f32x8
    ),
)
bits_f32 = _word(types.float32, (types.int32,), lambda to, x: to.builder.bitcast(x, _f32))


def _nearest(to: Lowering, x: Value) -> Value:
    if to.rounds:
        return _call(to.builder, "llvm.nearbyint.v8f32", _f32x8, x)
    shift = _constant(_f32x8, 1.5 * 2.0**23)  # the sum's last bit is worth 1
    return to.builder.fsub(to.builder.fadd(x, shift), shift)


nearest = _word(F32x8, (F32x8,), _nearest)
"""Round to an integral value, half to even, for magnitudes below 2^22; a zero may lose its sign."""


def _multiply_add_exact(to: Lowering, x: Value, y: Value, z: Value) -> Value:
    if to.fused:
        return _call(to.builder, "llvm.fma.v8f32", _f32x8, x, y, z)
    return to.builder.fadd(z, to.builder.fmul(x, y))


multiply_add_exact = _word(F32x8, (F32x8, F32x8, F32x8), _multiply_add_exact)
"""``z + x * y`` for products that are exact in float32, so that fusing changes no bit (rule 7)."""


def _rounded_13_bits(to: Lowering, x: Value) -> Value:
    b = to.builder
    bits = b.bitcast(x, _i32x8)
    odd = b.and_(b.lshr(bits, _constant(_i32x8, 11)), _constant(_i32x8, 1))
    up = b.add(b.add(bits, _constant(_i32x8, 0x3FF)), odd)
    rounded = b.and_(up, _constant(_i32x8, ~0x7FF))
    magnitude = b.and_(bits, _constant(_i32x8, 0x7FFFFFFF))
    tiny = b.icmp_signed("<", magnitude, _constant(_i32x8, 63 << 23))
    return b.bitcast(b.select(tiny, _constant(_i32x8, 0), rounded), _f32x8)


rounded_13_bits = _word(F32x8, (F32x8,), _rounded_13_bits)

# ---- fp16 and bfloat16


def _from_half(to: Lowering, address: Value, index: Value) -> Value:
    b = to.builder
    if to.halves:
        return b.fpext(_load(b, address, index, _i16, _half8), _f32x8)
    bits = b.zext(_load(b, address, index, _i16, _u16x8), _i32x8)
    magnitude = b.shl(b.and_(bits, _constant(_i32x8, 0x7FFF)), _constant(_i32x8, 13))
    scaled = b.fmul(b.bitcast(magnitude, _f32x8), _constant(_f32x8, 2.0**112))  # exact
    not_finite = b.icmp_signed(">=", magnitude, _constant(_i32x8, 0x7C00 << 13))
    kept = b.or_(magnitude, _constant(_i32x8, 0x7F800000))
    number = b.select(not_finite, kept, b.bitcast(scaled, _i32x8))
    sign = b.shl(b.and_(bits, _constant(_i32x8, 0x8000)), _constant(_i32x8, 16))
    return b.bitcast(b.or_(number, sign), _f32x8)


def _half_bits(to: Lowering, x: Value) -> Value:
    """Round to fp16, nearest even, as <8 x i16>; finite numbers only."""
    b = to.builder
    if to.halves:
        return b.bitcast(b.fptrunc(x, _half8), _u16x8)
    bits = b.bitcast(x, _i32x8)
    sign = b.and_(b.lshr(bits, _constant(_i32x8, 16)), _constant(_i32x8, 0x8000))
    magnitude = b.and_(bits, _constant(_i32x8, 0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, _constant(_i32x8, 13)), _constant(_i32x8, 1))
    rebased = b.sub(magnitude, _constant(_i32x8, 112 << 23))
    normal = b.lshr(b.add(b.add(rebased, _constant(_i32x8, 0xFFF)), odd), _constant(_i32x8, 13))
    half = _constant(_f32x8, 0.5)  # its last bit is worth 2^-24, fp16's smallest step
    summed = b.fadd(b.bitcast(magnitude, _f32x8), half)
    subnormal = b.sub(b.bitcast(summed, _i32x8), b.bitcast(half, _i32x8))
    small = b.icmp_signed("<", magnitude, _constant(_i32x8, 113 << 23))
    infinite = b.icmp_signed(">=", magnitude, _constant(_i32x8, 0x477FF000))
    number = b.select(small, subnormal, normal)
    number = b.select(infinite, _constant(_i32x8, 0x7C00), number)
    return b.trunc(b.or_(number, sign), _u16x8)


def _store_half(to: Lowering, address: Value, index: Value, x: Value) -> None:
    pointer = _pointer(to.builder, address, index, _i16, _u16x8)
    to.builder.store(_half_bits(to, x), pointer, align=1)


def _lane_half(to: Lowering, x: Value, lane: Value) -> Value:
    return to.builder.extract_element(_half_bits(to, x), lane)


def _from_bfloat(to: Lowering, address: Value, index: Value) -> Value:
    b = to.builder
    bits = b.zext(_load(b, address, index, _i16, _u16x8), _i32x8)
    return b.bitcast(b.shl(bits, _constant(_i32x8, 16)), _f32x8)


load_half_x8 = _word(F32x8, (types.intp, types.intp), _from_half)
load_bfloat_x8 = _word(F32x8, (types.intp, types.intp), _from_bfloat)
store_half_x8 = _word(types.void, (types.intp, types.intp, F32x8), _store_half)
lane_half = _word(types.uint16, (F32x8, types.intp), _lane_half)


def _store_narrow(to: Lowering, address: Value, index: Value, x: Value) -> None:
    eight = ir.VectorType(_i8, 8)
    pointer = _pointer(to.builder, address, index, _i8, eight)
    to.builder.store(to.builder.trunc(x, eight), pointer, align=1)


store_i32x8_as_i8 = _word(types.void, (types.intp, types.intp, I32x8), _store_narrow)

# ---- blocks of quantised weights: all of these integers are exact, however they are computed


def _load_bytes(b: Any, address: Value, index: Value, vectors: int) -> list[Value]:
    at = [b.add(index, ir.Constant(index.type, 32 * vector)) for vector in range(vectors)]
    return [_load(b, address, offset, _i8, _bytes32) for offset in at]


def _block(b: Any, vectors: Sequence[Value]) -> Value:
    block = ir.Constant(_LLVM_TYPES["block"], ir.Undefined)
    for position, vector in enumerate(vectors):
        block = b.insert_value(block, vector, position)
    return block


def _load_nibbles(to: Lowering, address: Value, index: Value) -> Value:
    b = to.builder
    stored = _load_bytes(b, address, index, 4)
    low = [b.and_(vector, _constant(_bytes32, 15)) for vector in stored]
    high = [b.lshr(vector, _constant(_bytes32, 4)) for vector in stored]
    return _block(b, low + high)


def _load_block(to: Lowering, address: Value, index: Value) -> Value:
    return _block(to.builder, _load_bytes(to.builder, address, index, 8))


def _signed_low(b: Any, v: Value) -> Value:
    half = _constant(v.type, v.type.element.width // 2)
    return b.ashr(b.shl(v, half), half)


def _signed_high(b: Any, v: Value) -> Value:
    return b.ashr(v, _constant(v.type, v.type.element.width // 2))


def _pair_products(to: Lowering, weights: Value, x: Value, signed: bool) -> Value:
    """Return sums of two neighbouring products of bytes, <16 x i16>; |x| is at most 127."""
    b = to.builder
    if "avx2" not in to.features:
        weights, x = b.bitcast(weights, _i16x16), b.bitcast(x, _i16x16)
        low = b.mul(_signed_low(b, weights), _signed_low(b, x))
        return b.add(low, b.mul(_signed_high(b, weights), _signed_high(b, x)))
    if signed:  # the instruction wants its first factors unsigned: move their signs to x
        x = _call(b, "llvm.x86.avx2.psign.b", _bytes32, x, weights)
        negative = b.icmp_signed("<", weights, _constant(_bytes32, 0))
        weights = b.select(negative, b.neg(weights), weights)
    return _call(b, "llvm.x86.avx2.pmadd.ub.sw", _i16x16, weights, x)


def _pair_sums(to: Lowering, v: Value) -> Value:
    """Return sums of two neighbouring 16-bit numbers, <8 x i32>."""
    b = to.builder
    if "avx2" in to.features:
        return _call(b, "llvm.x86.avx2.pmadd.wd", _i32x8, v, _constant(_i16x16, 1))
    v = b.bitcast(v, _i32x8)
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
        activations = b.bitcast(_splat(b, _load(b, x, four, _i8, _i32)), _bytes32)
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


load_nibbles = _word(Block, (types.intp, types.intp), _load_nibbles)
load_block = _word(Block, (types.intp, types.intp), _load_block)
dot_nibbles = _word(I32x8, (Block, types.intp, types.intp, I32x8), _dot_nibbles)
"""``start`` plus the dot products of eight rows of nibbles 0..15 with 32 int8 at x + index."""
dot_bytes = _word(I32x8, (Block, types.intp, types.intp), _dot_bytes)
"""The dot products of eight rows of int8 with 32 int8 at x + index."""
