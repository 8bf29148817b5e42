"""Which numbers were taken already: nothing that is recorded and sent again has an effect."""

from __future__ import annotations

PACKETS = 2048
"""As many as a peer's largest window: an honest packet is never so late and still wanted."""

HANDSHAKES = 64
"""More handshakes than one node has under way at once."""


class ReplayWindow:
    """Takes each number once, of the newest ``size`` numbers; older ones never (RFC 6479)."""

    __slots__ = ("_next", "_size", "_taken")

    def __init__(self, size: int) -> None:
        self._size = size
        self._next = 0  # above every number taken
        self._taken = 0  # bit i: the number _next - 1 - i

    def is_fresh(self, number: int) -> bool:
        """Return whether the number may be taken; cheap, so asked before a tag is verified."""
        age = self._next - 1 - number
        return age < 0 or (age < self._size and not self._taken >> age & 1)

    def take(self, number: int) -> None:
        """Note a fresh number, after its tag was verified."""
        ahead = number + 1 - self._next
        if ahead > 0:
            shifted = self._taken << ahead if ahead < self._size else 0
            self._taken = shifted & ((1 << self._size) - 1) | 1
            self._next = number + 1
        else:
            self._taken |= 1 << -ahead
