"""A conversation: what was said, what is asked next, and the commands that begin with a slash."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgellama.cli.answering import checked_system
from edgellama.errors import EdgellamaError, MisuseError
from edgellama.values import ASSISTANT, SYSTEM, USER, Turn
from edgellama.wire.messages import (
    PROMPT_BYTES_MAX,
    Finished,
    Notice,
    Piece,
    bounded_history,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.cli.answering import Answering
    from edgellama.cli.screen import Pipe
    from edgellama.node.asking import Asker

_COMMAND: Final = "/"


@dataclass(frozen=True)
class _Command:
    """What a command does with the words after it; false ends the conversation."""

    run: Callable[[str], bool]
    usage: str
    help: str


class Dialogue:
    """One conversation with a model.

    ``is_patient``: an error ends one answer and not the conversation.
    """

    def __init__(
        self, asker: Asker, answering: Answering, screen: Pipe, *, is_patient: bool
    ) -> None:
        self._asker = asker
        self._answering = answering
        self._screen = screen
        self._is_patient = is_patient
        self._system = answering.system
        self._history: list[Turn] = []
        self._end: Finished | None = None  # of the last answer
        self._has_said_plain = False  # that the model has no chat template
        self._saved: set[Path] = set()  # files of ours, which may be written again
        self._commands = {
            "/help": _Command(self._help, "/help", "what can be typed"),
            "/system": _Command(
                self._set_system,
                "/system [TEXT]",
                "what the model shall be or do; none takes it back",
            ),
            "/clear": _Command(self._clear, "/clear", "forget what was said"),
            "/save": _Command(
                self._save, "/save [FILE]", "write the conversation; .json for programs"
            ),
            "/status": _Command(self._status, "/status", "who answers; how full the context is"),
            "/quit": _Command(self._quit, "/quit", "end the conversation, as Ctrl-D does"),
        }

    @property
    def commands(self) -> tuple[str, ...]:
        """The names of the commands; those that take words end with a space."""
        return tuple(name + " " * ("[" in each.usage) for name, each in self._commands.items())

    def take(self, text: str) -> bool:
        """Do what a person has typed; return whether the conversation goes on.

        Raises EdgellamaError unless the conversation is patient.
        """
        try:
            if text.startswith(_COMMAND):
                return self._obey(text)
            self._ask(text)
        except EdgellamaError as error:
            if not self._is_patient:
                raise
            self._screen.note(str(error))
        return True

    def _ask(self, text: str) -> None:
        if len(text.encode()) > PROMPT_BYTES_MAX:
            raise MisuseError(f"that is longer than {PROMPT_BYTES_MAX} bytes")
        ask = self._answering.question(text, system=self._system, history=tuple(self._history))
        said: list[str] = []
        self._end = None
        with self._screen.answering() as stop:
            for message in self._asker.answer(ask, stop):
                if isinstance(message, Notice):
                    self._screen.note(message.text)
                    continue
                self._screen.begin()
                if isinstance(message, Piece):
                    self._heed(message)
                else:
                    self._end = message
                said.append(message.text)
                self._screen.write(message.text)
        self._screen.write("\n")
        answer = "".join(said)
        if answer or self._end is not None:
            said_now = (Turn(USER, text), Turn(ASSISTANT, answer))
            self._history = list(bounded_history([*self._history, *said_now]))
        self._say_how_it_ended()

    def _heed(self, piece: Piece) -> None:
        """Say what a person would not expect of an answer, before it begins."""
        left_out = len(self._history) - piece.turns_kept
        if left_out > 0:
            del self._history[:left_out]
            self._screen.note(
                f"the conversation outgrows the context: its first {left_out} messages are left out"
            )
        if not piece.is_templated and not self._has_said_plain:
            self._has_said_plain = True
            self._screen.note("this model has no chat template: it goes on with the text")

    def _say_how_it_ended(self) -> None:
        end = self._end
        if end is None:
            self._screen.note("stopped")
        elif end.reason == "length":
            self._screen.note(
                f"cut after {end.tokens_count} tokens: "
                + (
                    "--max-tokens allows no more"
                    if end.tokens_count >= self._answering.tokens_max
                    else "the context is full"
                )
            )

    def _obey(self, text: str) -> bool:
        name, _, words = text.partition(" ")
        command = self._commands.get(name.strip())
        if command is None:
            raise MisuseError(
                f"there is no command {name.strip()}: /help lists them; "
                "a space before the slash makes it a message"
            )
        return command.run(words.strip())

    def _help(self, _words: str) -> bool:
        width = max(len(command.usage) for command in self._commands.values())
        for command in self._commands.values():
            self._screen.write(f"{command.usage:{width}}  {command.help}\n")
        self._screen.write(
            "Ctrl-C stops an answer and keeps what came. Alt-Enter begins a new line, and so\n"
            "does Enter after a backslash; what is pasted stays together.\n"
        )
        return True

    def _set_system(self, words: str) -> bool:
        if words:
            self._system = "" if words == "none" else checked_system(words, "the text")
        self._screen.write(f"system: {self._system or 'none'}\n")
        return True

    def _clear(self, _words: str) -> bool:
        self._history.clear()
        self._end = None
        self._screen.write("forgotten\n")
        return True

    def _save(self, words: str) -> bool:
        from edgellama.net.atomic_file import write_atomically

        path = Path(words or time.strftime("edgellama-chat-%Y-%m-%d-%H%M%S.md")).expanduser()
        if path.exists() and path.absolute() not in self._saved:
            raise MisuseError(f"{path} is there already: name another file")
        turns = [*([Turn(SYSTEM, self._system)] if self._system else []), *self._history]
        if path.suffix == ".json":
            text = json.dumps([turn._asdict() for turn in turns], ensure_ascii=False, indent=1)
        else:
            text = "\n\n".join(f"## {turn.role}\n\n{turn.content.strip()}" for turn in turns)
        try:
            write_atomically(path.absolute(), [text.encode(), b"\n"])
        except OSError as error:
            raise MisuseError(f"cannot write {path}: {error.strerror or error}") from None
        self._saved.add(path.absolute())
        self._screen.write(f"saved in {path}\n")
        return True

    def _status(self, _words: str) -> bool:
        from edgellama.cli.tables import show, status_table

        status = self._asker.status()
        if any(member.record.host for member in status.members):
            show(status_table(status))
        else:
            name = status.model[0].name if status.model else ""
            self._screen.write(f"{name} on this device alone, context {status.context}\n")
        text = f"{len(self._history)} messages"
        if self._end is not None:
            tokens = len(self._end.prompt_tokens) + self._end.tokens_count
            text += f", {tokens} tokens of a context of {status.context}"
            seconds = self._end.predicted_us / 1e6
            if seconds > 0 and self._end.tokens_count > 1:
                text += f"; {(self._end.tokens_count - 1) / seconds:.1f} tokens a second"
        self._screen.write(text + "\n")
        return True

    def _quit(self, _words: str) -> bool:
        return False
