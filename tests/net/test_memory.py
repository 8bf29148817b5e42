"""Giving back what a library does not need leaves it working."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import pytest

from edgellama.net.memory import OwnMemory, own_memory, parse_own_memory, release_code_of


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
    made = bytearray(b"x") * (32 << 20)
    after = own_memory()
    assert before is not None
    assert after is not None
    assert after.grown_since(before).anonymous_bytes > 24 << 20
    assert len(made) == 32 << 20


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


def test_an_unknown_library_is_no_error() -> None:
    assert release_code_of("no-such-library") == 0


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert release_code_of("libc") == 0
