"""Machine code of the kernels as a file: written with numba, loaded with LLVM's loader alone.

numba takes half a second and 40 MB to find a kept function again, most of it for what a compiler
knows and a caller does not need. Functions here take int64 and return one, and are called as numba
calls its own: addresses for the result and for an exception, then the arguments, which returns a
status. No kernel raises an exception.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Function = Callable[..., int]

PREFIX = "edgellama_"
# Threads that wait let others run. Under a name of our own, so that binaries find it everywhere.
GIVE_WAY = PREFIX + "give_way"

_loaded: list[object] = []  # engines, and the bytes that they were given: code must stay in memory


def offer_give_way() -> None:
    """Tell LLVM where the system's function is that lets another thread run first."""
    from llvmlite import binding

    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    binding.add_symbol(GIVE_WAY, ctypes.cast(function, ctypes.c_void_p).value)


def emit(kernels: Mapping[str, Any]) -> bytes:
    """Return an object file with compiled kernels of one signature each, under their names.

    What Python needs to call them is left out, and so is all that nothing else calls. This uses
    what numba does not document: whoever calls must live with any error.
    """
    from llvmlite import binding

    whole: Any = None
    machine: Any = None
    for name, kernel in kernels.items():
        (compiled,) = kernel.overloads.values()
        library = compiled.library
        machine = library.codegen._tm
        module = binding.parse_bitcode(library._get_module_for_linking().as_bitcode())
        for value in (*module.functions, *module.global_variables):
            if value.name == compiled.fndesc.llvm_func_name:
                value.name, value.linkage = PREFIX + name, "external"
            elif not value.is_declaration:
                value.linkage = "internal"
        if whole is None:
            whole = module
        else:
            whole.link_in(module)
    _drop_unused(whole, machine)
    return bytes(machine.emit_object(whole))


def _drop_unused(module: Any, machine: Any) -> None:
    from llvmlite import binding

    if hasattr(binding, "create_pass_builder"):
        builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options())
        passes = binding.create_new_module_pass_manager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(module, builder)
    else:  # llvmlite before 0.44
        passes = binding.create_module_pass_manager()
        passes.add_global_dce_pass()
        passes.run(module)


def load(code: bytes, arguments: Mapping[str, int]) -> dict[str, Function]:
    """Return the functions of an object file by name; ``arguments`` says how many each takes.

    The file must be whole and made for this CPU: LLVM ends the process otherwise. Raises
    ImportError or OSError without LLVM, LookupError for a function that is not there.
    """
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    offer_give_way()
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _loaded.append((engine, code))
    functions = {}
    for name, count in arguments.items():
        address = engine.get_function_address(PREFIX + name)
        if not address:
            raise LookupError(f"the kept machine code has no {name}")
        functions[name] = _callable(address, count)
    return functions


def _callable(address: int, count: int) -> Function:
    pointers = ctypes.c_void_p, ctypes.c_void_p
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *pointers, *[ctypes.c_int64] * count)
    function = prototype(address)

    def call(*arguments: int) -> int:
        result, exception = ctypes.c_int64(), ctypes.c_void_p()
        function(ctypes.byref(result), ctypes.byref(exception), *arguments)
        return result.value

    return call
