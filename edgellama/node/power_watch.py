"""A thread that reads battery and heat now and then, and says when the verdict changes."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from edgellama.mesh.wellbeing import Wellbeing
from edgellama.net.power import PowerSources, read_power

if TYPE_CHECKING:
    from collections.abc import Callable

READ_S: Final = 60.0


class PowerWatch:
    """Calls ``changed(reason)`` on its own thread: why to rest, or nothing to rest for."""

    def __init__(
        self, sources: PowerSources, changed: Callable[[str], None], read_s: float = READ_S
    ) -> None:
        self._sources = sources
        self._changed = changed
        self._read_s = read_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgellama-power", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that waits for a phone's answer ends by itself."""
        self._stopping.set()

    def _run(self) -> None:
        wellbeing, told = Wellbeing(), ""
        while not self._stopping.is_set():
            reason = wellbeing.take(read_power(self._sources), time.monotonic())
            if bool(reason) != bool(told):
                told = reason
                self._changed(reason)
            self._stopping.wait(self._read_s)
