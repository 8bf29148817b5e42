"""What ``join`` shows: a live table on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Self

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from edgellama.cli.invitation import draws_blocks, invitation_text
from edgellama.cli.tables import status_table
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from edgellama.values import Address
    from edgellama.wire.join_code import JoinCode
    from edgellama.wire.messages import StatusReply

LINES_SHOWN: Final = 5
PROGRESS_STEPS: Final = 10  # plain lines a long job may print
STARTING_REFRESH_S: Final = 0.1
REFRESH_S: Final = 0.5
QUIET_S: Final = 1.0  # what takes less is not worth a line


class PlainView:
    """Prints a line for each thing that happens; for pipes, logs and dumb terminals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._headline = ""
        self._doing = ""
        self._step = 0
        self._quiet_until = 0.0

    @property
    def refresh_s(self) -> float:
        """How long to wait before the next look: whoever waits for "ready" waits no longer."""
        return STARTING_REFRESH_S if not self._headline else REFRESH_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave what was printed."""

    def tell(self, text: str) -> None:
        """Print a line."""
        with self._lock:
            click.echo(text)
            sys.stdout.flush()

    def invite(self, code: JoinCode, address: Address, seconds: int) -> None:
        """Print an invitation."""
        self.tell(invitation_text(str(code), address, seconds, qr=False))

    def progress(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        """Print how far a long job has come, a few times."""
        step = PROGRESS_STEPS * done_bytes // max(1, total_bytes)
        if doing != self._doing:
            self._doing, self._step = doing, -1
            self._quiet_until = time.monotonic() + QUIET_S
        if step != self._step and time.monotonic() >= self._quiet_until:
            self._step = step
            self.tell(progress_text(doing, done_bytes, total_bytes))

    def show(self, status: StatusReply | None) -> None:
        """Print when the mesh becomes ready, or ceases to be."""
        if status is None:
            return
        headline = ready_text(status)
        if headline != self._headline:
            self._headline = headline
            if headline:
                self.tell(headline)


class LiveView:
    """Redraws a short table in place, with the last few lines under it."""

    refresh_s: Final = 0.25

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES_SHOWN)
        self._progress = ""
        self._draws_qr = draws_blocks()  # the live display, once started, hides what stdout is
        self._live = Live(Text("starting"), refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, text: str) -> None:
        """Add a line."""
        self._lines.append(text)

    def invite(self, code: JoinCode, address: Address, seconds: int) -> None:
        """Print an invitation with its QR above the table, where it stays."""
        text = invitation_text(str(code), address, seconds, qr=self._draws_qr)
        self._live.console.print(Text(text), soft_wrap=True)

    def progress(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        """Show how far a long job has come."""
        done = done_bytes >= total_bytes
        self._progress = "" if done else progress_text(doing, done_bytes, total_bytes)

    def show(self, status: StatusReply | None) -> None:
        """Draw how the mesh stands."""
        parts = [status_table(status)] if status is not None else []
        lines = [*self._lines, self._progress, "Ctrl-C leaves the mesh"]
        parts.append(Text("\n".join(line for line in lines if line), style="dim"))
        self._live.update(Group(*parts))


View = PlainView | LiveView


def open_view() -> View:
    """Return the view that fits stdout."""
    return LiveView() if sys.stdout.isatty() else PlainView()


def progress_text(doing: str, done_bytes: int, total_bytes: int) -> str:
    """Return how far a long job has come, for a person."""
    percent = 100 * done_bytes // max(1, total_bytes)
    return f"{doing}: {percent} % of {format_size(total_bytes)}"


def ready_text(status: StatusReply) -> str:
    """Return the line that says the mesh can answer; empty when it cannot."""
    if not status.ready or not status.model:
        return ""
    devices = sum(member.span.layers > 0 or member.home for member in status.members)
    name = status.model[0].name
    return f"ready: {name} on {devices} device{'s' if devices > 1 else ''}, epoch {status.epoch}"
