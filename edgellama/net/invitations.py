"""The join code that is open at the moment: for one device, three tries and five minutes."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.wire.join_code import make_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.wire.join_code import JoinCode

TRIES: Final = 3
OPEN_S: Final = 300.0


@dataclass
class _Invitation:
    code: JoinCode
    until_s: float
    tries: int = TRIES


class Invitations:
    """At most one open code; safe to use from several threads."""

    def __init__(
        self,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entropy = entropy
        self._clock = clock
        self._lock = threading.Lock()
        self._invitation: _Invitation | None = None

    def open(self) -> JoinCode:
        """Return a new code; the one before is worth nothing any more."""
        code = make_code(self._entropy)
        with self._lock:
            self._invitation = _Invitation(code, self._clock() + OPEN_S)
        return code

    def is_open(self) -> bool:
        """Return whether a device could join now."""
        with self._lock:
            return self._current() is not None

    def begin(self, slot: int) -> JoinCode | None:
        """Count a try for the code in this slot, and return it; None when there is none.

        The try counts when it begins, so breaking it off wins nothing.
        """
        with self._lock:
            invitation = self._current()
            if invitation is None or invitation.code.slot != slot or not invitation.tries:
                return None
            invitation.tries -= 1
            return invitation.code

    def accept(self, code: JoinCode) -> bool:
        """Use a code up, after the other side has proved it; False when that was done before."""
        with self._lock:
            invitation = self._current()
            if invitation is None or invitation.code != code:
                return False
            self._invitation = None
            return True

    def fail(self, code: JoinCode) -> bool:
        """Close a code whose last try was wrong; return whether it was."""
        with self._lock:
            invitation = self._current()
            if invitation is None or invitation.code != code or invitation.tries:
                return False
            self._invitation = None
            return True

    def _current(self) -> _Invitation | None:
        if self._invitation is not None and self._clock() >= self._invitation.until_s:
            self._invitation = None
        return self._invitation
