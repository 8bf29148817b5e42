"""What the mesh wants kept reaches the disk, in its order, beside everything else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_building import answered, conversation_of

from edgellama.mesh.effects import RemoveConversation, StoreConversation
from edgellama.net.session_files import SessionFiles
from edgellama.node.session_thread import SessionThread

if TYPE_CHECKING:
    from pathlib import Path

ASKED = conversation_of()


def test_the_last_word_on_each_session_counts(tmp_path: Path) -> None:
    files, told = SessionFiles(tmp_path), list[str]()
    thread = SessionThread(files, told.append)
    thread.carry_out(StoreConversation(replace(ASKED, name="gone")))
    thread.carry_out(StoreConversation(ASKED))
    thread.carry_out(StoreConversation(answered(ASKED, 1)))
    thread.carry_out(RemoveConversation("gone"))
    thread.start()
    thread.stop(10)
    assert files.all() == [answered(ASKED, 1)]
    assert told == []


def test_a_fault_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    told: list[str] = []
    thread = SessionThread(SessionFiles(tmp_path / "file" / "sessions"), told.append)
    thread.start()
    for number in range(5):
        thread.carry_out(StoreConversation(replace(ASKED, name=f"s{number}")))
    thread.stop(10)
    assert len(told) == 1
    assert "EDGELLAMA_HOME" in told[0]


def test_a_thread_that_never_began_can_be_stopped(tmp_path: Path) -> None:
    SessionThread(SessionFiles(tmp_path), print).stop(1)
