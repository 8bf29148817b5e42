"""A node that goes: the others take over what it does, and only then it leaves.

It says that it leaves, so the leader makes a plan without it. While the others load that plan's
layers, from this node as well, the plan in force goes on with it. When the new one is in force
nothing needs it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.mesh.effects import HandedOver, Outbox, Tell
from edgellama.wire.messages import LEAVES

if TYPE_CHECKING:
    from edgellama.mesh.membership import Membership
    from edgellama.mesh.planning import Planning

HAND_OVER_S: Final = 30.0
"""How long a node waits for the others: a person has asked it to end."""


class Leaving:
    """Whether this node may leave now, once it was told to."""

    def __init__(self, membership: Membership, planning: Planning, outbox: Outbox) -> None:
        self._membership = membership
        self._planning = planning
        self._outbox = outbox
        self._until: float | None = None  # while it hands over

    def begin(self, now: float) -> None:
        """Hand over what this node does; ``HandedOver`` says when there is nothing left to."""
        if self._until is not None:
            return
        self._until = now + HAND_OVER_S
        self._membership.set_intent(LEAVES, now)
        if self._is_needed():
            text = f"handing over to the others, for {HAND_OVER_S:.0f} s at most"
            self._outbox.put(Tell(f"{text}; once more ends at once"))
        self.handle_timer(now)

    def next_timer(self) -> float | None:
        """Return when the node waits no longer."""
        return self._until

    def handle_timer(self, now: float) -> None:
        """See whether there is still something to wait for."""
        if self._until is None:
            return
        if self._is_needed():
            if self._planning.has_settled and self._planning.shortage:
                text = f"the others cannot hold the model: {self._planning.shortage}"
            elif now >= self._until:
                text = f"the others have not taken over within {HAND_OVER_S:.0f} s"
            else:
                return
            self._outbox.put(Tell(f"leaving at once, {text}"))
        self._until = None
        self._outbox.put(HandedOver())

    def _is_needed(self) -> bool:
        """Whether answers would miss this node, and somebody could take over."""
        return self._planning.needs_me and bool(self._membership.staying())
