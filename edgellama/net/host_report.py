"""What ``edgellama doctor`` looks at on this device, gathered without changing anything.

Everything that cannot be read is left out: Android hides much, and each system has its own places.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import edgellama
from edgellama.mesh.wellbeing import NO_READING, Reading
from edgellama.net.facts import Memory, default_offer_bytes, is_android, machine_memory
from edgellama.net.firewall import FirewallReport, firewall_report
from edgellama.net.interfaces import HostAddress, host_addresses, lan_addresses, route_address
from edgellama.net.power import power_sources, read_power
from edgellama.net.udp import UdpSocket

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgellama.net.paths import StatePaths

PACKAGES: Final = ("numpy", "numba", "llvmlite", "lz4", "zeroconf", "msgpack", "cryptography")


@dataclass(frozen=True)
class FolderReport:
    """A folder of this device's: why it cannot be written (empty: it can), and room on its disk."""

    name: str  # what is kept there
    path: str
    fault: str
    free_bytes: int


@dataclass(frozen=True)
class TermuxReport:
    """The Termux that this runs in; ``source`` is where its app came from, as it says itself."""

    version: str
    source: str
    has_wake_lock: bool  # the command is there
    orphans: tuple[str, ...]  # other Pythons' folders that hold packages of ours


@dataclass(frozen=True)
class HostReport:
    """This device, as far as it can be seen from inside."""

    system: str  # sys.platform
    is_android: bool
    machine: str  # of the kernel: aarch64, x86_64
    pointer_bits: int  # of the programs
    python: str
    release: str
    packages: Mapping[str, str]  # version by name; what is not installed is missing
    termux: TermuxReport | None
    folders: tuple[FolderReport, ...]
    memory: Memory
    offer_bytes: int
    addresses: tuple[HostAddress, ...]
    route: str | None  # this host's address towards the world
    lan: tuple[str, ...]  # addresses that the mesh would use
    receive_buffer_bytes: int
    window_packets: int
    firewall: FirewallReport
    joined_at: str = ""  # where the member that runs here listens
    node: str = ""  # this device's identity; empty before its first join
    incarnation: int = 0  # of its last start
    power: Reading = NO_READING  # of battery and heat


def host_report(paths: StatePaths, overhead_bytes: int) -> HostReport:
    """Look at this device. ``overhead_bytes`` is what a node takes beside its layers."""
    buffer_bytes, window_packets = _receive_buffer()
    memory = machine_memory()
    running = paths.running()
    node, incarnation = paths.peek_identity()
    return HostReport(
        system=sys.platform,
        is_android=is_android(),
        machine=platform.machine(),
        pointer_bits=8 * struct.calcsize("P"),
        python=platform.python_version(),
        release=edgellama.__version__,
        packages=package_versions(PACKAGES),
        termux=_termux(os.environ),
        folders=tuple(_folder(name, path) for name, path in _kept(paths)),
        memory=memory,
        offer_bytes=default_offer_bytes(memory, is_android(), overhead_bytes),
        addresses=tuple(host_addresses()),
        route=route_address(),
        lan=tuple(lan_addresses()),
        receive_buffer_bytes=buffer_bytes,
        window_packets=window_packets,
        firewall=firewall_report(),
        joined_at=str(running) if running else "",
        node=node,
        incarnation=incarnation,
        power=read_power(power_sources()),
    )


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those that are installed, without importing them."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, OSError, ValueError, KeyError):
            continue
    return versions


def _kept(paths: StatePaths) -> list[tuple[str, Path]]:
    return [
        ("identity and peers", paths.state),
        ("compiled kernels and packed weights", paths.cache),
        ("models and fetched weights", paths.data),
    ]


def _folder(name: str, path: Path) -> FolderReport:
    """Try the folder, or where it would be made, without making it."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    fault = ""
    try:
        if not there.is_dir():
            fault = f"{there} is no folder"
        else:
            with tempfile.TemporaryFile(dir=there):
                pass
    except OSError as error:
        fault = f"{there}: {error.strerror or error}"
    try:
        free_bytes = shutil.disk_usage(there).free
    except OSError:
        free_bytes = -1
    return FolderReport(name, str(path), fault, free_bytes)


def _receive_buffer() -> tuple[int, int]:
    """Return what the system grants a socket of ours, in bytes and in packets."""
    with UdpSocket("", 0) as probe:
        return probe.receive_buffer_bytes, probe.window_packets


def _termux(environment: Mapping[str, str]) -> TermuxReport | None:
    version = environment.get("TERMUX_VERSION", "")
    prefix = environment.get("PREFIX", "")
    if not version and "com.termux" not in prefix:
        return None
    return TermuxReport(
        version or "unknown",
        environment.get("TERMUX_APK_RELEASE", ""),
        shutil.which("termux-wake-lock") is not None,
        orphaned_packages(Path(prefix) / "lib"),
    )


def orphaned_packages(library: Path) -> tuple[str, ...]:
    """Return folders of other Pythons with packages of ours, which an upgrade has left behind."""
    here = f"python{sys.version_info.major}.{sys.version_info.minor}"
    orphans = []
    try:
        for folder in sorted(library.glob("python3.*")):
            packages = folder / "site-packages"
            if folder.name != here and any((packages / name).is_dir() for name in PACKAGES[1:]):
                orphans.append(str(packages))
    except OSError:
        return ()
    return tuple(orphans)
