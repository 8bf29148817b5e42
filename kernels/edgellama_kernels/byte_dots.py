"""Dot products of bytes, the work that weights are: one text for any machine, four for some.

Weights and activations come as vectors of 32 bytes, four of each of eight rows, and the result is
a sum a row, <8 x i32>. It is exact, so how it is found changes no bit. Which text is taken is asked
of the features that are compiled for: an instruction that the target lacks ends the process.
"""
# numba's decorators are untyped.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llvmlite import ir

from edgellama_kernels.lowering import (
    BYTES_32,
    I8,
    I16_X8,
    I16_X16,
    I32,
    I32_X8,
    Lowering,
    Value,
    call,
    constant,
    part,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

ACTIVATION_MAX = 127  # never -128: see rule 2
I16_MAX = (1 << 15) - 1
_BYTES_16 = ir.VectorType(I8, 16)
_BYTES_8 = ir.VectorType(I8, 8)
_I32_X4 = ir.VectorType(I32, 4)


class Range(NamedTuple):
    """What weights can be: the largest magnitude, at most 128, and whether some are negative."""

    magnitude_max: int
    signed: bool

    def products_in_16_bits(self) -> int:
        """Return how many products can be added before a sum may leave 16 bits."""
        return I16_MAX // (self.magnitude_max * ACTIVATION_MAX)


def dots(
    to: Lowering, weights: Sequence[Value], x: Sequence[Value], bounds: Range, start: Value
) -> Value:
    """Return ``start`` plus the sum of the products of every row's bytes, <8 x i32>.

    ``weights`` and ``x`` are equally many <32 x i8>, x with four bytes repeated in every lane.
    Where weights can be negative, the first ``start`` of a sum is what ``signed_start`` says.
    """
    pairs = list(zip(weights, x, strict=True))
    if _has_vnni(to):
        return _vnni(to.builder, pairs, bounds, start)
    if "avx2" in to.features:
        return _avx2(to.builder, pairs, bounds, start)
    if to.features >= {"neon", "dotprod"}:
        return _neon_dotprod(to.builder, pairs, start)
    if "neon" in to.features:
        return _neon(to.builder, pairs, bounds, start)
    return _plain(to.builder, pairs, bounds, start)


def _added(b: Any, values: Sequence[Value]) -> Value:
    """Add in a tree: integers, and the shortest wait."""
    while len(values) > 1:
        odd = list(values[len(values) & ~1 :])
        pairs = zip(values[::2], values[1::2], strict=False)
        values = [b.add(x, y) for x, y in pairs] + odd
    return values[0]


def _groups(values: Sequence[Value], size: int) -> list[Sequence[Value]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def _signs_moved(b: Any, weight: Value, x: Value) -> tuple[Value, Value]:
    """Return |weight| and x with the weight's sign: x86 wants the first factor unsigned."""
    negative = b.icmp_signed("<", weight, constant(BYTES_32, 0))
    moved = call(b, "llvm.x86.avx2.psign.b", BYTES_32, x, weight)
    return b.select(negative, b.neg(weight), weight), moved


def signed_start(to: Lowering, sums: Value) -> Value:
    """Return where sums of products with signed weights start.

    ``sums``: of all that the weights will meet, <8 x i32>. VNNI makes weights unsigned by adding
    128 to each, so that there the start is as much less; elsewhere it is 0.
    """
    b, zero = to.builder, constant(I32_X8, 0)
    return b.sub(zero, b.shl(sums, constant(I32_X8, 7))) if _has_vnni(to) else zero


def _has_vnni(to: Lowering) -> bool:
    return to.features >= {"avx512vnni", "avx512vl"} or "avxvnni" in to.features


def _vnni(b: Any, pairs: list[tuple[Value, Value]], bounds: Range, start: Value) -> Value:
    more = constant(BYTES_32, 128 if bounds.signed else 0)
    pairs = [(b.xor(weight, more), activation) for weight, activation in pairs]
    chains = [start, constant(I32_X8, 0)]  # one instruction's wait hides in the other's
    for number, (weight, activation) in enumerate(pairs):
        chain = number % 2
        arguments = (chains[chain], b.bitcast(weight, I32_X8), b.bitcast(activation, I32_X8))
        chains[chain] = call(b, "llvm.x86.avx512.vpdpbusd.256", I32_X8, *arguments)
    return b.add(*chains)


def _avx2(b: Any, pairs: list[tuple[Value, Value]], bounds: Range, start: Value) -> Value:
    doubles = []  # sums of two neighbouring products, 16 bits
    for weight, activation in pairs:
        w, x = _signs_moved(b, weight, activation) if bounds.signed else (weight, activation)
        doubles.append(call(b, "llvm.x86.avx2.pmadd.ub.sw", I16_X16, w, x))
    ones = constant(I16_X16, 1)
    quads = [
        call(b, "llvm.x86.avx2.pmadd.wd", I32_X8, _added(b, group), ones)
        for group in _groups(doubles, bounds.products_in_16_bits() // 2)
    ]
    return b.add(_added(b, quads), start)


def _halves(b: Any, v: Value) -> tuple[Value, Value]:
    count = v.type.count // 2
    return part(b, v, 0, count), part(b, v, count, count)


def _joined(b: Any, low: Value, high: Value) -> Value:
    lanes = ir.Constant(ir.VectorType(I32, 8), list(range(8)))
    return b.shuffle_vector(low, high, lanes)


def _neon_dotprod(b: Any, pairs: list[tuple[Value, Value]], start: Value) -> Value:
    sums = list(_halves(b, start))
    for weight, x in pairs:
        for half, (w, a) in enumerate(zip(_halves(b, weight), _halves(b, x), strict=True)):
            sums[half] = call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", _I32_X4, sums[half], w, a)
    return _joined(b, *sums)


def _neon(b: Any, pairs: list[tuple[Value, Value]], bounds: Range, start: Value) -> Value:
    rows = []  # four rows' sums for either half of the vectors
    for half in range(2):
        eighths: list[list[Value]] = [[], []]  # products of two rows, 16 bits
        for weight, x in pairs:
            ws, activations = (_halves(b, _halves(b, v)[half]) for v in (weight, x))
            for products, w, a in zip(eighths, ws, activations, strict=True):
                products.append(call(b, "llvm.aarch64.neon.smull.v8i16", I16_X8, w, a))
        sums = []
        for products in eighths:
            wide = [
                call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", _I32_X4, _chained(b, group))
                for group in _groups(products, bounds.products_in_16_bits())
            ]
            sums.append(_chained(b, wide))
        rows.append(call(b, "llvm.aarch64.neon.addp.v4i32", _I32_X4, *sums))
    return b.add(_joined(b, *rows), start)


def _chained(b: Any, values: Sequence[Value]) -> Value:
    """Add one after the other: with a product that is a single instruction."""
    total = values[0]
    for value in values[1:]:
        total = b.add(total, value)
    return total


def _low(b: Any, v: Value) -> Value:
    half = constant(v.type, v.type.element.width // 2)
    return b.ashr(b.shl(v, half), half)


def _high(b: Any, v: Value) -> Value:
    return b.ashr(v, constant(v.type, v.type.element.width // 2))


def _plain(b: Any, pairs: list[tuple[Value, Value]], bounds: Range, start: Value) -> Value:
    doubles = []
    for weight, activation in pairs:
        w, x = b.bitcast(weight, I16_X16), b.bitcast(activation, I16_X16)
        low, high = b.mul(_low(b, w), _low(b, x)), b.mul(_high(b, w), _high(b, x))
        doubles.append(b.add(low, high))
    quads = []
    for group in _groups(doubles, bounds.products_in_16_bits() // 2):
        wide = b.bitcast(_added(b, group), I32_X8)
        quads.append(b.add(_low(b, wide), _high(b, wide)))
    return b.add(_added(b, quads), start)
