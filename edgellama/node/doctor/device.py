"""Checks of this device by itself: programs, folders, memory, the platform's own snares."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from edgellama.mesh.wellbeing import complaint
from edgellama.node.doctor.findings import FAIL, WARN, Finding, fine
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgellama.mesh.wellbeing import Reading
    from edgellama.net.host_report import FolderReport, HostReport, TermuxReport

DISK_FEW_BYTES: Final = 1 << 30
DISK_NONE_BYTES: Final = 64 << 20
OFFER_FEW_BYTES: Final = 256 << 20
WINDOW_FEW_PACKETS: Final = (
    256  # a prompt's chunk of 32 rows at a width of 4096 is some 230 packets
)
BUFFER_WANTED_BYTES: Final = 4 << 20
KERNELS_64: Final = ("aarch64", "arm64", "x86_64", "amd64")
SHARED_STORAGE: Final = re.compile(r"^(/sdcard|/storage/|/mnt/sdcard|/data/media)")

# Which numba belongs to which llvmlite, and below which NumPy it works.
NUMBA_OF_LLVMLITE: Final = {
    "0.47": ("0.65", "2.5"),
    "0.48": ("0.66", "2.5"),
    "0.49": ("0.67", "2.6"),
    "0.50": ("0.68", "2.6"),
}


def check_device(host: HostReport) -> list[Finding]:
    """Return what can be said of this device alone."""
    findings = [_programs(host), _kernels(host)]
    findings.extend(_folder(folder, host) for folder in host.folders)
    findings.append(_memory(host))
    findings.append(_receive_buffer(host))
    findings.append(_power(host.power))
    if host.termux is not None:
        findings.extend(_termux(host.termux))
    return findings


def _programs(host: HostReport) -> Finding:
    text = f"edgellama {host.release} on Python {host.python}, {host.system} {host.machine}"
    if host.pointer_bits == 32 and host.machine.lower() in KERNELS_64:
        return Finding(
            "programs",
            WARN,
            f"{text}: a 64-bit kernel with 32-bit programs",
            "install the 64-bit system: compiled kernels and more than 2 GiB need it",
        )
    return fine("programs", text)


def _kernels(host: HostReport) -> Finding:
    """Say whether compiled kernels can be had, and how exactly."""
    packages = host.packages
    if "numba" in packages:
        return _numba_with(host, packages["numba"])
    if "numpy" not in packages:
        return Finding("kernels", FAIL, "NumPy is not installed", "install it: pip install numpy")
    text = "numba is not installed: NumPy computes the same answer, some ten times more slowly"
    if host.pointer_bits == 32:
        return Finding("kernels", WARN, text, "there is no numba for 32-bit programs")
    if not host.is_android:
        return Finding("kernels", WARN, text, "pip install numba")
    return Finding("kernels", WARN, text, numba_line(packages))


def numba_line(packages: Mapping[str, str]) -> str:
    """Return the commands that install the numba that fits what Termux has."""
    llvmlite, numpy = packages.get("llvmlite", ""), packages.get("numpy", "")
    if not llvmlite:
        return (
            "pkg install python-llvmlite clang, and ask again: the numba to install depends on it"
        )
    pair = NUMBA_OF_LLVMLITE.get(_minor(llvmlite))
    if pair is None:
        return f"no numba is known that fits llvmlite {llvmlite}: stay with NumPy"
    numba, numpy_below = pair
    if numpy and _numbers(numpy) >= _numbers(numpy_below):
        return f"numba {numba} needs NumPy below {numpy_below}, here is {numpy}: stay with NumPy"
    return (
        f'pkg install clang && pip install --no-build-isolation "numba=={numba}.*" '
        f'"llvmlite=={llvmlite}" "numpy=={numpy}"'
    )


def _numba_with(host: HostReport, numba: str) -> Finding:
    """Say whether the numba that is installed fits what it is installed with."""
    llvmlite, numpy = host.packages.get("llvmlite", ""), host.packages.get("numpy", "")
    text = f"numba {numba}, llvmlite {llvmlite or 'missing'}, NumPy {numpy or 'missing'}"
    pair = NUMBA_OF_LLVMLITE.get(_minor(llvmlite)) if llvmlite else None
    if not llvmlite:
        return Finding("kernels", WARN, text, f'pip install "llvmlite" "numba=={numba}"')
    if pair is not None and pair[0] != _minor(numba):
        return Finding(
            "kernels",
            WARN,
            f"{text}: they do not belong together",
            f'pip install "numba=={pair[0]}.*" "llvmlite=={llvmlite}"',
        )
    if pair is not None and numpy and _numbers(numpy) >= _numbers(pair[1]):
        return Finding(
            "kernels",
            WARN,
            f"{text}: this NumPy is too new for it",
            f'pip install "numpy<{pair[1]}" "numba=={numba}"',
        )
    return fine("kernels", text)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _folder(folder: FolderReport, host: HostReport) -> Finding:
    check = f"folder of {folder.name}"
    if folder.fault:
        return Finding(
            check,
            FAIL,
            f"cannot be written: {folder.fault}",
            "give it to this user, or name another with EDGELLAMA_HOME",
        )
    if host.is_android and SHARED_STORAGE.match(folder.path):
        return Finding(
            check,
            WARN,
            f"{folder.path} is on Android's shared storage, which has neither locks nor programs",
            "keep it in Termux's own home: unset EDGELLAMA_HOME",
        )
    if folder.free_bytes < 0:
        return fine(check, folder.path)
    free = f"{folder.path}, {format_size(folder.free_bytes)} free"
    if folder.free_bytes < DISK_NONE_BYTES:
        return Finding(check, FAIL, f"{free}: the disk is full", "make room on it")
    if folder.free_bytes < DISK_FEW_BYTES and "model" in folder.name:
        return Finding(check, WARN, f"{free}: little for a model's layers", "make room on it")
    return fine(check, free)


def _memory(host: HostReport) -> Finding:
    total, available = host.memory
    share = (
        "the lesser of 0.6 of it and half of all, as Android ends programs that take more"
        if host.is_android
        else "0.8 of it"
    )
    of_it = f"{format_size(available)} of {format_size(total)} can be had"
    text = (
        f"offers {format_size(host.offer_bytes)}: {of_it}; {share}, less what a node itself takes"
    )
    if host.offer_bytes < OFFER_FEW_BYTES:
        return Finding(
            "memory",
            WARN if host.offer_bytes else FAIL,
            text,
            "end other programs, or say what the model may use with join --ram",
        )
    return fine("memory", text)


def _power(reading: Reading) -> Finding:
    """Say what a member here would do by its battery and its heat."""
    parts = []
    if reading.percent is not None:
        plugged = ", plugged in" if reading.is_plugged else ""
        parts.append(f"battery at {reading.percent:.0f} %{plugged}")
    if reading.battery_c is not None:
        parts.append(f"battery at {reading.battery_c:.0f} °C")
    if reading.chip_margin_c is not None:
        parts.append(f"{reading.chip_margin_c:.0f} °C below where the system would act on heat")
    text = "; ".join(parts) or "nothing is known of a battery or of heat"
    if complaint(reading, chip_counts=True):
        advice = "plug it in, let it cool, or join with --stay"
        return Finding("battery and heat", WARN, f"{text}: it would hold no layers", advice)
    return fine("battery and heat", text)


def _receive_buffer(host: HostReport) -> Finding:
    text = (
        f"{format_size(host.receive_buffer_bytes)} for datagrams that come in, "
        f"{host.window_packets} packets"
    )
    if host.window_packets >= WINDOW_FEW_PACKETS or host.is_android:
        return fine("receive buffer", text)
    advice = "the system allows no more; prompts travel in smaller pieces"
    if host.system == "linux":
        advice = (
            f"prompts travel faster with sudo sysctl -w net.core.rmem_max={BUFFER_WANTED_BYTES}"
        )
    return Finding("receive buffer", WARN, text, advice)


def _termux(termux: TermuxReport) -> list[Finding]:
    findings = []
    source = termux.source.upper()
    if "PLAY" in source:
        findings.append(
            Finding(
                "Termux",
                FAIL,
                f"{termux.version} of the Play Store: newer Androids keep it off the home network",
                "install Termux from F-Droid or GitHub instead",
            )
        )
    else:
        findings.append(fine("Termux", f"{termux.version}{_from(termux.source)}"))
    if termux.has_wake_lock:
        text = (
            "termux-wake-lock is there; run it before join, and take Termux out of battery saving"
        )
        findings.append(fine("staying awake", text))
    else:
        findings.append(
            Finding(
                "staying awake",
                WARN,
                "termux-wake-lock is not there, so the phone may sleep in the middle of an answer",
                "update Termux; keep it in front, plugged in, and out of battery optimisation",
            )
        )
    if termux.orphans:
        findings.append(
            Finding(
                "Termux packages",
                WARN,
                f"packages for another Python lie in {termux.orphans[0]}",
                "after an upgrade of Python install edgellama's packages again",
            )
        )
    return findings


def _from(source: str) -> str:
    return f" from {source}" if source else ""
