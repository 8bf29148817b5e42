"""The three ways in which kernels are compiled: nothing else may call numba's decorators.

Every kernel releases the GIL and is kept for the next start. Fast-math is off, always: it would
let LLVM fuse and reorder, and the answer would depend on the machine.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from edgellama_kernels import cache_folder, target_choice, warming

target_choice.prepare(warming.kept_variables())
CACHE_NOTE = cache_folder.prepare()

from numba import njit  # noqa: E402 - it must meet the variables already set

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": CACHE_NOTE is None,
    "error_model": "numpy",  # x / 0 is infinity, as IEEE 754 says, not an exception
}

Function = TypeVar("Function")


def kernel(function: Function) -> Function:
    """Compile a function that Python calls with addresses and sizes."""
    return cast("Function", njit(**OPTIONS)(function))


def part(function: Function) -> Function:
    """Compile a function that kernels call; it is kept with them."""
    options = OPTIONS | {"cache": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", njit(**options)(function))


def inlined(function: Function) -> Function:
    """Compile a function of vectors that becomes part of its callers."""
    options = OPTIONS | {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("Function", njit(**options)(function))
