"""What concerns weights on their way: how they disturb the answers that are made meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgellama.wire.schema import Kind, Unsigned


@dataclass(frozen=True)
class TokenTook:
    """One token's way round the ring, and the least of late; home says it while devices load."""

    trip_us: int
    least_us: int


WeightMessage = TokenTook

TRIP_US_MAX: Final = (1 << 32) - 1  # more than an hour

# By the numbers that are written on the wire; see ``messages``.
WEIGHT_MESSAGES: Final[dict[int, Kind]] = {45: Kind(TokenTook, (Unsigned(32), Unsigned(32)))}
