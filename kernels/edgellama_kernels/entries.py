"""The compiled functions that Python calls: from kept machine code where there is some, else numba.

Nothing here imports numba unless it has to compile or to find what only numba has kept.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from edgellama_kernels import machine_code, warming

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Function = Callable[..., int]

ARGUMENTS = {"run": 10, "pack_rows": 9, "unpack_rows": 9, "read_memory": 3}


class Entries(NamedTuple):
    """``program.run``, ``row_codec_kernels``' two, and ``bandwidth_kernel``'s, all of int64.

    ``note``: one line for a person where what is compiled cannot be kept.
    """

    note: str | None
    run: Function
    pack_rows: Function
    unpack_rows: Function
    read_memory: Function


_in_use: list[Entries] = []


def entries() -> Entries:
    """Return the functions; the first call decides from where. ImportError without numba."""
    if not _in_use:
        _in_use.append(kept() or Entries(_cache_note(), *numba_kernels().values()))
    return _in_use[0]


def use(code: bytes) -> None:
    """Use machine code that is not kept yet; before anything else asked for the functions."""
    assert not _in_use
    _in_use.append(Entries(None, *machine_code.load(code, ARGUMENTS).values()))


def kept() -> Entries | None:
    """Return the functions from the kept machine code; None where there is none for this CPU."""
    if not warming.is_warm():
        return None
    wanted = warming.kept_code_hash()
    if not wanted:
        return None
    with suppress(OSError, ImportError, LookupError):
        code = warming.code_file().read_bytes()
        if hashlib.sha256(code).hexdigest() == wanted:
            return Entries(None, *machine_code.load(code, ARGUMENTS).values())
    return None


def numba_kernels() -> dict[str, Any]:
    """Return the same functions as numba's, which compiles or loads each at its first call."""
    from edgellama_kernels import bandwidth_kernel, program, row_codec_kernels

    codec = row_codec_kernels
    found = {"run": program.run, "pack_rows": codec.pack_rows, "unpack_rows": codec.unpack_rows}
    return {**found, "read_memory": bandwidth_kernel.read_memory}


def _cache_note() -> str | None:
    from edgellama_kernels.jit import CACHE_NOTE

    return CACHE_NOTE
