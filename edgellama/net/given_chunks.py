"""Which chunks of a user's own file have been given away, so that each leaves the device once."""

from __future__ import annotations

import threading
from typing import Final

NEW_S: Final = 3.0
"""A chunk that went out longer ago is served by whoever got it, if that is still there."""


class GivenChunks:
    """What went to whom; safe to use from several threads.

    A client is any object that stands for one connection. A chunk is being given from the moment
    it is promised, so that two clients who ask at the same time do not both get it. ``now`` is in
    seconds and never goes back.
    """

    def __init__(self) -> None:
        self._going: dict[int, object] = {}  # chunk -> the client that it is promised to
        self._gone: dict[int, float] = {}  # chunk -> when it was sent
        self._lock = threading.Lock()

    def promise(self, index: int, client: object, now: float, *, anyway: bool) -> bool:
        """Return whether this client gets the chunk: no other one just got it or is getting it.

        Clients ask for what no other member has. So what was sent a while ago is lost, and one that
        asks ``anyway`` has waited for it.
        """
        with self._lock:
            if self._going.get(index, client) is not client:
                return False
            sent_at = self._gone.get(index)
            if sent_at is not None and now < sent_at + NEW_S and not anyway:
                return False
            self._going[index] = client
            return True

    def gave(self, index: int, now: float) -> None:
        """Take note that the chunk is sent."""
        with self._lock:
            self._going.pop(index, None)
            self._gone[index] = now

    def forget(self, client: object) -> None:
        """Take note that a client will get nothing more of what it was promised."""
        with self._lock:
            self._going = {
                index: other for index, other in self._going.items() if other is not client
            }
