"""Memory that the system may have back while a node serves."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Final

_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ \d+\s*(.*)")
_MADV_DONTNEED: Final = 4  # Linux, every architecture that Python runs on


def release_code_of(library: str) -> int:
    """Give back the pages of a library's machine code; return how many bytes were mapped.

    They are clean copies of the file and come back by themselves when the code runs again. Of
    numba's compiler that is some 50 MB that lie idle once the kernels are there. Linux only;
    elsewhere, and where the system refuses, nothing happens.
    """
    if not sys.platform.startswith(("linux", "android")):
        return 0
    released = 0
    try:
        mappings = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        libc = ctypes.CDLL(None)
        for match in map(_MAPPING.match, mappings.splitlines()):
            if match and Path(match[3]).name.startswith(library):
                first, past = int(match[1], 16), int(match[2], 16)
                start, length = ctypes.c_void_p(first), ctypes.c_size_t(past - first)
                if libc.madvise(start, length, _MADV_DONTNEED) == 0:
                    released += past - first
    except (OSError, AttributeError):  # no /proc, no madvise
        return released
    return released
