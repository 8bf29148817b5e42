"""Kernels for quantized transformers on a CPU: NumPy reference and numba, the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama_kernels.expert_layout import PackedExperts
from edgellama_kernels.interface import (
    BackendUnavailable,
    CacheKind,
    CacheLayer,
    HiddenRows,
    Kernels,
    NonFinite,
    Program,
    Routing,
    Rows,
    Unrecordable,
    Verbs,
    allocate_cache_layer,
    cache_position_bytes,
)
from edgellama_kernels.kinds import WeightKind
from edgellama_kernels.layout import LAYOUT_VERSION, PackedMatrix, packed_bytes
from edgellama_kernels.reference import exponential

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "LAYOUT_VERSION",
    "BackendUnavailable",
    "CacheKind",
    "CacheLayer",
    "HiddenRows",
    "Kernels",
    "NonFinite",
    "PackedExperts",
    "PackedMatrix",
    "Program",
    "Routing",
    "Rows",
    "Unrecordable",
    "Verbs",
    "WeightKind",
    "allocate_cache_layer",
    "cache_position_bytes",
    "exponential",
    "load",
    "packed_bytes",
]

THREADS_MAX = 64  # more threads than any device here has cores; a bound, not a recommendation


def load(
    backend: str = "auto",
    threads: int = 1,
    *,
    equal_cores: bool = True,
    adapt: bool = True,
    cpus: Collection[int] = (),
) -> Kernels:
    """Return the kernels: "numpy", "numba", or "auto" for numba where it can be imported.

    ``threads`` counts the caller's own; ``equal_cores`` says whether they run at one speed.
    ``adapt`` lets programs run on fewer threads while that is faster. Threads are kept on
    ``cpus`` where the system allows it, the caller's from its first call on. The NumPy backend
    computes in the caller's thread alone.
    Raises BackendUnavailable when numba is asked for and missing.
    """
    if backend not in ("auto", "numba", "numpy"):
        raise ValueError(f"no kernels named {backend!r}: choose auto, numba or numpy")
    if not 1 <= threads <= THREADS_MAX:
        raise ValueError(f"kernels run on 1 to {THREADS_MAX} threads, not {threads}")
    if backend != "numpy":
        try:
            from edgellama_kernels.compiled import CompiledKernels
            from edgellama_kernels.entries import entries

            entries()
        except (ImportError, OSError) as error:  # OSError: llvmlite's library does not load
            if backend == "numba":
                raise BackendUnavailable(f"the numba kernels cannot run here: {error}") from error
        else:
            return CompiledKernels(threads, equal_cores, adapt, cpus)
    from edgellama_kernels.reference import ReferenceKernels

    return ReferenceKernels()
