"""Line editing, pasted lines, what is remembered, and texts from a pipe."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from edgellama.cli.typed_lines import (
    REMEMBERED_BYTES_MAX,
    REMEMBERED_MAX,
    RememberedTexts,
    TypedTexts,
    piped_texts,
)
from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from pathlib import Path

CTRL_C, CTRL_D, UP, LEFT, ALT_ENTER = "\x03", "\x04", "\x1b[A", "\x1b[D", "\x1b\r"


def typed(path: Path, keys: str) -> tuple[list[str], list[str]]:
    """Type the keys, then Ctrl-D; return the texts that came, and what was said beside them."""
    notes: list[str] = []
    with create_pipe_input() as pipe:
        pipe.send_text(keys + CTRL_D)
        with create_app_session(input=pipe, output=DummyOutput()):
            texts = list(TypedTexts(path, ["/help", "/system "], notes.append))
    return texts, notes


@pytest.mark.parametrize(
    ("keys", "texts"),
    [
        ("one\rtwo\r", ["one", "two"]),
        ("onf\x7fe\r", ["one"]),
        (f"ne{LEFT}{LEFT}o\r", ["one"]),
        (f"a{ALT_ENTER}b\r", ["a\nb"]),
        ("a\\\rb\r", ["a\nb"]),
        ("a\\b\r", ["a\\b"]),
        ("\x1b[200~a\nb\r\n\nc\x1b[201~!\r", ["a\nb\n\nc!"]),
        (" \r\r", []),
        ("/sy\tx\r", ["/system x"]),
        ("é😀\r", ["é😀"]),
    ],
)
def test_keys(tmp_path: Path, keys: str, texts: list[str]) -> None:
    assert typed(tmp_path / "typed", keys) == (texts, [])


def test_ctrl_c_empties_the_line(tmp_path: Path) -> None:
    texts, notes = typed(tmp_path / "typed", f"wrong{CTRL_C}right\r")
    assert texts == ["right"]
    assert notes == ["Ctrl-D or /quit ends the conversation"]


def test_arrow_keys_find_what_was_typed_another_day(tmp_path: Path) -> None:
    typed(tmp_path / "typed", "one\rtwo\nlines\r")
    texts, _ = typed(tmp_path / "typed", f"{UP}{UP}{UP}{UP}\r")
    assert texts == ["one"]


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "typed"
    remembered = RememberedTexts(path)
    for number in range(REMEMBERED_MAX + 5):
        remembered.add(str(number))
    remembered.add("7")
    assert remembered.texts[:3] == ["5", "6", "8"]
    assert RememberedTexts(path).texts == remembered.texts
    remembered.add("x" * REMEMBERED_BYTES_MAX)
    assert RememberedTexts(path).texts == []
    remembered.add("y")
    assert path.stat().st_size < REMEMBERED_BYTES_MAX
    assert RememberedTexts(path).texts == ["y"]
    assert path.stat().st_mode & 0o077 == 0


def test_damage_to_it_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "typed"
    path.write_bytes(b'"a"\n\xff{\n[1]\n"b"\n' + b"[" * 9999)
    assert RememberedTexts(path).texts == ["a", "b"]


def test_where_nothing_can_be_kept_the_conversation_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    texts, notes = typed(tmp_path / "file" / "typed", "one\rtwo\r")
    assert texts == ["one", "two"]
    assert len(notes) == 1
    assert "will not be remembered" in notes[0]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"", []),
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\n\n  \ntwo\n", ["one", "two"]),
        (b"a\\\nb\nc", ["a\nb", "c"]),
        (b"a\\", ["a"]),
        ("é\n".encode(), ["é"]),
    ],
)
def test_lines_of_a_pipe(data: bytes, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert list(piped_texts()) == texts


def test_a_pipe_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ok\n\xff\n")))
    texts = piped_texts()
    assert next(texts) == "ok"
    with pytest.raises(MisuseError, match="not UTF-8"):
        next(texts)
