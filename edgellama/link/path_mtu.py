"""How long a datagram the path to a peer takes, found out by trying (RFC 8899).

The names are the RFC's; the search goes from the longest down, since nearly every home network
takes the longest. Datagrams leave with DF set, so a router that cannot pass one drops it; what is
lost at a length above the base, again and again, is a black hole.
"""

from __future__ import annotations

from edgellama.wire.datagram import DATAGRAM_BYTES_BASE, DATAGRAM_BYTES_MAX

LENGTHS = (DATAGRAM_BYTES_MAX, 1464, 1392, 1252)
"""Ethernet and Wi-Fi; PPPoE (1492); tunnels, as WireGuard's (1420); the least that IPv6 allows
(1280). All less the 28 bytes of IPv4's and UDP's headers."""

MAX_PROBES = 3
RAISE_TIMER_S = 600.0
"""How long a path that takes no more than the base is left alone."""

FIRST_PAUSE_S = 1.0
"""After a black hole; doubles with each further one up to RAISE_TIMER_S."""

BLACK_HOLE_LOSSES = 6
"""So many long datagrams lost while shorter ones arrive and no long one does."""

BLACK_HOLE_TIMEOUTS = 3
"""Probe timeouts in a row with a long datagram in flight."""

TRUSTED_ARRIVALS = 64
"""Long datagrams that arrive before a black hole counts as the first again."""


class PathMtu:
    """The longest datagram that one peer gets from here."""

    def __init__(self) -> None:
        self.datagram_bytes = DATAGRAM_BYTES_BASE
        self._candidates = list(LENGTHS)  # not tried or not given up yet, the longest first
        self._failures = 0  # of the first candidate
        self._probing = False
        self._next_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._newest_arrived = -1  # the packet number of a long datagram
        self._lost_since = 0
        self._arrived = 0

    def next_probe(self, now: float) -> int:
        """Return how long a probe to send now; 0: none."""
        if self._probing or not self._candidates or now < self._next_at:
            return 0
        return self._candidates[0]

    def on_probe_sent(self) -> None:
        """Note that the probe is under way: one at a time."""
        self._probing = True

    def on_probe_arrived(self, datagram_bytes: int) -> None:
        """Take the length that has been seen to arrive; the longer ones did not."""
        self._probing = False
        self._failures = self._lost_since = self._arrived = 0
        self.datagram_bytes = max(self.datagram_bytes, datagram_bytes)
        self._candidates = []

    def on_probe_lost(self, now: float) -> None:
        """Try the same length again, or the next shorter one, or leave it for a while."""
        self._probing = False
        self._failures += 1
        if self._failures < MAX_PROBES:
            return
        self._failures = 0
        del self._candidates[:1]
        if not self._candidates:
            self._search_again(now + RAISE_TIMER_S)

    def _search_again(self, at: float) -> None:
        self._candidates = list(LENGTHS)
        self._failures = 0
        self._next_at = at

    def on_long_arrived(self, packets: int, newest: int) -> None:
        """Note that datagrams above the base arrived, none sent after packet ``newest``."""
        self._newest_arrived = max(self._newest_arrived, newest)
        self._lost_since = 0
        self._arrived += packets
        if self._arrived >= TRUSTED_ARRIVALS:
            self._pause_s = FIRST_PAUSE_S

    def on_long_lost(self, packet_number: int, now: float) -> bool:
        """Note that a datagram above the base was lost; return whether that is a black hole now.

        One that a later long one has overtaken was lost by chance.
        """
        self._lost_since += packet_number > self._newest_arrived
        return self._lost_since >= BLACK_HOLE_LOSSES and self.fall_back(now)

    def fall_back(self, now: float) -> bool:
        """Go back to the base and search again later; return whether that changes anything."""
        if self.datagram_bytes == DATAGRAM_BYTES_BASE:
            return False
        self.datagram_bytes = DATAGRAM_BYTES_BASE
        self._lost_since = self._arrived = 0
        self._search_again(now + self._pause_s)
        self._pause_s = min(2 * self._pause_s, RAISE_TIMER_S)
        return True
