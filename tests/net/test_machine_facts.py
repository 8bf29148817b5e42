"""Memory, cores and names, of machines that are not this one."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.net import facts
from edgellama.net.facts import (
    CGROUP_V1,
    CGROUP_V2,
    CgroupMount,
    Memory,
    big_cores,
    clean_name,
    cpu_speeds,
    default_offer_bytes,
    macos_memory,
    macos_reclaimable_bytes,
    parse_cgroup_mounts,
    parse_cgroup_paths,
    parse_meminfo,
    within_cgroups,
)
from edgellama.net.memory import OwnMemory

GIB = 1 << 30
MEMINFO = """\
MemTotal:        3884708 kB
MemFree:          123456 kB
MemAvailable:    1258291 kB
Buffers:             476 kB
HugePages_Total:       0
SwapTotal:       4194300 kB
"""


def test_meminfo() -> None:
    assert parse_meminfo(MEMINFO) == Memory(3884708 * 1024, 1258291 * 1024)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MemTotal: 5 kB\n",
        "MemTotal: x kB\nMemAvailable: 1 kB",
        "MemTotal:\nMemAvailable:\n",
        "MemTotal: -5 kB\nMemAvailable: 3 kB",
        "MemTotal: 5 MB\nMemAvailable: 3 kB",
    ],
)
def test_meminfo_that_tells_nothing(text: str) -> None:
    assert parse_meminfo(text) is None


@pytest.mark.parametrize(
    ("memory", "android", "overhead", "offer"),
    [
        (Memory(16 * GIB, 10 * GIB), False, 0, 8 * GIB),
        (Memory(16 * GIB, 10 * GIB), False, GIB, 7 * GIB),
        (Memory(8 * GIB, 5 * GIB), True, 0, 3 * GIB),
        (Memory(4 * GIB, 4 * GIB), True, 0, 2 * GIB),
        (Memory(GIB, 100), False, 1000, 0),
    ],
)
def test_default_offer(
    memory: Memory, android: bool, overhead: int, offer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(struct, "calcsize", lambda text: 8)
    assert default_offer_bytes(memory, android, overhead) == offer


def test_a_32_bit_process_offers_what_it_can_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(struct, "calcsize", lambda text: 4)
    assert default_offer_bytes(Memory(8 * GIB, 8 * GIB), False, GIB) == GIB


@pytest.mark.parametrize(
    ("reclaimable", "held", "available"),
    [
        (None, (0, 0), 6 * GIB),  # it does not say
        (0, (0, 0), 6 * GIB),
        (9 * GIB, (0, 0), 6 * GIB),  # more than there is: no number of pages
        (2 * GIB, (0, 0), 2 * GIB),
        (7 * GIB, (0, 0), 6 * GIB),
        (GIB, (GIB, 2 * GIB), 4 * GIB),  # what this process holds is offered again
        (4 * GIB, (GIB, 2 * GIB), 6 * GIB),
    ],
)
def test_macos(reclaimable: int | None, held: tuple[int, int], available: int) -> None:
    memory = macos_memory(8 * GIB, reclaimable, OwnMemory(*held))
    assert memory == Memory(8 * GIB, available)


def test_a_mac_that_does_not_say_how_much_it_has() -> None:
    assert macos_memory(None, GIB) is None


class MacOS:
    """The words of macOS's C library that tell of memory, with the struct as its header has it."""

    def __init__(self, fault: int = 0) -> None:
        self.fault = fault

    def mach_host_self(self) -> int:
        return 2563

    def host_statistics64(self, host: Any, kind: Any, pages: Any, words: Any) -> int:
        assert (host.value, kind.value, words._obj.value) == (2563, 4, 38)
        # free, active, inactive, wired; nine events; purgeable, speculative; and so on
        said = struct.pack("4I9Q2I4Q4IQ", 1000, 7, 500, 9, *range(9), 3, 4, *range(4), *[5] * 5)
        ctypes.memmove(ctypes.byref(pages._obj), said, len(said))
        return self.fault


