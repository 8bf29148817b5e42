"""What neighbours say of an epoch whose plan has not come yet: it waits, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.wire.messages import OpenSession, Step, StepNeeded

if TYPE_CHECKING:
    from edgellama.values import NodeId

WAITING_MAX: Final = 64  # messages, of all sessions and nodes
WAITING_BYTES_MAX: Final = 32 << 20  # rows of one node: 64 steps of 32 rows of a width of 8192


class ComingEpoch:
    """Messages in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: list[tuple[NodeId, Step | OpenSession | StepNeeded]] = []

    def keep(self, node: NodeId, message: Step | OpenSession | StepNeeded) -> None:
        """Keep a message, or drop it when too many or too large ones of this node wait."""
        same = [each for sender, each in self._waiting if sender == node]
        if len(self._waiting) < WAITING_MAX and _bytes([*same, message]) <= WAITING_BYTES_MAX:
            self._waiting.append((node, message))

    def take(self) -> list[tuple[NodeId, Step | OpenSession | StepNeeded]]:
        """Return all that waited, and forget it."""
        waiting, self._waiting = self._waiting, []
        return waiting


def _bytes(messages: list[Step | OpenSession | StepNeeded]) -> int:
    return sum(len(each.payload) for each in messages if isinstance(each, Step))
