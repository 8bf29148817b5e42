"""Compiles every kernel once, in a process of its own: ``python -m edgellama_kernels.warming``.

Compiling takes seconds, holds the GIL and leaves tens of megabytes behind; and where LLVM does
not know the machine it ends the process. All of that happens to this one. The binaries it leaves
in the cache folder load in half a second.

With them it leaves a note of what they were compiled for. Where the best choice for the CPU ends
the process, the next attempt in ``target_choice.attempts`` is made, and the note remembers it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from edgellama_kernels import cache_folder, row_codec, target_choice

if TYPE_CHECKING:
    from pathlib import Path

NOTE = "compiled-"  # begins the name of a file: every kernel is compiled and proven on this CPU
NOTE_BYTES_MAX = 4096
NOT_KEPT = 3  # the exit code of kernels that are proven, but no folder takes them


def is_installed() -> bool:
    """Return whether numba is there, without importing it."""
    try:
        return importlib.util.find_spec("numba") is not None
    except (ImportError, ValueError):
        return False


def is_warm() -> bool:
    """Return whether the kernels of this very version are in the cache, proven on this CPU."""
    kept, wanted = kept_variables(), target_choice.variables()
    return kept is not None and wanted in ({}, kept)


def kept_variables() -> dict[str, str] | None:
    """Return the variables that the kernels in the cache were compiled with; None without any."""
    try:
        with _note().open("rb") as file:
            lines = file.read(NOTE_BYTES_MAX).decode("ascii", "replace").splitlines()
    except OSError:
        return None
    fields = (line.partition("=") for line in lines)
    known = (target_choice.NAME, target_choice.FEATURES)
    return {name: value for name, _, value in fields if name in known}


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
        found = digest(kernels)
        packs_alike = row_codec.agrees(kernels.row_codec)
    finally:
        kernels.close()
    if found != EXPECTED_DIGEST or not packs_alike:
        sys.stderr.write(f"the compiled kernels compute other numbers (digest {found})\n")
        return 1
    if kernels.cache_note is not None:
        sys.stderr.write(f"{kernels.cache_note}\n")
        return NOT_KEPT
    lines = [f"{name}={value}\n" for name, value in target_choice.variables().items()]
    _note().write_text("".join(lines))
    return 0


def _note() -> Path:
    folder = cache_folder.PREFIX + cache_folder.sources_hash()
    identity = target_choice.identity(target_choice.read_cpuinfo())
    return cache_folder.parent_folder() / folder / (NOTE + identity)


if __name__ == "__main__":
    sys.exit(main())
