"""What this node's links carry: remembered with its age, and found out where nothing has shown it.

Whatever is great shows a link's rate: a prompt's rows, weights. Where nothing was, a probe is sent,
small and rare, while nobody waits for an answer; of two nodes the one with the lesser id sends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.wire.messages import MEMBERS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgellama.values import LinkFacts, NodeId

PROBE_BYTES: Final = 256 << 10  # half a second at 4 Mbit/s; shows up to 20 MB/s at 5 ms round trip
KEPT_S: Final = 60.0  # a lesser rate is taken for a sender that idles until the other is so old
OLD_S: Final = 600.0  # then it is probed again


@dataclass
class _Seen:
    """What is known of one link; times by this node's clock."""

    latest: int = 0  # what the link itself has said last
    bytes_per_s: int = 0
    at: float = float("-inf")  # when the link was seen in full use
    probed_at: float = float("-inf")


class LinkRates:
    """The rates of one node's links; they outlive a connection."""

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._seen: dict[NodeId, _Seen] = {}
        self.probes = 0  # sent in all

    def look(self, links: Iterable[LinkFacts], now: float) -> None:
        """Take what the links themselves have seen."""
        for link in links:
            seen = self._of(link.peer)
            if seen is not None and link.bytes_per_s not in (0, seen.latest):
                seen.latest = link.bytes_per_s
                seen.at = self._take(seen, link.bytes_per_s, now)

    def fetched(self, peer: NodeId, bytes_per_s: int) -> None:
        """Take what weights from a peer came at: the link carries as much, and maybe more."""
        seen = self._of(peer)
        if seen is not None and bytes_per_s > seen.bytes_per_s:
            seen.bytes_per_s = bytes_per_s

    def known(self, links: Iterable[LinkFacts]) -> list[LinkFacts]:
        """Return the links with the rates that are remembered of them."""
        return [link._replace(bytes_per_s=self.rate(link.peer)) for link in links]

    def rate(self, peer: NodeId) -> int:
        """Return what the link to a peer carries, bytes a second; 0 for what was never seen."""
        return self._seen[peer].bytes_per_s if peer in self._seen else 0

    def next_probe(self, links: Sequence[LinkFacts], now: float) -> NodeId | None:
        """Return whose link shall be probed now, if any; it counts as probed from then on."""
        for link in links:
            seen = self._of(link.peer)
            if seen is None or link.peer < self._me:
                continue
            if now >= max(seen.at, seen.probed_at) + OLD_S:
                seen.probed_at = now
                self.probes += 1
                return link.peer
        return None

    def _of(self, peer: NodeId) -> _Seen | None:
        if peer not in self._seen and len(self._seen) >= MEMBERS_MAX:
            return None
        return self._seen.setdefault(peer, _Seen())

    def _take(self, seen: _Seen, bytes_per_s: int, now: float) -> float:
        """Let a rate count if it is greater or the other one is old; return as of when it does."""
        if bytes_per_s < seen.bytes_per_s and now < seen.at + KEPT_S:
            return seen.at
        seen.bytes_per_s = bytes_per_s
        return now
