"""Holds weight transfers back while answers are made: the pace, with threads that wait."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final

from edgellama.mesh.transfer_pace import RATE_LEAST, UNLIMITED, DecodeDelay, TransferPace

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_BYTES: Final = 16 << 10  # sent at once: 3 ms of a 5 MB/s link
HOLD_MAX_S: Final = 10.0  # a client waits 30 s for a reply
_CARRIED_WINDOW_S: Final = 1.0
_POLL_S: Final = 0.05


class Throttle:
    """What one device sends and fetches together keeps to one rate; safe for threads."""

    def __init__(self) -> None:
        self._pace = TransferPace()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._free_at = 0.0  # when what was let through until now will have gone at the rate
        self._window_at = 0.0
        self._window_bytes = 0
        self._carried = 0.0  # bytes a second, in the last whole window
        self.is_urgent = False
        """Whether a device that holds layers goes soon: then no token is worth a pause later."""

    def token_came(self, delay: DecodeDelay) -> None:
        """Take what home says of a token."""
        now = time.monotonic()
        with self._lock:
            self._count(0, now)
            self._pace.token_came(delay, self._carried, now)

    def rate(self) -> float:
        """Return the bytes a second that are allowed now."""
        with self._lock:
            return self._rate(time.monotonic())

    def is_limited(self) -> bool:
        """Return whether answers are being made that weights could make slower."""
        return self.rate() != UNLIMITED

    def hold(self, cancelled: threading.Event | None = None) -> None:
        """Wait while nothing may be sent, but HOLD_MAX_S at most: before a whole chunk."""
        past_s = time.monotonic() + HOLD_MAX_S
        waiter = cancelled or threading.Event()
        while self.rate() == 0 and time.monotonic() < past_s and not waiter.wait(_POLL_S):
            pass

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let one of several fetching threads through at a time, while the rate is limited."""
        with self._turn if self.is_limited() else contextlib.nullcontext():
            yield

    def passed(self, count: int) -> None:
        """Wait until ``count`` more bytes keep to the rate.

        In the middle of a chunk the least rate is always allowed: otherwise the other side would
        give it up, and what came of it until then would be lost.
        """
        now = time.monotonic()
        with self._lock:
            self._count(count, now)
            rate = max(self._rate(now), RATE_LEAST)
            start = max(self._free_at, now)
            self._free_at = start + count / rate
        if start > now:
            time.sleep(start - now)

    def _rate(self, now: float) -> float:
        return UNLIMITED if self.is_urgent else self._pace.rate(now)

    def _count(self, count: int, now: float) -> None:
        if now >= self._window_at + _CARRIED_WINDOW_S:
            self._carried = self._window_bytes / max(now - self._window_at, _CARRIED_WINDOW_S)
            self._window_at, self._window_bytes = now, 0
        self._window_bytes += count
