"""Which members come and go so often that layers given to them would not stay.

Every time a device takes layers over, answers wait for it, and again when it is lost. One loss may
happen to anybody. Whoever is lost again within ten minutes is on trial when it comes back: for half
a minute, twice as long after each further loss. What leaves in order costs nobody a wait and does
not count, nor does what a node that was cut off itself thinks of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.wire.reaching_messages import Trial

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellama.values import NodeId

BLINK_S: Final = 0.5  # called dead for less by somebody who does not hear it: it was never gone
LOSSES_S: Final = 600.0  # so long a loss is remembered
LOSSES_FORGIVEN: Final = 1
LOSSES_KEPT: Final = 8  # more of them would not make a trial longer
TRIAL_S: Final = 30.0
TRIAL_MAX_S: Final = 600.0


class Steadiness:
    """The losses of each member, as one node has seen them, and the trials that follow."""

    def __init__(self) -> None:
        self._gone_at: dict[NodeId, float] = {}
        self._losses: dict[NodeId, list[float]] = {}
        self._trial_ends: dict[NodeId, float] = {}

    @property
    def on_trial(self) -> frozenset[NodeId]:
        """Return the members that should hold no layers unless the others cannot do without."""
        return frozenset(self._trial_ends)

    def trials(self, now: float) -> tuple[Trial, ...]:
        """Return all trials with what is left of them, for others."""
        ends = sorted(self._trial_ends.items())
        return tuple(Trial(node, round((end - now) * 1000)) for node, end in ends if end > now)

    def lost(self, node: NodeId, now: float) -> None:
        """Take note that a member has gone without a word."""
        self._gone_at[node] = now

    def excuse(self, node: NodeId) -> None:
        """Do not count that a member seems to have gone: it may be this node that was cut off."""
        self._gone_at.pop(node, None)

    def returned(self, node: NodeId, now: float, *, anew: bool) -> bool:
        """Take note that a member is here, ``anew`` if in another life than it was called dead in.

        Return whether that begins a trial.
        """
        gone_at = self._gone_at.pop(node, now)
        if now < gone_at + BLINK_S and not anew:
            return False
        recent = [at for at in self._losses.get(node, ()) if at > now - LOSSES_S]
        self._losses[node] = losses = [*recent, gone_at][-LOSSES_KEPT:]
        if len(losses) <= LOSSES_FORGIVEN:
            return False
        trial_s = min(TRIAL_S * 2.0 ** (len(losses) - LOSSES_FORGIVEN - 1), TRIAL_MAX_S)
        self._extend(node, now + trial_s)
        return True

    def told(self, trials: Iterable[Trial], now: float) -> None:
        """Take what another member says: it may have been here while this node was not."""
        for trial in trials:
            self._extend(trial.node, now + min(trial.left_ms / 1000, TRIAL_MAX_S))

    def next_end(self) -> float | None:
        """Return when the next trial ends."""
        return min(self._trial_ends.values(), default=None)

    def expire(self, now: float) -> None:
        """End the trials that are over."""
        self._trial_ends = {node: end for node, end in self._trial_ends.items() if end > now}

    def _extend(self, node: NodeId, end: float) -> None:
        self._trial_ends[node] = max(end, self._trial_ends.get(node, end))
