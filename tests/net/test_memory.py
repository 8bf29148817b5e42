"""Giving back what a library does not need leaves it working."""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from edgellama.net.memory import (
    OwnMemory,
    macos_own_memory,
    own_memory,
    parse_own_memory,
    release_code_of,
    release_freed,
    windows_own_memory,
)


def test_what_a_process_holds() -> None:
    text = "Name:\tpython\nVmRSS:\t    90 kB\nRssAnon:\t      50 kB\nRssFile:\t      40 kB\n"
    assert parse_own_memory(text) == OwnMemory(50 << 10, 40 << 10)
    assert OwnMemory(5, 9).grown_since(OwnMemory(2, 10)) == OwnMemory(3, 0)


@pytest.mark.parametrize(
    "text", ["", "RssAnon: 5 kB\n", "RssAnon: 5\nRssFile: 5\n", "RssAnon: x kB\nRssFile: 5 kB\n"]
)
def test_what_tells_nothing(text: str) -> None:
    assert parse_own_memory(text) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_memory_that_was_made_is_seen() -> None:
    before = own_memory()
    # Mapped anew: what the heap gives may be memory that was freed and is resident still.
    with mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as made:
        made.write(b"x" * len(made))
        after = own_memory()
    assert before is not None
    assert after is not None
    assert after.grown_since(before).anonymous_bytes > 24 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
def test_code_pages_go_and_come_back() -> None:
    import numpy as np

    matrix = np.arange(64.0).reshape(8, 8)
    before = matrix @ matrix
    released = release_code_of("_multiarray_umath")
    assert released > 0
    assert (matrix @ matrix == before).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
def test_less_is_resident() -> None:
    def resident_kb() -> int:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
        library = re.compile(r"^\S+ r-xp .*libcrypto.*\n(?:.*\n)*?Rss:\s+(\d+)", re.MULTILINE)
        return sum(int(match[1]) for match in library.finditer(smaps))

    import hashlib

    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10)
    before = resident_kb()
    if before == 0:
        pytest.skip("hashlib does not use a libcrypto of its own here")
    release_code_of("libcrypto")
    assert resident_kb() < before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep little")
def test_what_was_freed_is_given_back() -> None:
    # Below what is mapped on its own, and under something that lives: glibc keeps such pieces.
    pieces = [bytearray(b"x") * (64 << 10) for _ in range(1024)]
    top = pieces.pop()
    pieces.clear()
    before = own_memory()
    release_freed()
    after = own_memory()
    assert before is not None
    assert after is not None
    assert before.grown_since(after).anonymous_bytes > 32 << 20
    assert len(top) == 64 << 10


def test_what_the_loader_wrote_to_stays() -> None:
    """A library whose relocated constants were dropped would crash in its next call."""
    import numpy as np

    release_code_of("_multiarray_umath")
    release_code_of("libscipy_openblas")
    numbers = np.random.Generator(np.random.PCG64(1)).standard_normal((50, 50))
    assert np.linalg.matrix_rank(np.sort(numbers, axis=0) @ numbers) == 50


def test_an_unknown_library_is_no_error() -> None:
    assert release_code_of("no-such-library") == 0


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert release_code_of("libc") == 0


class MacOS:
    """The word of macOS's C library that tells what a process holds."""

    def __init__(self, resident: int, footprint: int, fault: int = 0) -> None:
        self.said = struct.pack("16s10Q", b"", 1, 2, 3, 4, 5, 6, resident, footprint, 9, 10)
        self.fault = fault

    def proc_pid_rusage(self, pid: Any, flavor: Any, info: Any) -> int:
        assert (pid.value, flavor.value) == (77, 0)
        ctypes.memmove(ctypes.byref(info._obj), self.said, len(self.said))
        return self.fault


def test_what_macos_tells_of_a_process() -> None:
    assert macos_own_memory(MacOS(900, 300), 77) == OwnMemory(300, 600)
    assert macos_own_memory(MacOS(900, 1300), 77) == OwnMemory(900, 0)  # some of it is compressed
    assert macos_own_memory(MacOS(900, 300, fault=-1), 77) is None
    assert macos_own_memory(object(), 77) is None


class Word:
    """A function of a library, whose result's type can be set."""

    restype: object = None

    def __init__(self, result: int) -> None:
        self._result = result

    def __call__(self) -> int:
        return self._result


class Windows:
    """The words of kernel32 that tell what this process holds."""

    def __init__(self, working_set: int, private: int, answer: int = 1) -> None:
        self.numbers = 1, working_set, 2, 3, 4, 5, 6, 7, private
        self.answer = answer
        self.GetCurrentProcess = Word(-1)

    def K32GetProcessMemoryInfo(self, process: Any, counters: Any, size: Any) -> int:
        said = struct.pack("2I9N", size.value, 0, *self.numbers)
        assert counters._obj.size == size.value == len(said)
        ctypes.memmove(ctypes.byref(counters._obj), said, len(said))
        return self.answer


def test_what_windows_tells_of_this_process() -> None:
    assert windows_own_memory(Windows(900, 300)) == OwnMemory(300, 600)
    assert windows_own_memory(Windows(900, 1300)) == OwnMemory(900, 0)  # some of it is paged out
    assert windows_own_memory(Windows(900, 300, answer=0)) is None
