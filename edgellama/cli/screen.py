"""Where an answer appears: on a terminal, where a person can stop it, or in a pipe."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from threading import Event
from typing import TYPE_CHECKING, Final

from edgellama.cli.options import note

if TYPE_CHECKING:
    from collections.abc import Iterator

# What comes from a model or a mesh could otherwise move the cursor, or speak as the person.
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return text that a terminal shows and does not obey: control characters are replaced."""
    return _CONTROLS.sub("\ufffd", text)


class Pipe:
    """Answers on stdout as they are, everything else on stderr."""

    def write(self, text: str) -> None:
        """Show a part of an answer at once."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say something beside the answers."""
        note(text)

    @contextlib.contextmanager
    def answering(self) -> Iterator[Event | None]:
        """Yield what is set when the person wants no more of this answer; Ctrl-C ends all."""
        yield None

    def begin(self) -> None:
        """Say that the answer begins."""


class Terminal(Pipe):
    """Answers as they come, without control characters; Ctrl-C stops one."""

    def __init__(self) -> None:
        from rich.console import Console

        self._waiting = Console(stderr=True).status("reading", spinner="dots")

    def write(self, text: str) -> None:
        """Show a part of an answer at once."""
        super().write(printable(text))

    def note(self, text: str) -> None:
        """Say something beside the answers."""
        note(printable(text))

    @contextlib.contextmanager
    def answering(self) -> Iterator[Event]:
        """Show that something is done until ``begin``; a second Ctrl-C ends all."""
        stop = Event()

        def interrupt(_number: int, _frame: object) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            stop.set()

        before = signal.signal(signal.SIGINT, interrupt)
        self._waiting.start()
        try:
            yield stop
        finally:
            self._waiting.stop()
            signal.signal(signal.SIGINT, before)

    def begin(self) -> None:
        """Say that the answer begins."""
        self._waiting.stop()


def open_screen() -> Pipe:
    """Return the screen that fits stdout."""
    return Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else Pipe()
