"""The kernels of this device: chosen, compiled or read from their cache, and proven."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgellama_kernels import BackendUnavailable, Kernels, load
from edgellama_kernels.digest import EXPECTED_DIGEST, digest

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net.facts import (
    OVERHEAD_NUMBA_BYTES,
    OVERHEAD_NUMPY_BYTES,
    threads_default,
)
from edgellama.net.memory import release_code_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.net.paths import StatePaths


def load_kernels(
    backend: str, threads: int | None, paths: StatePaths, tell: Callable[[str], None]
) -> Kernels:
    """Return kernels that give the bits of the contract on this very device.

    ``threads`` None leaves the number to the device. Raises MisuseError for a backend that is
    not installed, EdgellamaError where this device computes other bits than it must.
    """
    os.environ.setdefault("NUMBA_CACHE_DIR", str(paths.kernels))
    try:
        kernels = load(backend, threads or threads_default())
    except BackendUnavailable as error:
        raise MisuseError(str(error)) from error
    if kernels.cache_note:
        tell(kernels.cache_note)
    found = digest(kernels)
    release_code_of("libllvmlite")
    if found != EXPECTED_DIGEST:
        kernels.close()
        raise EdgellamaError(
            f"the {kernels.name} kernels of this device do not compute what all others do "
            f"(digest {found[:12]}); try --backend numpy"
        )
    return kernels


def overhead_bytes(backend: str) -> int:
    """Return what a node's process takes besides weights, KV cache and scratch."""
    return OVERHEAD_NUMBA_BYTES if backend == "numba" else OVERHEAD_NUMPY_BYTES
