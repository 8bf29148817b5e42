"""A compiler that dies takes nobody with it: the next attempt is made, then NumPy stays."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from edgellama_kernels import target_choice, warming
from edgellama_kernels.target_choice import FEATURES, NAME

from edgellama.errors import MisuseError
from edgellama.net.paths import StatePaths
from edgellama.node import kernels as device_kernels
from edgellama.node.compiling import Compiler

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = {NAME: "generic", FEATURES: "+neon"}
DIES = "import os, signal; os.kill(os.getpid(), getattr(signal, 'SIGILL', signal.SIGTERM))"
DIES_UNLESS_PLAIN = f"import os\nif os.environ.get({FEATURES!r}) != '+neon':\n  {DIES}"


@pytest.fixture
def fake(plain: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what replaces the compiler by a few lines."""

    def replace(code: str) -> None:
        monkeypatch.setattr(warming, "command", lambda: [sys.executable, "-c", code])

    return replace


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, FEATURES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(target_choice, "is_arm", lambda: True)
    monkeypatch.setattr(warming, "is_warm", lambda: False)
    monkeypatch.setattr(warming, "is_installed", lambda: True)


@pytest.fixture
def paths() -> StatePaths:
    found = StatePaths.locate()
    found.state.mkdir(parents=True)
    return found


def test_the_first_attempt_leaves_the_choice_to_the_child(fake, tmp_path: Path) -> None:
    fake(f"import os, sys; sys.exit({FEATURES!r} in os.environ)")
    assert Compiler(tmp_path / "said").wait()
    assert target_choice.variables() == {}


def test_after_a_death_the_plain_instructions_are_tried(fake, tmp_path: Path) -> None:
    fake(DIES_UNLESS_PLAIN)
    assert Compiler(tmp_path / "said").wait()
    assert target_choice.variables() == PLAIN, "numba here must look for the same binaries"
    assert "ended with code -" in (tmp_path / "said").read_text()


def test_numbers_that_are_wrong_count_as_a_death(fake, tmp_path: Path) -> None:
    fake(f"import os, sys; sys.exit(os.environ.get({FEATURES!r}) != '+neon')")
    assert Compiler(tmp_path / "said").wait()
    assert target_choice.variables() == PLAIN


def test_when_all_die_it_says_so_and_sets_nothing(fake, tmp_path: Path) -> None:
    fake(f"print('trying'); {DIES}")
    assert not Compiler(tmp_path / "said").wait()
    assert target_choice.variables() == {}
    assert (tmp_path / "said").read_text().count("ended with code") == 2


def test_the_users_choice_is_the_only_attempt(fake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(FEATURES, "+neon,+i8mm")
    fake(DIES)
    assert not Compiler(tmp_path / "said").wait()
    assert (tmp_path / "said").read_text().count("ended with code") == 1
    assert os.environ[FEATURES] == "+neon,+i8mm"


@pytest.mark.parametrize("or_not_kept", [False, True])
def test_no_folder_takes_them(fake, tmp_path: Path, or_not_kept) -> None:
    fake(f"import sys; sys.exit({warming.NOT_KEPT})")
    assert Compiler(tmp_path / "said").wait(or_not_kept) == or_not_kept
    assert "ended" not in (tmp_path / "said").read_text()


def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Return a list to which every loading of kernels, all NumPy's in truth, adds itself."""
    found: list[tuple[str, str | None]] = []
    numpy = device_kernels.load("numpy")

    def load(backend: str, threads: int, **_cores: object) -> object:
        found.append((backend, os.environ.get(FEATURES)))
        return numpy

    monkeypatch.setattr(device_kernels, "load", load)
    return found


def test_a_node_goes_on_with_what_the_fallback_made(fake, paths, monkeypatch) -> None:
    loaded, told, ready = loads(monkeypatch), [], threading.Event()
    fake(DIES_UNLESS_PLAIN)
    kernels = device_kernels.DeviceKernels("auto", 1, paths, told.append)
    kernels.watch(lambda _: ready.set())
    assert ready.wait(60)
    assert loaded == [("numpy", None), ("numba", "+neon")]
    assert told[-1] == "the kernels are compiled"


def test_a_node_whose_compilers_die_stays_on_numpy(fake, paths, monkeypatch) -> None:
    loaded, said = loads(monkeypatch), threading.Event()
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if "NumPy goes on" in line:
            said.set()

    fake(DIES)
    device_kernels.DeviceKernels("auto", 1, paths, tell).watch(lambda _: pytest.fail("ready"))
    assert said.wait(60), told
    assert loaded == [("numpy", None)]


def test_who_asks_for_numba_is_refused_before_it_kills_the_process(fake, paths, monkeypatch):
    loaded = loads(monkeypatch)
    fake(DIES)
    with pytest.raises(MisuseError, match="try --backend numpy"):
        device_kernels.DeviceKernels("numba", 1, paths, lambda line: None)
    assert loaded == []


def test_where_kernels_cannot_be_kept_they_are_compiled_for_this_time(
    fake, paths, monkeypatch, tmp_path: Path
) -> None:
    """That is said at once, and the folder goes with the device's kernels."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(in_the_way))
    loaded, told, ready = loads(monkeypatch), [], threading.Event()
    fake("")
    kernels = device_kernels.DeviceKernels("auto", 1, paths, told.append)
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    assert "cannot be kept" in told[0]
    assert str(in_the_way) in told[0]
    kernels.watch(lambda _: ready.set())
    assert ready.wait(60), told
    assert [backend for backend, _ in loaded] == ["numpy", "numba"]
    assert folder.is_dir()
    del kernels
    gc.collect()
    assert not folder.exists()
