"""Sessions on the disk: whole, bounded, for their owner alone, and never older than before."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_building import ask_of
from session_building import answered, conversation_of

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net import session_files
from edgellama.net.session_files import SessionFiles
from edgellama.wire.messages import Ask, KeepSession, encode

if TYPE_CHECKING:
    from pathlib import Path

ASKED = conversation_of()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions"


@pytest.fixture
def files(folder: Path) -> SessionFiles:
    return SessionFiles(folder)


def test_nothing_is_made_before_something_is_kept(files: SessionFiles, folder: Path) -> None:
    assert files.all() == []
    assert files.find("trip") is None
    assert not files.remove("trip")
    assert not folder.exists()


@pytest.mark.parametrize("name", ["trip", "über/../alles", ".", "a" * 64, "旅"])
def test_what_is_kept_is_found_by_the_next_process(
    files: SessionFiles, folder: Path, name: str
) -> None:
    record = answered(replace(ASKED, name=name), 1, 2)
    files.keep(record)
    again = SessionFiles(folder)
    assert again.find(name) == record
    assert again.all() == [record]
    (path,) = folder.iterdir()
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert again.remove(name)
    assert list(folder.iterdir()) == []


def test_an_older_record_is_not_put_in_the_place_of_a_newer_one(files: SessionFiles) -> None:
    newer = answered(ASKED, 1, 2)
    files.keep(newer)
    files.keep(answered(ASKED, 1))
    files.keep(ASKED)
    assert files.find("trip") == newer
    files.keep(answered(ASKED, 1, 2, state="stop"))
    assert files.find("trip") == answered(ASKED, 1, 2, state="stop")


def test_the_number_of_sessions_is_bounded(
    files: SessionFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_files, "SESSIONS_MAX", 3)
    for number in range(5):
        files.keep(replace(ASKED, name=f"s{number}"))
        for path in folder.iterdir():  # a clock too coarse to tell them apart
            os.utime(path, ns=(path.stat().st_mtime_ns - 10**9,) * 2)
    assert {each.name for each in files.all()} == {"s2", "s3", "s4"}


def test_their_size_is_bounded(files: SessionFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_files, "FOLDER_BYTES_MAX", 3000)
    for number in range(4):
        files.keep(replace(ASKED, name=f"s{number}", text="x" * 1500))
    assert [each.name for each in files.all()] == ["s3"]
    monkeypatch.setattr(session_files, "RECORD_BYTES_MAX", 2000)
    with pytest.raises(EdgellamaError, match="the session trip has grown beyond"):
        files.keep(replace(ASKED, text="x" * 2000))
    assert files.find("trip") is None


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    files = SessionFiles(tmp_path / "file" / "sessions")
    with pytest.raises(MisuseError, match="set EDGELLAMA_HOME"):
        files.keep(ASKED)
    assert files.all() == []
    assert files.find("trip") is None


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_damaged_file_is_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("sessions")
    files = SessionFiles(folder)
    files.keep(answered(ASKED, 1, 2))
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    for each in files.all():  # a bit of a text that was turned is still a text
        assert each.name
    files.find("trip")
    latest_ms = (1 << 64) - 1  # a bit that was turned may have made the other one very late
    files.keep(replace(ASKED, asked_ms=latest_ms))
    assert [each.asked_ms for each in files.all()] == [latest_ms]


def test_a_file_of_another_session_or_message_is_not_taken(
    files: SessionFiles, folder: Path
) -> None:
    files.keep(ASKED)
    (path,) = folder.iterdir()
    files.keep(replace(ASKED, name="tale"))
    (other,) = set(folder.iterdir()) - {path}
    other.replace(path)
    assert files.find("trip") is None
    magic = path.read_bytes()[:10]
    message: Ask = ask_of()
    path.write_bytes(magic + encode(message))
    assert files.all() == []
    path.write_bytes(b"X" + magic[1:] + encode(KeepSession(ASKED)))
    assert files.all() == []
