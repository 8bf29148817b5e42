"""What the mesh asks of the shell around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.mesh.home_session import Vocabulary
    from edgellama.values import LinkCounters, LinkFacts, NodeId


class Surroundings(Protocol):
    """What the node's shell can be asked at any moment, without waiting."""

    def counters(self, node: NodeId | None) -> LinkCounters:
        """Return what has gone over the link to ``node``, or over all links."""

    def heard_at(self, node: NodeId) -> float | None:
        """Return when anything last came over the link to a member; None without a link."""

    def transport(self, node: NodeId) -> str:
        """Return what carries the link to ``node``: "udp", "tcp", or nothing."""

    def links(self) -> Sequence[LinkFacts]:
        """Return what has been measured of the links to other members."""

    def clock_ms(self) -> int:
        """Return this device's clock, milliseconds since 1970: for people, never to decide by."""

    def vocabulary(self) -> Vocabulary | None:
        """Return the tokenizer of the model loaded here."""
