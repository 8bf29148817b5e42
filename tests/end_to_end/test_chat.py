"""Conversations: on a real terminal with its keys, through a pipe, and over a mesh."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import gguf_writing
import pytest
from hosts import ANSWER_WITHIN_S, COMMAND

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from hosts import Host, Mesh

# Enough for little stories: each side's words follow each other.
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ 'There was ' }}{% endif %}"
    "{{ message.content + ' ' }}{% endfor %}"
)
READY = r"\x1b\[\?2004h"  # pasted text is welcome: the prompt is there
QUESTIONS = "Once upon a time\nThe dog\\\nand the cat\n/system a bird\nThen the bird\nAnd then\n"


@pytest.fixture(scope="module")
def chat_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_writing.with_template(model, TEMPLATE, tmp_path_factory.mktemp("chat") / "c.gguf")


class Person:
    """Someone at a terminal: types, and waits for what appears."""

    def __init__(self, environment: Mapping[str, str], *arguments: object) -> None:
        self.screen = ""
        mine, theirs = pty.openpty()
        self._terminal = mine
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: _take_terminal(theirs),
        )
        os.close(theirs)

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def see(self, pattern: str) -> str:
        """Wait for what matches, and forget the screen up to its end."""
        until_s = time.monotonic() + ANSWER_WITHIN_S
        while (found := re.search(pattern, self.screen, re.DOTALL)) is None:
            ready, _, _ = select.select([self._terminal], [], [], 1.0)
            assert time.monotonic() < until_s, f"no {pattern!r} in {self.screen!r}"
            if ready:
                self.screen += os.read(self._terminal, 65536).decode(errors="replace")
                if "\x1b[6n" in self.screen:  # where is the cursor? a terminal answers
                    self.screen = self.screen.replace("\x1b[6n", "")
                    self.type("\x1b[1;1R")
        self.screen = self.screen[found.end() :]
        return found.group()

    def ended(self) -> int:
        """Wait for the end; the terminal must be read, or its writer waits for ever."""
        until_s = time.monotonic() + ANSWER_WITHIN_S
        while self.process.poll() is None and time.monotonic() < until_s:
            ready, _, _ = select.select([self._terminal], [], [], 0.1)
            if ready:
                try:
                    self.screen += os.read(self._terminal, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
        return self.process.wait(ANSWER_WITHIN_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


def _take_terminal(descriptor: int) -> None:
    """Make it the terminal whose Ctrl-C is this process's."""
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


@pytest.fixture
def person(alone: Host, chat_model: Path, expected: object) -> Iterator[Person]:
    options = ("--model", chat_model, "--backend", "numpy", "--ignore-eos")
    person = Person(alone.environment(), "chat", *options)
    yield person
    person.close()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
def test_a_person_at_a_terminal(person: Person, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    person.see("/help lists what can be typed.*" + READY)
    person.type("/help\r")
    person.see("/save \\[FILE\\].*" + READY)
    person.type("Once upon a time\r")
    person.see("there was")
    person.type("\x03")
    person.see("stopped.*" + READY)
    person.type("\x1b[200~The dog\nand\x1b[201~")
    person.see("and")
    person.type(" the cat\r")
    person.see("\\w+ \\w+ \\w+ \\w+")
    person.type("\x03")
    person.see("stopped.*" + READY)
    person.type("/nonsense\r")
    person.see("there is no command /nonsense.*" + READY)
    person.type("oops\x03")
    person.see("Ctrl-D or /quit ends.*" + READY)
    person.type(f"/save {saved}\r")
    person.see("saved in.*" + READY)
    person.type("\x04")
    assert person.ended() == 0, person.screen
    turns = json.loads(saved.read_text())
    assert [turn["role"] for turn in turns[-2:]] == ["user", "assistant"]
    assert turns[-2]["content"] == "The dog\nand the cat"
    assert turns[-1]["content"]
    if len(turns) > 2:  # a fast device has filled the context with its first answer
        assert turns[0]["content"] == "Once upon a time"
        assert "there was" in turns[1]["content"]


def test_a_conversation_through_a_pipe_is_the_same_over_a_mesh(
    mesh: Mesh, alone: Host, chat_model: Path
) -> None:
    """With a context that it outgrows, so that both must leave out the same turns."""
    first = mesh.join("--model", chat_model, "--ram", "300M", "--context", 100)
    mesh.join("--ram", "300M")
    mesh.wait_ready(first, 2)
    options = ("-n", 24, "--temperature", 0.8, "--seed", 5)
    local = alone.run("chat", "--model", chat_model, "--context", 100, *options, stdin=QUESTIONS)
    assert local.code == 0, local
    assert "its first 2 messages are left out" in local.stderr
    guest = mesh.host()
    over_mesh = guest.run("chat", *mesh.towards(), *options, stdin=QUESTIONS)
    assert over_mesh.code == 0, over_mesh
    assert over_mesh.stdout == local.stdout
    assert "its first 2 messages are left out" in over_mesh.stderr


def test_bad_input(alone: Host, model: Path) -> None:
    chat = ("chat", "--model", model, "-n", 3)
    alone.run(*chat, stdin="/nonsense\n").refuses(2, "no command /nonsense", "/help")
    alone.run(*chat, "--system", "x", stdin="a\n").refuses(2, "chat template")
    alone.run("chat", "--model", "no such file").refuses(2, "no such file")
    alone.run("chat", "--peer", "127.0.0.1:9", stdin="a\n").refuses(3, "no device")
    outcome = alone.run(*chat, stdin="one two " * 400 + "\n")
    outcome.refuses(2, "tokens", "context of 512")
    assert alone.run(*chat, stdin="").code == 0
