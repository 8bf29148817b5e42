"""What this machine has for the mesh: memory to offer, cores to compute on, a name.

The functions that parse take the system's text, so that every kind of machine can be tested
on any. What cannot be read is left out of account, never an error: Android hides much.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import socket
import struct
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edgellama.net.memory import OwnMemory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

MIB: Final = 1 << 20

# A process's resident memory beside its weights and KV cache, taken off the default offer.
OVERHEAD_NUMBA_BYTES: Final = 150 * MIB
OVERHEAD_NUMPY_BYTES: Final = 70 * MIB

ADDRESS_SPACE_BYTES: Final = 2 << 30  # what a 32-bit process can count on
MEMORY_UNKNOWN_BYTES: Final = 512 * MIB  # taken as available where the system says nothing
CGROUP_UNLIMITED_BYTES: Final = 1 << 60  # version 1 writes "no limit" as nearly 2**63
CGROUP_DEPTH_MAX: Final = 32

THREADS_MAX: Final = 4  # more share one memory bus, and on phones slow each other down
BIG_CORE_PERCENT: Final = 80  # of the fastest core's frequency
EQUAL_CORE_PERCENT: Final = 95  # of it: from here on equal parts of the work are done together

NAME_CHARACTERS_MAX: Final = 32
_COMMAND_TIMEOUT_S: Final = 5


class Memory(NamedTuple):
    """This machine's memory: all of it, and what is to be had without swapping."""

    total_bytes: int
    available_bytes: int


# --- memory ---------------------------------------------------------------------------------


def parse_meminfo(text: str) -> Memory | None:
    """Return the memory that Linux's ``/proc/meminfo`` tells, None when it does not."""
    values = {}
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if key in {"MemTotal", "MemAvailable"} and number.isdecimal() and unit == "kB":
            values[key] = int(number) * 1024
    if len(values) < 2:
        return None
    return Memory(values["MemTotal"], values["MemAvailable"])


def is_android() -> bool:
    """Say whether this is Android, by Python's own word or Termux's environment."""
    return sys.platform == "android" or "TERMUX_VERSION" in os.environ


