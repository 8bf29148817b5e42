"""The one thread that loads: brings the span of the latest plan to where it can compute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from edgellama.errors import EdgellamaError

if TYPE_CHECKING:
    from edgellama.mesh.effects import LoadPlan
    from edgellama.node.engine import LoadedSpan

Load = Callable[["LoadPlan", threading.Event], "LoadedSpan"]


class LoadThread:
    """Loads what it is given, one plan at a time; a later plan ends the work for one before it.

    ``load``, ``loaded``, ``failed`` and ``crashed`` are called on this thread. ``load`` looks at
    the event that it is given, and ends when that is set.
    """

    def __init__(
        self,
        load: Load,
        loaded: Callable[[LoadPlan, LoadedSpan], None],
        failed: Callable[[LoadPlan, EdgellamaError], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._load = load
        self._loaded = loaded
        self._failed = failed
        self._crashed = crashed
        self._wanted: SimpleQueue[LoadPlan | None] = SimpleQueue()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgellama-load", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def load(self, wanted: LoadPlan) -> None:
        """Load this span instead of any before it; may be called from any thread."""
        self._cancelled.set()
        self._wanted.put(wanted)

    def cancel(self) -> None:
        """Let the thread end soon, whatever it is doing."""
        self._cancelled.set()
        self._wanted.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end, but no longer than ``timeout_s``."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            if not self._wanted.empty():
                continue  # a later plan has come
            self._cancelled.clear()
            try:
                loaded = self._load(wanted, self._cancelled)
            except EdgellamaError as error:
                if self._wanted.empty():
                    self._failed(wanted, error)
            except BaseException as error:
                self._crashed(error)
            else:
                self._loaded(wanted, loaded)
