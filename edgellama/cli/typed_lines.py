"""What a person types, or a program pipes in: one text after another, each of one or more lines."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net.state_files import read_state, replace_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PROMPT: Final = "> "
CONTINUED: Final = "\\"  # at the end of a line: the text goes on in the next one
REMEMBERED_MAX: Final = 500
REMEMBERED_BYTES_MAX: Final = 60_000  # state files are small


def piped_texts() -> Iterator[str]:
    """Yield the texts on stdin, blank ones left out; MisuseError where they are not UTF-8."""
    lines: list[str] = []
    while True:
        if sys.stdin.isatty() and sys.stderr.isatty():
            sys.stderr.write(PROMPT)
            sys.stderr.flush()
        try:
            line = sys.stdin.buffer.readline().decode()
        except UnicodeDecodeError:
            raise MisuseError("what is typed is not UTF-8 text") from None
        text = line.rstrip("\r\n")
        lines.append(text.removesuffix(CONTINUED))
        if text.endswith(CONTINUED) and line.endswith("\n"):
            continue
        whole = "\n".join(lines)
        lines.clear()
        if whole.strip():
            yield whole
        if not line:
            return


class RememberedTexts:
    """What was typed before, the last first to be found by the arrow keys; kept on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.texts: list[str] = []
        for line in (read_state(path) or "").splitlines():
            try:
                text = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(text, str):
                self.texts.append(text)

    def add(self, text: str) -> None:
        """Remember a text in place of an older one like it; the oldest go where there are many."""
        self.texts = [*(each for each in self.texts if each != text), text][-REMEMBERED_MAX:]
        lines = [json.dumps(each) + "\n" for each in self.texts]
        size = sum(map(len, lines))
        while lines and size > REMEMBERED_BYTES_MAX:
            size -= len(lines.pop(0))
        replace_state(self._path, "".join(lines))


class TypedTexts:
    """Reads texts from a terminal, with line editing, history and pasted lines kept together.

    ``commands`` are completed by Tab. Enter ends a text; Alt-Enter begins a new line in it, and so
    does Enter after a backslash. ``note`` says what a person should know.
    """

    def __init__(self, path: Path, commands: Sequence[str], note: Any) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.shortcuts import CompleteStyle

        self._note = note
        try:
            self._remembered: RememberedTexts | None = RememberedTexts(path)
        except EdgellamaError as error:
            self._forget(error)
        known = self._remembered.texts if self._remembered else []
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory(known),
            multiline=True,
            key_bindings=_keys(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            prompt_continuation="  ",
        )

    def __iter__(self) -> Iterator[str]:
        """Yield the texts until Ctrl-D; Ctrl-C empties the line."""
        from prompt_toolkit.patch_stdout import patch_stdout

        while True:
            try:
                # Whatever other threads say meanwhile appears above the line.
                with patch_stdout(raw=True):
                    text = self._session.prompt(PROMPT)
            except KeyboardInterrupt:
                self._note("Ctrl-D or /quit ends the conversation")
                continue
            except EOFError:
                return
            text = text.encode(errors="replace").decode()
            if text.strip():
                self._remember(text)
                yield text

    def _remember(self, text: str) -> None:
        if self._remembered is None:
            return
        try:
            self._remembered.add(text)
        except EdgellamaError as error:
            self._forget(error)

    def _forget(self, error: EdgellamaError) -> None:
        self._remembered = None
        self._note(f"{error}; what you type will not be remembered")


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _end(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith(CONTINUED):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys
