"""How much a peer loses, and what is therefore sent along with a message of a few packets.

A message of a few packets stalls for a round trip or more when one of them is lost. Repeating
some of it beforehand costs airtime always and saves that stall sometimes, so how much is repeated
follows from the loss that is measured.
"""

from __future__ import annotations

from enum import Enum

JUDGED_MIN = 256
"""Packets assumed to have arrived before the first: one early loss is no percent."""

JUDGED_MAX = 1024
"""After so many packets what was seen counts half: half a minute of tokens."""

PARITY_LOSS_MIN = 0.002
"""Below, a message of 3 packets stalls less often than once in 170."""

DUPLICATE_LOSS_MIN = 0.03
"""Above, two losses among 4 packets, which parity cannot mend, are more than 1 in 200."""

BURST_PAIRS_MIN = 2
BURST_SHARE_MIN = 0.25
"""Losses next to each other: parity mends one in a message, so it is of little use then."""


class Redundancy(Enum):
    """What goes along with a message of a few packets."""

    NONE = "none"
    PARITY = "parity"
    DUPLICATE = "duplicate"


class LossEstimate:
    """The share of the packets to a peer that are lost, and whether in bursts."""

    def __init__(self) -> None:
        self._arrived = 0.0
        self._lost = 0.0
        self._pairs = 0.0
        self._last_lost = -2  # a packet number

    @property
    def ratio(self) -> float:
        """Lost packets as a share of all, 0 to 1; rises from 0."""
        return self._lost / max(self._arrived + self._lost, JUDGED_MIN)

    @property
    def bursty(self) -> bool:
        """Whether losses come next to each other more often than chance puts them there."""
        share = max(BURST_SHARE_MIN, 2 * self.ratio)
        return self._pairs >= BURST_PAIRS_MIN and self._pairs > share * self._lost

    @property
    def redundancy(self) -> Redundancy:
        """What that calls for."""
        if self.ratio < PARITY_LOSS_MIN:
            return Redundancy.NONE
        if self.ratio > DUPLICATE_LOSS_MIN or self.bursty:
            return Redundancy.DUPLICATE
        return Redundancy.PARITY

    def on_arrived(self, packets: int) -> None:
        """Count packets that were acknowledged."""
        self._arrived += packets
        if self._arrived + self._lost > JUDGED_MAX:
            self._arrived /= 2
            self._lost /= 2
            self._pairs /= 2

    def on_lost(self, packet_number: int) -> None:
        """Count a packet that was given up."""
        self._lost += 1
        self._pairs += packet_number == self._last_lost + 1
        self._last_lost = packet_number

    def on_late(self, packets: int) -> None:
        """Take back that packets were lost: they have come after all."""
        self._lost = max(0.0, self._lost - packets)
        self._arrived += packets
