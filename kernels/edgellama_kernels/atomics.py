"""Words with which threads inside kernels meet: atomic numbers in memory, and ways to wait.

Numbers are int64 at an address that is a multiple of 8, and an index in numbers.
"""
# numba's decorators are untyped. mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from llvmlite import ir
from numba import types

from edgellama_kernels.lowering import I32, I64, Lowering, Value, call, pointer_to, word
from edgellama_kernels.machine_code import GIVE_WAY, offer_give_way

_BYTES = 8

offer_give_way()


def _add(to: Lowering, address: Value, index: Value, amount: Value) -> Value:
    pointer = pointer_to(to.builder, address, index, I64, I64)
    return to.builder.atomic_rmw("add", pointer, amount, "seq_cst")


def _load(to: Lowering, address: Value, index: Value) -> Value:
    pointer = pointer_to(to.builder, address, index, I64, I64)
    return to.builder.load_atomic(pointer, "acquire", _BYTES)


def _store(to: Lowering, address: Value, index: Value, number: Value) -> None:
    pointer = pointer_to(to.builder, address, index, I64, I64)
    to.builder.store_atomic(number, pointer, "release", _BYTES)


def _pause(to: Lowering) -> None:
    if "x86_64" in to.features:
        call(to.builder, "llvm.x86.sse2.pause", ir.VoidType())
    elif "aarch64" in to.features:
        call(to.builder, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(I32, 1))  # YIELD


def _give_way(to: Lowering) -> None:
    call(to.builder, GIVE_WAY, I32)


add_atomic = word(types.int64, (types.intp, types.intp, types.int64), _add)
"""Add to a number and return what it was before."""
load_atomic = word(types.int64, (types.intp, types.intp), _load)
"""Load a number; what its writer stored before it is then seen too."""
store_atomic = word(types.void, (types.intp, types.intp, types.int64), _store)
"""Store a number after everything that this thread stored before it."""
pause = word(types.void, (), _pause)
"""Tell the processor that this thread spins."""
give_way = word(types.void, (), _give_way)
"""Let the system run another thread first."""
