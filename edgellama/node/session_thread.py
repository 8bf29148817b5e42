"""The thread that brings sessions to the disk: the one of the datagrams must not wait for it."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from edgellama.errors import EdgellamaError
from edgellama.mesh.effects import RemoveConversation, StoreConversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.net.session_files import SessionFiles
    from edgellama.wire.messages import Conversation


class SessionThread:
    """Writes and removes records in their order; of several for one name the last is enough.

    ``tell`` is called once for each different fault.
    """

    def __init__(self, files: SessionFiles, tell: Callable[[str], None]) -> None:
        self._files = files
        self._tell = tell
        self._told: set[str] = set()
        self._due: dict[str, StoreConversation | RemoveConversation] = {}  # by name
        self._lock = threading.Lock()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edgellama-sessions", daemon=True)

    def kept(self) -> list[Conversation]:
        """Return what is on the disk, before anything is changed here."""
        return self._files.all()

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def carry_out(self, effect: StoreConversation | RemoveConversation) -> None:
        """Do this soon; may be called from any thread."""
        name = effect.name if isinstance(effect, RemoveConversation) else effect.conversation.name
        with self._lock:
            self._due.pop(name, None)
            self._due[name] = effect
        self._wake.put(True)

    def stop(self, timeout_s: float) -> None:
        """End when all is done, but do not wait longer than ``timeout_s``."""
        self._wake.put(False)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._wake.get():
            with self._lock:
                due, self._due = self._due, {}
            for effect in due.values():
                try:
                    if isinstance(effect, StoreConversation):
                        self._files.keep(effect.conversation)
                    else:
                        self._files.remove(effect.name)
                except EdgellamaError as error:
                    self._say(str(error))

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)
