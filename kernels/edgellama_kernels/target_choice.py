"""What LLVM is told of this CPU, decided before numba is imported.

On x86 LLVM asks the CPU itself. On ARM it reads names from a table that new phones are not in,
and believes lists of features that phones get wrong: code for an extension that is listed and
switched off ends the process. So there only what every core lists and the kernels use is named.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAME, FEATURES = "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"
UNKNOWN = "generic"  # LLVM's name for a CPU that it does not know, and for one without extensions
CPUINFO = Path("/proc/cpuinfo")
CPUINFO_BYTES_MAX = 1 << 20  # hundreds of cores
# Lines of it that stay the same while a device runs: clock rates and counters do not.
_LASTING = {"flags", "model name", "Features", "CPU implementer", "CPU part", "CPU variant"}


def read_cpuinfo() -> str:
    """Return the kernel's text about the CPUs, or nothing where there is none."""
    with suppress(OSError), CPUINFO.open("rb") as file:
        return file.read(CPUINFO_BYTES_MAX).decode("utf-8", "replace")
    return ""


def conservative_features(cpuinfo: str) -> str:
    """Return LLVM's names for what every core of an ARM device lists, as far as it is used here.

    Never SVE and never i8mm: some devices list them and fault.
    """
    lists = [set(words) for name, words in _fields(cpuinfo) if name == "Features"]
    every = set.intersection(*lists) if lists else set()
    return "+neon,+dotprod" if "asimddp" in every else "+neon"


def _fields(cpuinfo: str) -> list[tuple[str, list[str]]]:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return [(name.strip(), text.split()) for name, _, text in lines]


def is_arm() -> bool:
    """Return whether this is a 64-bit ARM process on Linux or Android."""
    machine = platform.machine() in ("aarch64", "arm64") and sys.maxsize > 1 << 32
    return machine and sys.platform in ("linux", "android")


def choice(cpuinfo: str, is_android: bool, name_of_llvm: Callable[[], str]) -> dict[str, str]:
    """Return the variables of numba's that say what an ARM device compiles for."""
    features = conservative_features(cpuinfo)
    if is_android or name_of_llvm() == UNKNOWN:
        return {NAME: UNKNOWN, FEATURES: features}
    # LLVM knows the part, and with its name what order of instructions suits it.
    return {FEATURES: f"{features},-sve"}


def prepare(kept: Mapping[str, str] | None) -> None:
    """Set the variables for this process: the user's own, else kept ones, else a choice.

    ``kept`` are those with which the kernels of this device have been compiled and proven.
    """
    if NAME in os.environ or FEATURES in os.environ:
        return
    if kept is not None:
        os.environ.update(kept)
    elif is_arm():
        os.environ.update(choice(read_cpuinfo(), sys.platform == "android", _name_of_llvm))


def _name_of_llvm() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


def variables() -> dict[str, str]:
    """Return the variables as they are set now."""
    return {name: os.environ[name] for name in (NAME, FEATURES) if name in os.environ}


def attempts() -> list[dict[str, str]]:
    """Return what to compile with, best first: the own choice, then what any such CPU can do."""
    if variables():
        return [{}]  # the user's word
    return [{}, {NAME: UNKNOWN, FEATURES: "+neon" if is_arm() else ""}]


def identity(cpuinfo: str) -> str:
    """Return a name for all that decides whether compiled kernels are good here."""
    lines = {f"{name} {' '.join(words)}" for name, words in _fields(cpuinfo) if name in _LASTING}
    parts = [platform.machine(), platform.processor(), str(sys.implementation.cache_tag)]
    for package in ("numba", "llvmlite"):
        with suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{package} {importlib.metadata.version(package)}")
    return hashlib.sha256("\n".join([*parts, *sorted(lines)]).encode()).hexdigest()[:16]