def test_what_macos_can_free() -> None:
    assert macos_reclaimable_bytes(MacOS()) == 1500 * os.sysconf("SC_PAGE_SIZE")
    assert macos_reclaimable_bytes(MacOS(fault=4)) is None
    assert macos_reclaimable_bytes(object()) is None


def test_a_mac_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(facts, "_macos_total_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(facts, "_c_library", lambda: None)
    for free_bytes in (3 * GIB, 2 * GIB):
        monkeypatch.setattr(facts, "macos_reclaimable_bytes", lambda _, free=free_bytes: free)
        assert facts.ram_offer_bytes(0) == free_bytes * 8 // 10


def test_windows_offers_again_what_this_process_has_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(facts, "_windows_memory", lambda: Memory(8 * GIB, 2 * GIB))
    assert facts.machine_memory(OwnMemory(GIB, 3 * GIB)) == Memory(8 * GIB, 6 * GIB)
    assert facts.machine_memory(OwnMemory(6 * GIB, GIB)) == Memory(8 * GIB, 8 * GIB)


def test_this_machine_offers_something_between_nothing_and_all() -> None:
    memory = facts.machine_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes
    assert 0 <= facts.ram_offer_bytes(facts.OVERHEAD_NUMBA_BYTES) < memory.total_bytes


@pytest.mark.parametrize(("platform_name", "expected"), [("android", True), ("linux", False)])
def test_android_by_platform(
    platform_name: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TERMUX_VERSION", raising=False)
    monkeypatch.setattr(sys, "platform", platform_name)
    assert facts.is_android() == expected
    monkeypatch.setenv("TERMUX_VERSION", "0.119")
    assert facts.is_android()


# --- control groups -------------------------------------------------------------------------

V2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


def test_paths_of_both_versions() -> None:
    text = "12:cpu,cpuacct:/a\n4:memory:/docker/abc\n1:name=systemd:/b\n0::/user.slice/x.scope\n"
    assert parse_cgroup_paths(text) == {
        CGROUP_V1: PurePosixPath("/docker/abc"),
        CGROUP_V2: PurePosixPath("/user.slice/x.scope"),
    }


@pytest.mark.parametrize("text", ["", "\n", "0:", "0::", "x", "4:memory:relative"])
def test_paths_that_are_none(text: str) -> None:
    assert parse_cgroup_paths(text) == {}


def test_mounts_of_both_versions() -> None:
    cpu = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    short = "32 31 0:29\n - \n32 31 0:29 / /x rw - cgroup2\n"
    assert parse_cgroup_mounts(short + cpu + V1_MOUNT + V2_MOUNT) == {
        CGROUP_V1: CgroupMount(PurePosixPath("/"), PurePosixPath("/sys/fs/cgroup/memory")),
        CGROUP_V2: CgroupMount(PurePosixPath("/"), PurePosixPath("/sys/fs/cgroup")),
    }


def write(system: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return system


HOST = Memory(16 * GIB, 12 * GIB)


def test_version_2_honours_the_narrowest_of_all_parents(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/session.scope\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/user.slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.stat": f"anon {GIB}\ninactive_file {GIB}\n",
            "sys/fs/cgroup/user.slice/session.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/session.scope/memory.current": "5000\n",
        },
    )
    assert within_cgroups(HOST, system) == Memory(4 * GIB, 2 * GIB)


def test_version_1_with_its_own_names(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory"
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/node/a\n0::/\n",
            "proc/self/mountinfo": V1_MOUNT,
            f"{folder}/memory.limit_in_bytes": "9223372036854771712\n",
            f"{folder}/memory.usage_in_bytes": f"{15 * GIB}\n",
            f"{folder}/node/memory.limit_in_bytes": "9223372036854771712\n",
            f"{folder}/node/a/memory.limit_in_bytes": f"{GIB}\n",
            f"{folder}/node/a/memory.usage_in_bytes": "1000\n",
            f"{folder}/node/a/memory.stat": "inactive_file 7\ntotal_inactive_file 400\n",
        },
    )
    assert within_cgroups(HOST, system) == Memory(GIB, GIB - 600)


def test_what_the_process_holds_itself_counts_as_room(tmp_path: Path) -> None:
    """What it made, and what it maps as far as that counts as in use."""
    folder = "sys/fs/cgroup/memory"
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/a\n",
            "proc/self/mountinfo": V1_MOUNT,
            f"{folder}/a/memory.limit_in_bytes": f"{GIB}\n",
            f"{folder}/a/memory.usage_in_bytes": "1000000\n",
            f"{folder}/a/memory.stat": "total_inactive_file 400\ntotal_active_file 5000\n",
        },
    )
    for held, used in [
        (OwnMemory(0, 0), 999_600),
        (OwnMemory(90_000, 0), 909_600),
        (OwnMemory(90_000, 3000), 906_600),
        (OwnMemory(0, 70_000), 994_600),
        (OwnMemory(2_000_000, 0), 0),
    ]:
        assert within_cgroups(HOST, system, held) == Memory(GIB, GIB - used)


