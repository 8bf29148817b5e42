"""The sessions that can be gone on with: those on this device, and those that a mesh has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgellama.errors import MisuseError
from edgellama.wire.session_messages import (
    NAME_CHARACTERS_MAX,
    Conversation,
    Summary,
    is_session_name,
    latest,
)

if TYPE_CHECKING:
    from edgellama.net.session_files import SessionFiles


class Elsewhere(Protocol):
    """Other devices that keep sessions."""

    def session(self, name: str) -> Conversation | None:
        """Return the newest record of a session that one of them has."""

    def sessions(self) -> tuple[Summary, ...]:
        """Return what they know of sessions."""

    def forget_session(self, name: str) -> int:
        """Have them remove a session; return how many did."""


class Nowhere:
    """No other device."""

    def session(self, name: str) -> Conversation | None:
        """Return none."""
        return None

    def sessions(self) -> tuple[Summary, ...]:
        """Return none."""
        return ()

    def forget_session(self, name: str) -> int:
        """Return that nobody had it."""
        return 0


class SessionShelf:
    """What is kept here and elsewhere, the newest record of each name."""

    def __init__(self, files: SessionFiles, elsewhere: Elsewhere) -> None:
        self._files = files
        self._elsewhere = elsewhere

    def known(self) -> dict[str, Summary]:
        """Return all sessions by name, the one that was asked something last first."""
        here = [each.summary() for each in self._files.all()]
        return latest([*here, *self._elsewhere.sessions()])

    def find(self, name: str) -> Conversation | None:
        """Return the newest record of a session; MisuseError for what cannot be a name."""
        checked_name(name)
        here, there = self._files.find(name), self._elsewhere.session(name)
        return there if there is not None and there.is_newer_than(here) else here

    def keep(self, conversation: Conversation) -> None:
        """Keep a record on this device; raises EdgellamaError where that is not possible."""
        self._files.keep(conversation)

    def remove(self, name: str) -> bool:
        """Remove a session here and elsewhere; return whether there was one."""
        checked_name(name)
        was_here = self._files.remove(name)
        return bool(self._elsewhere.forget_session(name)) or was_here


def checked_name(name: str) -> str:
    """Return the name; MisuseError where a session cannot be called so."""
    if not is_session_name(name):
        raise MisuseError(
            f"{name[:NAME_CHARACTERS_MAX]!r} cannot be the name of a session: use one line of 1 "
            f"to {NAME_CHARACTERS_MAX} characters"
        )
    return name
