"""What a link carries, seen whenever something great crosses it.

While the window is in use, what is in flight arrives at the rate of the slowest place on the way.
Its bytes over the time until the last of it is acknowledged are a sample, as in
draft-cheng-iccrg-delivery-rate-estimation, and so are flights that follow each other without a
pause, up to SAMPLE_S together. Of the last seconds the greatest counts, since a sender that idles
in between sees less than the link can carry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgellama.link.recovery import RoundTrip

SAMPLE_S: Final = 0.1
"""A device that stands still for a moment hears of much at once, which is no rate: it shall be a
small part of a sample."""

WINDOW_S: Final = 10.0
"""The greatest of the last 5 to 10 seconds' samples counts."""


class DeliveryRate:
    """The rate of one direction of a link; ``bytes_per_s`` is 0 before it was seen."""

    def __init__(self) -> None:
        self.bytes_per_s = 0
        self._began_at: float | None = None  # None: no sample is being taken
        self._sent_from = 0.0  # when the newest packet had been sent that had arrived then
        self._last = 0  # the newest packet that was in flight then
        self._bytes = 0  # acknowledged since
        self._half_began = float("-inf")
        self._this_half = self._half_before = 0

    def on_acknowledged(
        self,
        size_bytes: int,
        largest: int,
        sent_at: float,
        newest_in_flight: int,
        rtt: RoundTrip,
        now: float,
        *,
        full: bool,
    ) -> None:
        """Take newly acknowledged packets of ``size_bytes``; ``full``: the window is in use.

        ``largest`` is the newest of them, which left at ``sent_at``; of those that have had no
        acknowledgement yet, and want one, ``newest_in_flight`` is the newest.
        """
        if self._began_at is not None:
            self._bytes += size_bytes
            if largest < self._last:
                return
            if full and now < self._began_at + SAMPLE_S:
                self._last = newest_in_flight
                return
            # Acknowledgements that come in a bunch, or were read late, would show a rate that no
            # link has: nothing arrives quicker for long than it is sent.
            took_s = max(now - self._began_at, sent_at - self._sent_from, rtt.minimum)
            self._take(round(self._bytes / took_s), now)
            self._began_at = None
        if full:
            self._began_at, self._sent_from = now, sent_at
            self._last, self._bytes = newest_in_flight, 0

    @property
    def is_sampling(self) -> bool:
        """Whether ``on_acknowledged`` wants to hear although the window is not in use."""
        return self._began_at is not None

    def _take(self, sample: int, now: float) -> None:
        if now >= self._half_began + WINDOW_S / 2:
            is_recent = now < self._half_began + WINDOW_S
            self._half_before = self._this_half if is_recent else 0
            self._half_began, self._this_half = now, 0
        self._this_half = max(self._this_half, sample)
        self.bytes_per_s = max(self._this_half, self._half_before)
