"""How a word of vectors is made: numba types over LLVM's vectors, and instructions for them.

Some words have one text for any machine and another for machines with fitting instructions; which
one is taken is asked of the compiler's own list of features, never of the CPU: LLVM aborts the
process over an instruction that it was not told of. Both give the same bits.
"""
# numba's decorators are untyped, and it counts a word's arguments: they have to be there.
# mypy: disable-error-code="no-untyped-call, misc"
# ruff: noqa: ARG005

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, register_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Value = Any  # an llvmlite value

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT = ir.FloatType()
BYTES_32 = ir.VectorType(I8, 32)
I16_X16 = ir.VectorType(I16, 16)
I32_X8 = ir.VectorType(I32, 8)
FLOAT_X8 = ir.VectorType(FLOAT, 8)
HALF_X8 = ir.VectorType(ir.HalfType(), 8)
I16_X8 = ir.VectorType(I16, 8)
BLOCK = ir.ArrayType(BYTES_32, 8)  # 32 weights of each of 8 rows, one byte a weight

_LLVM_TYPES = {
    "f32x8": FLOAT_X8,
    "i32x8": I32_X8,
    "i16x16": I16_X16,
    "block": BLOCK,
}


class Vector(types.Type):
    """A vector as a type of numba's."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)


class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _LLVM_TYPES[vector.name])


register_model(Vector)(_VectorModel)

F32x8, I32x8, I16x16, Block = (Vector(name) for name in _LLVM_TYPES)


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
    listed = set(features.split(","))
    enabled = {name[1:] for name in listed if name.startswith("+")} | {architecture}
    if architecture == "aarch64" and "-neon" not in listed:
        enabled.add("neon")  # every such CPU has it, and LLVM knows
    return frozenset(enabled)


def compiled_features() -> frozenset[str]:
    """Return the architecture and the features that kernels are compiled for in this process."""
    return target_features(tuple(cpu_target.target_context.codegen().magic_tuple()))


def word(returns: types.Type, arguments: Sequence[types.Type], build: Callable[..., Value]) -> Any:
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
        lambda typing, a, b, c, d, e: typed,
    ]
    return intrinsic(shapes[len(arguments)])


def define_operator(
    symbol: Any, vector: Vector, build: Callable[[Any, Value, Value], Value]
) -> None:
    """Give vectors one of Python's operators."""

    class _Template(ConcreteTemplate):
        cases = [signature(vector, vector, vector)]  # noqa: RUF012 - numba's way

    infer_global(symbol)(_Template)

    def generate(_context: Any, builder: Any, _signature: Any, values: Sequence[Value]) -> Value:
        return build(builder, *values)

    lower_builtin(symbol, vector, vector)(generate)


def constant(vector: Any, value: float) -> Value:
    """Return a vector of equal constants."""
    return ir.Constant(vector, [value] * vector.count)


def call(b: Any, name: str, returns: Any, *values: Value) -> Value:
    """Call one of LLVM's own functions."""
    shape = ir.FunctionType(returns, [value.type for value in values])
    return b.call(cgutils.get_or_insert_function(b.module, shape, name), values)


def splatted(b: Any, value: Value, lanes: int = 8) -> Value:
    """Return a vector of one value."""
    vector = ir.VectorType(value.type, lanes)
    one = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def part(b: Any, vector: Value, first: int, count: int) -> Value:
    """Return ``count`` lanes from ``first`` on."""
    lanes = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def pointer_to(b: Any, address: Value, index: Value, element: Any, value: Any) -> Value:
    """Return a pointer to a ``value`` at ``address``, ``index`` elements on."""
    start = b.inttoptr(address, element.as_pointer())
    return b.bitcast(b.gep(start, [index]), value.as_pointer())


def loaded(b: Any, address: Value, index: Value, element: Any, value: Any) -> Value:
    """Return the ``value`` at ``address``, ``index`` elements on."""
    return b.load(pointer_to(b, address, index, element, value), align=1)


def loader(returns: types.Type, element: Any, value: Any) -> Any:
    """Make a word that loads by address and index."""
    return word(
        returns,
        (types.intp, types.intp),
        lambda to, address, index: loaded(to.builder, address, index, element, value),
    )


def storer(numba_type: types.Type, element: Any, value: Any) -> Any:
    """Make a word that stores by address and index."""

    def build(to: Lowering, address: Value, index: Value, stored: Value) -> None:
        pointer = pointer_to(to.builder, address, index, element, value)
        to.builder.store(stored, pointer, align=1)

    return word(types.void, (types.intp, types.intp, numba_type), build)
