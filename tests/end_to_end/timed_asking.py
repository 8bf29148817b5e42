"""Asks as ``edgellama ask`` does, and says when each token came: as a program, in JSON lines.

``TimedAsking`` starts it on a host and reads along, so that a test can strike in the middle of an
answer and see how long its asker had to wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from hosts import Host

PROGRAM = (sys.executable, str(Path(__file__).resolve()))
ENDED_WITHIN_S = 240.0


class Gap(NamedTuple):
    """The longest wait between two tokens, and the number of the token that ended it."""

    seconds: float
    token: int


@dataclass
class Heard:
    """What an asker has heard so far; times are of the system's monotonic clock."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    times: list[float] = field(default_factory=list)  # of each token
    notices: list[tuple[float, str]] = field(default_factory=list)
    reason: str = ""  # why the answer ended
    code: int | None = None
    stderr: str = ""

    def longest_gap(self) -> Gap:
        """Return the longest wait after the first token."""
        gaps = [
            Gap(later - earlier, number)
            for number, (earlier, later) in enumerate(
                zip(self.times, self.times[1:], strict=False), start=1
            )
        ]
        return max(gaps, default=Gap(0.0, 0))


class TimedAsking:
    """An asker on a host; the answer grows while somebody else does something."""

    def __init__(self, host: Host, *arguments: object) -> None:
        self.heard = Heard()
        self._changed = threading.Condition()
        self._has_said_all = False
        self._process = subprocess.Popen(
            host.command(arguments, PROGRAM),
            env=host.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._note)]
        for reader in self._readers:
            reader.start()

    def wait_for(self, tokens: int, within_s: float = ENDED_WITHIN_S) -> None:
        """Wait until so many tokens have come; AssertionError where the answer ends before."""

        def come() -> bool:
            return len(self.heard.tokens) >= tokens or self._has_said_all

        with self._changed:
            in_time = self._changed.wait_for(come, within_s)
            assert in_time, f"{len(self.heard.tokens)} tokens in {within_s} s\n{self.heard}"
        if len(self.heard.tokens) < tokens:
            raise AssertionError(f"the answer ended early: {self.end()}")

    def end(self, within_s: float = ENDED_WITHIN_S) -> Heard:
        """Wait until the answer has ended and return it."""
        try:
            self.heard.code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the answer does not end: {self.heard}") from None
        finally:
            self.kill()
        assert "Traceback" not in self.heard.stderr, self.heard.stderr
        return self.heard

    def kill(self) -> None:
        """End the asker, if it runs."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._take(json.loads(line))
        with self._changed:
            self._has_said_all = True
            self._changed.notify_all()

    def _take(self, said: dict[str, Any]) -> None:
        tokens = said.get("tokens", [])
        with self._changed:
            if "notice" in said:
                self.heard.notices.append((said["at"], said["notice"]))
            self.heard.tokens += tokens
            self.heard.times += [said["at"]] * len(tokens)
            self.heard.text += said.get("text", "")
            self.heard.reason = said.get("reason", self.heard.reason)
            self._changed.notify_all()

    def _note(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            self.heard.stderr = stream.read()


def _program() -> click.Command:
    from edgellama.cli.answering import Answering, answering, open_asker
    from edgellama.wire.messages import Finished, Notice

    @click.command()
    @click.argument("prompt")
    @answering(256)
    def command(prompt: str, answering: Answering) -> None:
        """Ask, and say each message in a line."""
        with open_asker(answering) as asker:
            for message in asker.answer(answering.question(prompt)):
                line: dict[str, object] = {"at": time.monotonic(), "text": message.text}
                if isinstance(message, Notice):
                    line = {"at": line["at"], "notice": message.text}
                elif isinstance(message, Finished):
                    line["reason"] = message.reason
                else:
                    line["tokens"] = message.tokens
                click.echo(json.dumps(line))

    return command


if __name__ == "__main__":
    from edgellama.errors import EdgellamaError

    try:
        _program()()
    except EdgellamaError as error:
        click.echo(error, err=True)
        sys.exit(error.exit_code)
