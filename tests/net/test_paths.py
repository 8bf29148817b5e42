"""What a device keeps on its disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net import home_lock
from edgellama.net import paths as paths_module
from edgellama.net.paths import StatePaths, new_node_id
from edgellama.net.state_files import read_state, replace_state
from edgellama.values import Address


@pytest.fixture
def paths() -> StatePaths:
    located = StatePaths.locate()
    located.make()
    return located


def test_everything_is_under_the_home_that_is_set(state_folder: Path, paths: StatePaths) -> None:
    assert paths.state == state_folder
    for path in (paths.store, paths.packed, paths.kernels, paths.peers, paths.run_file):
        assert path.is_relative_to(state_folder)
    assert len({paths.store, paths.packed, paths.kernels, paths.peers, paths.run_file}) == 5
    assert state_folder.stat().st_mode & 0o077 == 0


def test_a_tilde_and_a_relative_home_are_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("EDGELLAMA_HOME", "~/here")
    assert StatePaths.locate().state == tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGELLAMA_HOME", "there")
    assert StatePaths.locate().state == tmp_path / "there"


def test_without_a_home_the_platform_decides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGELLAMA_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    located = StatePaths.locate()
    for folder in (located.state, located.cache, located.data):
        assert "edgellama" in str(folder)


# --- identity -------------------------------------------------------------------------------


def test_the_identity_is_made_once_and_private(paths: StatePaths) -> None:
    node = paths.node_id()
    assert len(bytes.fromhex(node)) == 16
    assert node == node.lower()
    assert StatePaths.locate().node_id() == node
    assert (paths.state / "identity").stat().st_mode & 0o777 == 0o600
    assert new_node_id() != new_node_id()


@pytest.mark.parametrize("content", [b"", b"\xff" * 32, b"A" * 32, b"a" * 31, b"a" * 33])
def test_a_damaged_identity_is_set_aside(paths: StatePaths, content: bytes) -> None:
    (paths.state / "identity").write_bytes(content)
    node = paths.node_id()
    assert paths.node_id() == node
    assert (paths.state / "identity.damaged").read_bytes() == content


def test_the_incarnation_always_grows(paths: StatePaths) -> None:
    assert paths.next_incarnation(1000) == 1000
    assert paths.next_incarnation(5000) == 5000
    assert paths.next_incarnation(5000) == 5001
    assert paths.next_incarnation(0) == 5002


@pytest.mark.parametrize("text", ["", "x", "-5", "9" * 19, "1e5", "٣"])
def test_a_damaged_incarnation_starts_again(paths: StatePaths, text: str) -> None:
    replace_state(paths.state / "incarnation", text)
    assert paths.next_incarnation(7000) == 7000


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- files ----------------------------------------------------------------------------------


def test_replacing_leaves_no_other_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    replace_state(path, "one")
    replace_state(path, "two")
    assert read_state(path) == "two"
    assert names_in(path.parent) == ["file"]


def test_a_failed_replacement_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_state(path, "one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EdgellamaError, match="No space left on device") as caught:
        replace_state(path, "two")
    assert not isinstance(caught.value, MisuseError)
    assert read_state(path) == "one"
    assert names_in(tmp_path) == ["file"]


def test_a_home_below_a_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGELLAMA_HOME", str(tmp_path / "file"))
    for attempt in (lambda p: p.make(), lambda p: p.lock(), lambda p: p.node_id()):
        with pytest.raises(MisuseError, match="EDGELLAMA_HOME") as caught:
            attempt(StatePaths.locate())
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_home_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    monkeypatch.setenv("EDGELLAMA_HOME", str(home))
    with pytest.raises(MisuseError, match="Permission denied"):
        StatePaths.locate().make()


def test_a_read_only_file_system_is_refused(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(paths_module.tempfile, "TemporaryFile", refuse)
    with pytest.raises(MisuseError, match="Read-only file system"):
        paths.make()


# --- the lock and the running node ----------------------------------------------------------

HOLD = """
import sys
from edgellama.net.paths import StatePaths
from edgellama.values import Address
paths = StatePaths.locate()
lock = paths.lock()
paths.write_run_file(Address("0.0.0.0", 7711))
print("held", flush=True)
sys.stdin.read()
"""


def start_holder() -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_process_is_refused_and_a_dead_ones_lock_taken_over(paths: StatePaths) -> None:
    with start_holder() as holder:
        with pytest.raises(MisuseError, match=f"process {holder.pid}") as caught:
            paths.lock()
        assert "\n" not in str(caught.value)
        assert paths.running() == Address("127.0.0.1", 7711)
        holder.kill()
        holder.wait()
        assert paths.running() is None
        paths.lock().release()


def test_released_the_lock_can_be_taken_again(paths: StatePaths) -> None:
    lock = paths.lock()
    with pytest.raises(MisuseError, match=f"process {os.getpid()}"):
        paths.lock()
    lock.release()
    lock.release()
    paths.lock().release()


def test_where_there_are_no_locks_the_node_runs_all_the_same(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int) -> bool:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(home_lock, "try_lock", unsupported)
    lock = paths.lock()
    paths.write_run_file(Address("10.0.0.5", 7712))
    assert paths.running() == Address("10.0.0.5", 7712)
    lock.release()


def test_the_run_file_goes_with_the_node(paths: StatePaths) -> None:
    lock = paths.lock()
    assert paths.running() is None
    paths.write_run_file(Address("10.0.0.5", 7712))
    assert paths.running() == Address("10.0.0.5", 7712)
    paths.remove_run_file()
    paths.remove_run_file()
    assert paths.running() is None
    lock.release()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"host": "a"}',
        '{"host": 1, "port": 1}',
        '{"host": "a", "port": 0}',
        '{"host": "a", "port": true}',
        "[" * 60000,
    ],
)
def test_a_damaged_run_file_is_no_node(paths: StatePaths, text: str) -> None:
    lock = paths.lock()
    paths.run_file.write_text(text)
    assert paths.running() is None
    lock.release()
