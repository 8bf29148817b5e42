"""Every word of vectors as machine code for CPUs that are not this one.

``python other_targets.py`` prints a line of JSON a target: the mnemonics in each word's code. It
is a process of its own, because LLVM ends the process over an instruction that a target lacks.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import pkgutil
import re
import sys
from typing import Any, NamedTuple

import edgellama_kernels
import llvmlite.binding as llvm
import numpy as np
from edgellama_kernels import lowering
from llvmlite import ir
from numba import types
from numba.core.extending import _Intrinsic


class Target(NamedTuple):
    """What LLVM compiles for: the tuple that numba keeps with its binaries."""

    triple: str
    cpu: str
    features: str


X86, ARM, RISC_V = (f"{name}-unknown-linux-gnu" for name in ("x86_64", "aarch64", "riscv64"))
SSE4 = "+sse3,+ssse3,+sse4.1,+sse4.2"
AVX2 = f"{SSE4},+avx,+avx2,+fma,+f16c"
TARGETS = {
    "generic": Target(X86, "generic", ""),
    "nehalem": Target(X86, "nehalem", SSE4),
    "haswell by its name alone": Target(X86, "haswell", ""),
    "haswell": Target(X86, "haswell", AVX2),
    "znver3": Target(X86, "znver3", AVX2),
    "alderlake": Target(X86, "alderlake", f"{AVX2},+avxvnni"),
    "vnni without its short vectors": Target(
        X86, "haswell", f"{AVX2},+avx512f,+avx512bw,+avx512vnni"
    ),
    "sapphirerapids": Target(
        X86, "sapphirerapids", f"{AVX2},+avx512f,+avx512bw,+avx512vl,+avx512vnni,+avxvnni"
    ),
    "arm, any": Target(ARM, "generic", "+neon"),
    "arm, no list": Target(ARM, "generic", ""),
    "arm with dotprod": Target(ARM, "generic", "+neon,+dotprod"),
    "cortex-a53": Target(ARM, "cortex-a53", "+neon,-sve"),
    "cortex-a76": Target(ARM, "cortex-a76", "+neon,+dotprod,-sve"),
    "neoverse-v1": Target(ARM, "neoverse-v1", "+neon,+dotprod,-sve"),
    "riscv64": Target(RISC_V, "generic-rv64", "+m,+a,+f,+d,+c"),
}


class Context:
    """What a word asks of numba while its code is made."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def codegen(self) -> Context:
        return self

    def magic_tuple(self) -> Target:
        return self._target

    def get_dummy_value(self) -> None:
        return None


def words() -> dict[str, Any]:
    """Return every word of the package by name."""
    found = {}
    for module in pkgutil.iter_modules(edgellama_kernels.__path__):
        members = vars(importlib.import_module(f"edgellama_kernels.{module.name}"))
        found |= {name: member for name, member in members.items() if type(member) is _Intrinsic}
    return found


def llvm_type(numba_type: types.Type) -> Any:
    if isinstance(numba_type, types.Integer):
        return ir.IntType(numba_type.bitwidth)
    if isinstance(numba_type, types.Float):
        return {32: ir.FloatType(), 64: ir.DoubleType()}[numba_type.bitwidth]
    return lowering._LLVM_TYPES[numba_type.name]


def typed(word: Any) -> tuple[Any, Any]:
    """Return a word's signature and what makes its code."""
    count = word._defn.__code__.co_argcount - 1
    return word._defn(*[None] * (count + 1))


def emit(builder: Any, target: Target, word: Any, *values: Any) -> Any:
    """Add a word's code to a function, as numba would."""
    signature, generate = typed(word)
    return generate(Context(target), builder, signature, values)


def add_function(module: Any, name: str, target: Target) -> None:
    """Add a word as a function of addresses: of its result, and of each argument."""
    word = words()[name]
    signature, _ = typed(word)
    arguments = [llvm_type(argument).as_pointer() for argument in signature.args]
    returns = [] if signature.return_type == types.void else [llvm_type(signature.return_type)]
    pointers = [value.as_pointer() for value in returns]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), pointers + arguments), name)
    builder = ir.IRBuilder(function.append_basic_block())
    values = [builder.load(argument, align=1) for argument in function.args[len(returns) :]]
    result = emit(builder, target, word, *values)
    if returns:
        builder.store(result, function.args[0], align=1)
    builder.ret_void()


def machine(target: Target) -> Any:
    """Return LLVM's compiler for a target; RuntimeError where this LLVM does not have it."""
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(target.cpu, target.features, opt=3, jit=True)


def assembly(target: Target, name: str) -> str:
    """Return a word's code for a target."""
    module = ir.Module(name)
    module.triple = target.triple
    add_function(module, name, target)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    return str(machine(target).emit_assembly(parsed))


class Words:
    """Every word as a function of NumPy's arrays, compiled for a target that this CPU can run."""

    def __init__(self, target: Target) -> None:
        module = ir.Module("words")
        module.triple = target.triple
        self._signatures = {name: typed(word)[0] for name, word in words().items()}
        for name in self._signatures:
            add_function(module, name, target)
        parsed = llvm.parse_assembly(str(module))
        self._engine = llvm.create_mcjit_compiler(parsed, machine(target))
        self._engine.finalize_object()

    def call(self, name: str, *values: Any) -> Any:
        """Return what a word makes of values: vectors as arrays, an address as an integer."""
        signature = self._signatures[name]
        given = [
            np.array(value, dtype).reshape(shape)
            for value, (dtype, shape) in zip(values, map(numpy_type, signature.args), strict=True)
        ]
        result = None
        if signature.return_type != types.void:
            dtype, shape = numpy_type(signature.return_type)
            result = np.empty(shape, dtype)
            given.insert(0, result)
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(given))
        function(self._engine.get_function_address(name))(*[x.ctypes.data for x in given])
        return result


def numpy_type(numba_type: types.Type) -> tuple[Any, tuple[int, ...]]:
    """Return the type and shape of an array that holds one such value."""
    vectors = {"f32x8": (np.float32, (8,)), "i32x8": (np.int32, (8,)), "block": (np.uint8, (8, 32))}
    return vectors.get(numba_type.name, (numba_type.name, ()))


def initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def main() -> None:
    initialize()
    for label, target in TARGETS.items():
        try:
            machine(target)
        except RuntimeError:
            tell(label, None)  # not in this build of LLVM
            continue
        tell(label, {name: mnemonics(assembly(target, name)) for name in words()})


def tell(label: str, found: dict[str, list[str]] | None) -> None:
    sys.stdout.write(f"{json.dumps([label, found])}\n")
    sys.stdout.flush()


def mnemonics(text: str) -> list[str]:
    return sorted(set(re.findall(r"^\t(?:\{\w+\}\s+)?([a-z]\w*)", text, re.MULTILINE)))


def break_promise() -> None:
    """Make code with AVX2 for a CPU that lacks it, and so show what the choice keeps from us."""
    initialize()
    honest = TARGETS["nehalem"]
    module = ir.Module("lie")
    module.triple = honest.triple
    add_function(module, "dot_nibbles", TARGETS["haswell"])
    machine(honest).emit_assembly(llvm.parse_assembly(str(module)))


if __name__ == "__main__":
    break_promise() if "--lie" in sys.argv else main()