def test_a_container_sees_its_group_at_the_top_of_the_mount(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n",
            "proc/self/mountinfo": V1_MOUNT.replace(" / ", " /docker/abc "),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        },
    )
    assert within_cgroups(HOST, system) == Memory(GIB, GIB)
    write(system, {"proc/self/cgroup": "4:memory:/elsewhere\n"})
    assert within_cgroups(HOST, system) == Memory(GIB, GIB)


def test_a_full_group_leaves_nothing_and_never_less(tmp_path: Path) -> None:
    system = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/memory.max": "1000\n",
            "sys/fs/cgroup/memory.current": "1500\n",
        },
    )
    assert within_cgroups(HOST, system) == Memory(1000, 0)


def test_groups_that_cannot_be_read_limit_nothing(tmp_path: Path) -> None:
    assert within_cgroups(HOST, tmp_path) == HOST
    write(tmp_path, {"proc/self/cgroup": "0::/../../x\n", "proc/self/mountinfo": V2_MOUNT})
    assert within_cgroups(HOST, tmp_path) == HOST


# --- cores ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpus", "speeds", "big"),
    [
        pytest.param({0, 1}, {}, {0, 1}, id="nothing is known"),
        pytest.param(set(range(8)), dict.fromkeys(range(8), 3_000_000), set(range(8)), id="equal"),
        pytest.param(
            set(range(8)),
            dict.fromkeys(range(4), 1_800_000) | dict.fromkeys(range(4, 8), 2_400_000),
            {4, 5, 6, 7},
            id="RK3588",
        ),
        pytest.param(
            set(range(8)),
            dict.fromkeys(range(4), 1_700_000)
            | dict.fromkeys(range(4, 7), 2_400_000)
            | {7: 2_900_000},
            {4, 5, 6, 7},
            id="phone with one prime core",
        ),
        pytest.param({0, 1}, {0: 1_800_000, 1: 1_800_000, 7: 3_000_000}, {0, 1}, id="little set"),
        pytest.param({0, 1}, {0: 5}, {0, 1}, id="one is unknown"),
        pytest.param({0, 1}, {0: 100, 1: 80}, {0, 1}, id="80 % is big"),
        pytest.param({0, 1}, {0: 100, 1: 79}, {0}, id="79 % is little"),
    ],
)
def test_big_cores(cpus: set[int], speeds: dict[int, int], big: set[int]) -> None:
    assert big_cores(cpus, speeds) == big


