"""Memory of this very process: what it holds, and what the system may have back meanwhile."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p \S+ \S+ \d+\s*(.*)")
_FIRST_LINE: Final = re.compile(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )")  # of each mapping
_CLEAN: Final = re.compile(r"(?m)^Anonymous: +0 kB$")
_MADV_DONTNEED: Final = 4  # Linux, every architecture that Python runs on


class OwnMemory(NamedTuple):
    """Resident bytes of a process: made by it, and mapped from files."""

    anonymous_bytes: int
    mapped_bytes: int

    def grown_since(self, before: OwnMemory) -> OwnMemory:
        """Return what has come since; what went counts as nothing."""
        return OwnMemory(*(max(0, now - then) for now, then in zip(self, before, strict=True)))


def parse_own_memory(text: str) -> OwnMemory | None:
    """Return what Linux's ``/proc/self/status`` tells, None when it does not."""
    values = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if key in {"RssAnon", "RssFile"} and number.isdecimal() and unit == "kB":
            values[key] = int(number) * 1024
    return OwnMemory(values["RssAnon"], values["RssFile"]) if len(values) == 2 else None


def own_memory() -> OwnMemory | None:
    """Return what this process holds, None where the system does not say."""
    if sys.platform == "darwin":
        return macos_own_memory(ctypes.CDLL(None), os.getpid())
    if sys.platform == "win32":
        return windows_own_memory(ctypes.windll.kernel32)
    try:
        return parse_own_memory(Path("/proc/self/status").read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return None


class _UsageInfo(ctypes.Structure):
    """The beginning of macOS's ``rusage_info_v0``."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("times_and_wakeups", ctypes.c_uint64 * 5),
        ("wired_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("physical_footprint", ctypes.c_uint64),
        ("start_and_exit", ctypes.c_uint64 * 2),
    )


def macos_own_memory(system: Any, pid: int) -> OwnMemory | None:
    """Return what macOS tells of a process; ``system`` is its C library.

    The footprint is what the process has made; the rest of its resident pages are files'.
    """
    info = _UsageInfo()
    try:
        if system.proc_pid_rusage(ctypes.c_int(pid), ctypes.c_int(0), ctypes.byref(info)) != 0:
            return None
    except AttributeError:
        return None
    made = min(info.physical_footprint, info.resident_size)
    return OwnMemory(made, info.resident_size - made)


class _ProcessCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS_EX of the Windows API."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("working_set_peak", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("pools_and_page_files", ctypes.c_size_t * 6),
        ("private_usage", ctypes.c_size_t),
    )


def windows_own_memory(kernel: Any) -> OwnMemory | None:
    """Return what Windows tells of this process; ``kernel`` is its library kernel32."""
    counters = _ProcessCounters(size=ctypes.sizeof(_ProcessCounters))
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    this = ctypes.c_void_p(kernel.GetCurrentProcess())
    size = ctypes.c_uint32(counters.size)
    if not kernel.K32GetProcessMemoryInfo(this, ctypes.byref(counters), size):
        return None
    made = min(counters.private_usage, counters.working_set)
    return OwnMemory(made, counters.working_set - made)


def release_code_of(library: str) -> int:
    """Give back the pages of a library's code and constants; return how many bytes were mapped.

    They are clean copies of the file and come back by themselves when they are used again; what
    the loader has written to stays. Of numba's compiler that is some 50 MB that lie idle once the
    kernels are there. Linux only; elsewhere, and where the system refuses, nothing happens.
    """
    if not sys.platform.startswith(("linux", "android")):
        return 0
    released = 0
    try:
        text = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
        libc = ctypes.CDLL(None)
        for mapping in _FIRST_LINE.split(text):
            match = _MAPPING.match(mapping)
            if not (match and Path(match[3]).name.startswith(library) and _CLEAN.search(mapping)):
                continue
            first, past = int(match[1], 16), int(match[2], 16)
            start, length = ctypes.c_void_p(first), ctypes.c_size_t(past - first)
            if libc.madvise(start, length, _MADV_DONTNEED) == 0:
                released += past - first
    except (OSError, AttributeError):  # no /proc, no madvise
        return released
    return released


def release_freed() -> None:
    """Give back memory that was freed and that the C library keeps for later: glibc alone does.

    It keeps more of it the larger the arrays are that come and go, for each thread apart.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
