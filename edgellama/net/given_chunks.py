"""Which chunks of a user's own file have been given away, so that each leaves the device once."""

from __future__ import annotations

import threading


class GivenChunks:
    """What went to whom; safe to use from several threads.

    A client is any object that stands for one connection. A chunk is being given from the moment
    it is promised, so that two clients who ask at the same time do not both get it.
    """

    def __init__(self) -> None:
        self._going: dict[int, object] = {}  # chunk -> the client that it is promised to
        self._gone: set[int] = set()
        self._lock = threading.Lock()

    def promise(self, index: int, client: object, *, anyway: bool) -> bool:
        """Return whether this client shall get the chunk: no other one has it or is getting it.

        ``anyway``: the client has found nobody else who has it.
        """
        with self._lock:
            if self._going.get(index, client) is not client:
                return False
            if index in self._gone and not anyway:
                return False
            self._going[index] = client
            return True

    def gave(self, index: int) -> None:
        """Take note that the chunk is sent."""
        with self._lock:
            self._going.pop(index, None)
            self._gone.add(index)

    def forget(self, client: object) -> None:
        """Take note that a client will get nothing more of what it was promised."""
        with self._lock:
            self._going = {
                index: other for index, other in self._going.items() if other is not client
            }
