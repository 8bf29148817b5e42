"""Compiles every kernel once, in a process of its own: ``python -m edgellama_kernels.warming``.

Compiling takes seconds, holds the GIL and leaves tens of megabytes behind; and where LLVM does
not know the machine it ends the process. All of that happens to this one. The binaries it leaves
in the cache folder load in half a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from edgellama_kernels import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

MARKER = "compiled"  # a file in the cache folder: every kernel in it has been compiled and proven


def is_installed() -> bool:
    """Return whether numba is there, without importing it."""
    try:
        return importlib.util.find_spec("numba") is not None
    except (ImportError, ValueError):
        return False


def is_warm() -> bool:
    """Return whether the kernels of this very version lie in the cache, compiled and proven."""
    return _marker().is_file()


def command() -> list[str]:
    """Return the command that makes them so; it exits with 0 when it has."""
    return [sys.executable, "-m", "edgellama_kernels.warming"]


def main() -> int:
    """Compile and prove; return the exit code."""
    from edgellama_kernels import load
    from edgellama_kernels.digest import EXPECTED_DIGEST, digest

    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # whoever computes on NumPy meanwhile goes first
    kernels = load("numba", 1)
    try:
        if kernels.cache_note is not None:
            sys.stderr.write(f"{kernels.cache_note}\n")
            return 1
        found = digest(kernels)
    finally:
        kernels.close()
    if found != EXPECTED_DIGEST:
        sys.stderr.write(f"the compiled kernels compute other numbers (digest {found})\n")
        return 1
    _marker().touch()
    return 0


def _marker() -> Path:
    folder = cache_folder.PREFIX + cache_folder.sources_hash()
    return cache_folder.parent_folder() / folder / MARKER


if __name__ == "__main__":
    sys.exit(main())
