"""Compiles every kernel once, in a process of its own: ``python -m edgellama_kernels.warming``.

Compiling takes seconds, holds the GIL and leaves tens of megabytes behind; and where LLVM does
not know the machine it ends the process. All of that happens to this one. The binaries it leaves
in the cache folder load in half a second.

It also leaves them as plain machine code (``machine_code``), for starts without numba, once another
process has proven that; where that cannot be had, numba loads what it has kept.

With them goes a note of what they were compiled for. Where the best choice for the CPU ends
the process, the next attempt in ``target_choice.attempts`` is made, and the note remembers it.
Of several processes that begin at the same time one compiles, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from edgellama_kernels import cache_folder, row_codec, target_choice
from edgellama_kernels.compile_lock import one_at_a_time

NOTE = "compiled-"  # begins the name of a file: every kernel is compiled and proven on this CPU
NOTE_BYTES_MAX = 4096
CODE = "code"  # the note's line with the hash of the machine code
PROVE_WAIT_S = 300.0
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
    fields = _noted()
    if fields is None:
        return None
    known = (target_choice.NAME, target_choice.FEATURES)
    return {name: fields[name] for name in known if name in fields}


def kept_code_hash() -> str:
    """Return the SHA-256 of the machine code that was proven here; empty where there is none."""
    return (_noted() or {}).get(CODE, "")


def code_file() -> Path:
    """Return where the machine code of this CPU's kernels is kept."""
    return _note().with_suffix(".o")


def _noted() -> dict[str, str] | None:
    try:
        with _note().open("rb") as file:
            lines = file.read(NOTE_BYTES_MAX).decode("ascii", "replace").splitlines()
    except OSError:
        return None
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def command() -> list[str]:
    """Return the command that makes them so; it exits with 0 when it has."""
    return [sys.executable, "-m", "edgellama_kernels.warming"]


def main() -> int:
    """Compile and prove; return the exit code."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # whoever computes on NumPy meanwhile goes first
    with one_at_a_time(_note().with_suffix(".lock"), _say_that_it_waits) as has_waited:
        return 0 if has_waited and is_warm() else _compile()


def _say_that_it_waits() -> None:
    sys.stderr.write("waiting for another process that compiles the kernels\n")
    sys.stderr.flush()


def _compile() -> int:
    with contextlib.suppress(OSError):
        _note().unlink(missing_ok=True)  # all is done anew
    proven, cache_note = _prove()
    if not proven:
        return 1
    if cache_note is not None:
        sys.stderr.write(f"{cache_note}\n")
        return NOT_KEPT
    fields = target_choice.variables()
    code_hash = _keep_code()
    if code_hash:
        fields[CODE] = code_hash
    _note().write_text("".join(f"{name}={value}\n" for name, value in fields.items()))
    return 0


def _prove() -> tuple[bool, str | None]:
    """Return whether the kernels compute what they should, and what is said of keeping them."""
    from edgellama_kernels import load
    from edgellama_kernels.digest import EXPECTED_DIGEST, digest

    kernels = load("numba", 1)
    try:
        found = digest(kernels)
        packs_alike = row_codec.agrees(kernels.row_codec)
    finally:
        kernels.close()
    if found != EXPECTED_DIGEST or not packs_alike:
        sys.stderr.write(f"the compiled kernels compute other numbers (digest {found})\n")
        return False, None
    return True, kernels.cache_note


def _keep_code() -> str:
    """Keep the kernels as plain machine code; return its hash when another process proved it."""
    from edgellama_kernels import entries, machine_code

    temporary = code_file().with_suffix(f".{os.getpid()}.o")
    try:
        kernels = entries.numba_kernels()
        kernels["read_memory"](0, 0, 0)  # the only one that no digest calls
        code = machine_code.emit(kernels)
        temporary.write_bytes(code)
        subprocess.run([*command(), str(temporary)], check=True, timeout=PROVE_WAIT_S)  # noqa: S603
        temporary.replace(code_file())
    except Exception as error:  # what numba does not document may change
        sys.stderr.write(f"numba loads its kernels by itself: {error!r}\n")
        return ""
    finally:
        temporary.unlink(missing_ok=True)
    return hashlib.sha256(code).hexdigest()


def prove_code(path: str) -> int:
    """Prove machine code that is to be kept, in this process; return the exit code."""
    from edgellama_kernels import entries

    entries.use(Path(path).read_bytes())
    return 0 if _prove()[0] else 1


def _note() -> Path:
    folder = cache_folder.PREFIX + cache_folder.running_hash()
    identity = target_choice.identity(target_choice.read_cpuinfo())
    return cache_folder.parent_folder() / folder / (NOTE + identity)


if __name__ == "__main__":
    sys.exit(prove_code(sys.argv[1]) if sys.argv[1:] else main())