def test_speeds_are_frequencies_or_else_capacities(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    write(tmp_path, {f"{cpu}/cpu{i}/cpu_capacity": f"{i + 1}\n" for i in range(2)})
    write(tmp_path, {f"{cpu}/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n"})
    assert cpu_speeds({0, 1}, tmp_path) == {0: 1, 1: 2}
    write(tmp_path, {f"{cpu}/cpu1/cpufreq/cpuinfo_max_freq": "2400000\n"})
    assert cpu_speeds({0, 1}, tmp_path) == {0: 1_800_000, 1: 2_400_000}
    assert cpu_speeds({0, 1, 2}, tmp_path) == {}


def test_threads_are_at_least_one_and_at_most_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, threads in ((set(), 1), ({3}, 1), ({0, 5}, 2), (set(range(64)), 4)):
        monkeypatch.setattr(facts, "usable_cpus", lambda cpus=cpus: frozenset(cpus))
        monkeypatch.setattr(facts, "cpu_speeds", lambda cpus, system: {})
        assert facts.threads_default() == threads


EIGHT = dict.fromkeys(range(4), 1_700_000) | dict.fromkeys(range(4, 7), 2_400_000) | {7: 2_900_000}


@pytest.mark.parametrize(
    ("speeds", "threads", "cores"),
    [
        pytest.param({}, None, (2, set(), True), id="nothing is known"),
        pytest.param({0: 2_000, 1: 1_960}, None, (2, set(), True), id="nearly equal"),
        pytest.param({0: 2_000, 1: 1_700}, None, (2, set(), False), id="both big, not equal"),
        pytest.param({0: 2_000, 1: 900}, None, (1, {0}, True), id="one little"),
        pytest.param({0: 2_000, 1: 900}, 2, (2, set(), False), id="a little one, too"),
        pytest.param({0: 2_000, 1: 900}, 3, (3, set(), False), id="more than there are"),
        pytest.param(EIGHT, None, (4, {4, 5, 6, 7}, False), id="phone"),
        pytest.param(EIGHT, 2, (2, {4, 5, 6, 7}, False), id="phone, two of four"),
        pytest.param(EIGHT, 5, (5, {0, 4, 5, 6, 7}, False), id="phone, five"),
    ],
)
def test_on_what_a_device_computes(speeds, threads, cores) -> None:
    cpus = set(speeds) or {0, 1}
    assert facts.chosen_cores(cpus, speeds, threads) == cores


@pytest.mark.parametrize(("count", "cpus"), [(3, {0, 1, 2}), (None, {0})])
def test_without_affinity_all_cpus_count(monkeypatch: pytest.MonkeyPatch, count, cpus) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert facts.usable_cpus.__wrapped__() == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cpus_are_those_from_before_threads_were_kept_on_some() -> None:
    before = facts.usable_cpus()

    def kept() -> frozenset[int]:
        os.sched_setaffinity(0, {max(before)})
        return facts.usable_cpus()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(kept).result() == before


# --- name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("raspberrypi", "raspberrypi"),
        ("Küche", "Küche"),
        ("  my\tlap\x1b[31mtop\n ", "my lap [31mtop"),
        ("x" * 40, "x" * 32),
        ("x" * 31 + " y", "x" * 31),
        ("\x00\n", ""),
        ("\u202eevil", "evil"),
    ],
)
def test_names_are_made_printable(text: str, name: str) -> None:
    assert clean_name(text) == name


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=80))
def test_any_name_becomes_printable_and_stays_so(text: str) -> None:
    name = clean_name(text)
    assert name.isprintable()
    assert len(name) <= 32
    assert clean_name(name) == name


def test_device_name_is_the_host_or_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "pi.fritz.box")
    assert facts.device_name() == "pi"
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.delenv("TERMUX_VERSION", raising=False)
    assert facts.device_name() == "device"
    monkeypatch.setenv("TERMUX_VERSION", "0.119")
    monkeypatch.setattr(
        platform, "android_ver", lambda: SimpleNamespace(model="Pixel 7a"), raising=False
    )
    assert facts.device_name() == "Pixel 7a"
    monkeypatch.setattr(platform, "android_ver", lambda: SimpleNamespace(model=""), raising=False)
    assert facts.device_name() == "phone"
