"""A driver on a thread of its own, and a handler that writes down every event.

Any test may `import driven_peer`: pytest puts the folder of `tests/net/conftest.py` on the path.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.link.endpoint import Event
    from edgellama.net.udp import UdpDriver, UdpSocket

A, B = "a" * 32, "b" * 32
HOST = "127.0.0.1"
PATIENCE_S = 60.0


class DrivenPeer:
    """Whoever makes one sets ``driver``, whose handler it is, and then calls ``start``."""

    driver: UdpDriver

    def __init__(self, udp_socket: UdpSocket) -> None:
        self.socket = udp_socket
        self.events: list[Event] = []
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.on_event: Callable[[Event, float], None] = lambda event, now: None
        self.thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.thread.start()

    def _run(self) -> None:
        try:
            self.driver.run()
        except BaseException as failure:
            self.failure = failure

    def handle_event(self, event: Event, now: float) -> None:
        self.on_event(event, now)
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def next_timer(self) -> float | None:
        return None

    def handle_timer(self, now: float) -> None:
        raise AssertionError

    def wait_for(self, count: int) -> list[Event]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.events) >= count, PATIENCE_S)
            return list(self.events)

    def end(self) -> None:
        self.driver.stop()
        self.thread.join(PATIENCE_S)
        self.socket.close()
        assert not self.thread.is_alive()