def default_offer_bytes(memory: Memory, android: bool, overhead_bytes: int) -> int:
    """Return what a device offers unasked, possibly 0.

    Linux and others: 0.8 of what is available. Android's low-memory killer ends processes long
    before memory runs out, mostly those over half of it: the lesser of 0.6 of what is available
    and 0.5 of all.
    """
    if android:
        offer = min(memory.available_bytes * 6 // 10, memory.total_bytes // 2)
    else:
        offer = memory.available_bytes * 8 // 10
    if struct.calcsize("P") == 4:
        offer = min(offer, ADDRESS_SPACE_BYTES)
    return max(0, offer - overhead_bytes)


NOTHING: Final = OwnMemory(0, 0)


def ram_offer_bytes(overhead_bytes: int, held: OwnMemory = NOTHING) -> int:
    """Return what this machine offers to the model now when the person does not say.

    ``held`` is what this process holds of the model already: it is offered again.
    """
    return default_offer_bytes(machine_memory(held), is_android(), overhead_bytes)


def machine_memory(held: OwnMemory = NOTHING) -> Memory:
    """Return this machine's memory, within the limits of the process's control groups.

    What this process holds counts as available.
    """
    if sys.platform == "win32":
        memory = _windows_memory()
        if memory is not None:
            # What this process has in use is no one else's, be it made or mapped.
            total, available = memory
            memory = Memory(total, min(total, available + sum(held)))
    elif sys.platform == "darwin":
        memory = macos_memory(_macos_total_bytes(), macos_reclaimable_bytes(_c_library()), held)
    else:
        memory = parse_meminfo(_text_of(Path("/proc/meminfo")))
        if memory is not None:
            # The kernel counts files that are mapped as available, but not what was made.
            total, available = memory
            memory = Memory(total, min(total, available + held.anonymous_bytes))
            memory = within_cgroups(memory, Path("/"), held)
    return memory or Memory(MEMORY_UNKNOWN_BYTES, MEMORY_UNKNOWN_BYTES)


@functools.cache
def _macos_total_bytes() -> int | None:
    text = _output_of("/usr/sbin/sysctl", "-n", "hw.memsize").strip()
    return int(text) if text.isdecimal() else None


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def macos_memory(
    total_bytes: int | None, reclaimable_bytes: int | None, held: OwnMemory = NOTHING
) -> Memory | None:
    """Return the memory of a Mac: what it can free, three quarters of all at most.

    What macOS calls free is always next to nothing: files that nobody uses fill the rest. Where
    it does not tell what it can free, three quarters count as available; 0.8 of that are offered.
    """
    if total_bytes is None:
        return None
    most_bytes = total_bytes * 3 // 4
    if reclaimable_bytes is None or not 0 < reclaimable_bytes <= total_bytes:
        return Memory(total_bytes, most_bytes)
    return Memory(total_bytes, min(most_bytes, reclaimable_bytes + sum(held)))


class _VmStatistics(ctypes.Structure):
    """macOS's ``vm_statistics64``, in pages; those free include the speculative ones."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("free", "active", "inactive", "wired")),
        ("events", ctypes.c_uint64 * 9),
        ("purgeable", ctypes.c_uint32),
        ("speculative", ctypes.c_uint32),
        ("compressions_and_swaps", ctypes.c_uint64 * 4),
        *((name, ctypes.c_uint32) for name in ("compressor", "throttled", "external", "internal")),
        ("uncompressed_in_compressor", ctypes.c_uint64),
    )


_HOST_VM_INFO64: Final = 4


def macos_reclaimable_bytes(system: Any) -> int | None:
    """Return what macOS can give without swapping: free pages and inactive ones.

    ``system`` is the C library. None where it does not say.
    """
    pages = _VmStatistics()
    words = ctypes.c_uint32(ctypes.sizeof(pages) // 4)
    try:
        host = ctypes.c_uint32(_macos_host(system))
        kind = ctypes.c_int(_HOST_VM_INFO64)
        if system.host_statistics64(host, kind, ctypes.byref(pages), ctypes.byref(words)) != 0:
            return None
    except AttributeError:
        return None
    return int(pages.free + pages.inactive) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _macos_host(system: Any) -> int:
    # Each call hands out one more right to the port: one is enough.
    return int(system.mach_host_self())


def _windows_memory() -> Memory | None:
    if sys.platform != "win32":
        return None

    class MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load_percent", ctypes.c_ulong),
            ("total_physical", ctypes.c_ulonglong),
            ("available_physical", ctypes.c_ulonglong),
            ("unused", ctypes.c_ulonglong * 5),
        )

    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return Memory(status.total_physical, status.available_physical)


# --- control groups -------------------------------------------------------------------------


class CgroupFiles(NamedTuple):
    """What one version of control groups calls its files and the reclaimable page cache."""

    limit: str
    usage: str
    reclaimable: str  # a line of memory.stat
    in_use: str  # likewise: pages of files that somebody reads, and that could be read again


CGROUP_V2: Final = CgroupFiles("memory.max", "memory.current", "inactive_file", "active_file")
CGROUP_V1: Final = CgroupFiles(
    *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "total_active_file",
)


def parse_cgroup_paths(text: str) -> dict[CgroupFiles, PurePosixPath]:
    """Return the process's own memory groups, by version, of ``/proc/self/cgroup``."""
    paths = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator and path.startswith("/"):
            if controllers == "":
                paths[CGROUP_V2] = PurePosixPath(path)
            elif "memory" in controllers.split(","):
                paths[CGROUP_V1] = PurePosixPath(path)
    return paths


class CgroupMount(NamedTuple):
    """Where a hierarchy of groups can be seen, and which of its groups is at the top there."""

    root: PurePosixPath
    point: PurePosixPath


def parse_cgroup_mounts(text: str) -> dict[CgroupFiles, CgroupMount]:
    """Return the memory hierarchies by version, of ``/proc/self/mountinfo`` (proc(5))."""
    mounts: dict[CgroupFiles, CgroupMount] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        mount = CgroupMount(PurePosixPath(fields[3]), PurePosixPath(fields[4]))
        if kind[0] == "cgroup2":
            mounts.setdefault(CGROUP_V2, mount)
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            mounts.setdefault(CGROUP_V1, mount)
    return mounts


def within_cgroups(memory: Memory, system: Path, held: OwnMemory = NOTHING) -> Memory:
    """Return ``memory`` cut to the room in the process's memory groups and all their parents.

    ``system`` is where the system's files are: ``/``, or a copy of them in tests. What the process
    holds counts as room.
    """
    paths = parse_cgroup_paths(_text_of(system / "proc/self/cgroup"))
    mounts = parse_cgroup_mounts(_text_of(system / "proc/self/mountinfo"))
    total_bytes, available_bytes = memory
    for files in paths.keys() & mounts.keys():
        for folder in _group_folders(paths[files], mounts[files]):
            limit = _number_in(system / folder / files.limit)
            if limit is None or limit >= CGROUP_UNLIMITED_BYTES:
                continue
            usage = _number_in(system / folder / files.usage) or 0
            stat = system / folder / "memory.stat"
            usage -= _stat_bytes(stat, files.reclaimable) + held.anonymous_bytes
            usage -= min(held.mapped_bytes, _stat_bytes(stat, files.in_use))
            total_bytes = min(total_bytes, limit)
            available_bytes = min(available_bytes, max(0, limit - max(0, usage)))
    return Memory(total_bytes, available_bytes)


def _group_folders(path: PurePosixPath, mount: CgroupMount) -> Iterator[PurePosixPath]:
    """Give the folders of a group and its parents, as far as the mount shows them."""
    top = mount.point.relative_to("/")
    folder = top
    # A path that leads out is one seen from another namespace: there the top is all we see.
    if path.is_relative_to(mount.root) and ".." not in path.parts:
        folder = top / path.relative_to(mount.root)
    for _ in range(CGROUP_DEPTH_MAX):
        yield folder
        if folder == top:
            return
        folder = folder.parent


def _stat_bytes(stat: Path, wanted: str) -> int:
    for line in _text_of(stat).splitlines():
        key, _, value = line.partition(" ")
        if key == wanted and value.isdecimal():
            return int(value)
    return 0


def _number_in(path: Path) -> int | None:
    text = _text_of(path).strip()
    return int(text) if text.isdecimal() else None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (a constant command, no shell)
            command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


# --- cores ----------------------------------------------------------------------------------


@functools.cache
def usable_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs on which this process may run, as it was at the first call.

    Later the threads that compute are kept on fewer.
    """
    if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def big_cores(cpus: Collection[int], speeds: Mapping[int, int]) -> frozenset[int]:
    """Return those of ``cpus`` whose speed is within BIG_CORE_PERCENT of the fastest's.

    A thread on a little core holds up all others at each barrier. Where the speed of any is
    not known, all count as equal.
    """
    if not cpus or not all(speeds.get(cpu, 0) > 0 for cpu in cpus):
        return frozenset(cpus)
    fastest = max(speeds[cpu] for cpu in cpus)
    return frozenset(cpu for cpu in cpus if speeds[cpu] * 100 >= fastest * BIG_CORE_PERCENT)


def cpu_speeds(cpus: Collection[int], system: Path) -> dict[int, int]:
    """Return each CPU's greatest frequency in kHz, or its capacity where that is all there is."""
    folder = system / "sys/devices/system/cpu"
    for name in ("cpufreq/cpuinfo_max_freq", "cpu_capacity"):
        speeds = {cpu: _number_in(folder / f"cpu{cpu}" / name) for cpu in cpus}
        known = {cpu: speed for cpu, speed in speeds.items() if speed is not None}
        if len(known) == len(cpus):
            return known
    return {}


class Cores(NamedTuple):
    """On what this device computes: so many threads, on these CPUs, of one speed or not."""

    threads: int
    cpus: frozenset[int]  # empty: any, because there are no better and worse ones
    equal: bool


def chosen_cores(cpus: Collection[int], speeds: Mapping[int, int], threads: int | None) -> Cores:
    """Return what to compute on: the big cores, at most THREADS_MAX threads.

    A person's own number of ``threads`` takes the fastest cores there are, little ones too where
    it needs them.
    """
    chosen = big_cores(cpus, speeds)
    count = threads or max(1, min(len(chosen), THREADS_MAX))
    by_speed = sorted(cpus, key=lambda cpu: (-speeds.get(cpu, 0), cpu))
    chosen |= frozenset(by_speed[:count])
    slowest, fastest = (pick((speeds.get(c, 0) for c in chosen), default=0) for pick in (min, max))
    equal = slowest * 100 >= fastest * EQUAL_CORE_PERCENT
    return Cores(count, frozenset() if chosen == frozenset(cpus) else chosen, equal)


def compute_cores(threads: int | None = None) -> Cores:
    """Return what this machine computes on; ``threads`` is what a person asked for."""
    cpus = usable_cpus()
    return chosen_cores(cpus, cpu_speeds(cpus, Path("/")), threads)


def threads_default() -> int:
    """Return how many threads compute when the person does not say: big cores, at most 4."""
    return compute_cores().threads


# --- name -----------------------------------------------------------------------------------


def clean_name(text: str) -> str:
    """Return ``text`` as a device's name: printable, one line, at most 32 characters.

    Runs of anything else become one space; empty when nothing is left.
    """
    printable = "".join(char if char.isprintable() else " " for char in text[:1024])
    return " ".join(printable.split())[:NAME_CHARACTERS_MAX].rstrip()


def device_name(chosen: str = "") -> str:
    """Return this device's name: the chosen one, its host name without the domain, or a model."""
    if name := clean_name(chosen):
        return name
    host = clean_name(socket.gethostname().partition(".")[0])
    if host and host.lower() != "localhost":
        return host
    # Every Android is called localhost. Python 3.13 and later know the model.
    version = getattr(platform, "android_ver", None)
    model = clean_name(version().model) if version is not None and is_android() else ""
    return model or ("phone" if is_android() else "device")
