"""What a stage keeps of one answer under the plan in force."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.model.hidden import take_rows
from edgellama.values import LinkCounters
from edgellama.wire.activations import row_bytes_max

if TYPE_CHECKING:
    from edgellama_kernels import HiddenRows

    from edgellama.mesh.refill import Refill
    from edgellama.values import Plan
    from edgellama.wire.messages import Step

HELD_ROWS_MAX: Final = 1024
"""Of each session that a plan allows, rows that have come and are not computed yet: twice what 16
steps of 32 positions or two windows of 256 rows make, so that sessions that have just ended find
room, too."""

WANTED_MAX: Final = 8  # a stage asks for two windows at once, and again when it connects


class Input(NamedTuple):
    """A step to be computed: of the stage before, or at home of these tokens."""

    step: Step
    tokens: tuple[int, ...] = ()


@dataclass
class StageSession:
    """Steps that wait, that are computed, and that were; and what a change of plans left open."""

    key: int = 0  # names the answer under every epoch; 0 until home has said it
    length: int = 0  # positions computed or being computed
    early: dict[int, Input] = field(default_factory=dict)  # by position
    outputs: OrderedDict[int, Step] = field(default_factory=OrderedDict)
    jobs: dict[int, Step] = field(default_factory=dict)  # under way, by position
    failure: str = ""  # why a step could not be computed
    counters_at_start: LinkCounters = field(default_factory=LinkCounters)

    # While the answer goes on under a new plan:
    target: int = 0  # what came before this position is not fed again
    tokens: tuple[int, ...] = ()  # at home, those before the target
    refill: Refill | None = None  # from the moment that it is known what is held here
    # Positions asked for by the next stage before that moment, each first and past.
    wanted: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=WANTED_MAX))
    is_filling: bool = False  # a chunk is being computed
    inputs: dict[int, HiddenRows] = field(default_factory=dict)  # of the stage before
    inputs_past: int = 0  # those up to here were used
    asked_past: int = 0  # rows up to here were asked for

    @property
    def is_ready(self) -> bool:
        """Whether steps can be computed: nothing of an earlier plan is still to be filled in."""
        return not self.target or (self.refill is not None and self.refill.is_full)

    @property
    def held_bytes(self) -> int:
        """How much of what the stage before has sent waits or is being computed."""
        steps = [*(each.step for each in self.early.values()), *self.jobs.values()]
        rows = self.inputs.values()
        return sum(len(step.payload) for step in steps) + sum(
            each.halves.nbytes + each.exponents.nbytes for each in rows
        )

    def take_inputs(self, position: int, past: int) -> HiddenRows | None:
        """Take the rows for these positions, or the first of them, that the stage before has given.

        None where they have not come; then ``asked_past`` says whether they were asked for.
        """
        for earlier in sorted(each for each in self.inputs if each < position):
            rows = self.inputs.pop(earlier)
            end = earlier + len(rows.exponents)
            if end > position:  # the first of them were not needed: kept rows were at hand
                self.inputs.setdefault(position, take_rows(rows, position - earlier, end - earlier))
        if position < self.inputs_past:
            self.asked_past = 0  # they came once and were used, but not for the next stage
        rows_here, count = self.inputs.pop(position, None), past - position
        if rows_here is not None and len(rows_here.exponents) > count:
            self.inputs[past] = take_rows(rows_here, count, len(rows_here.exponents))
            rows_here = take_rows(rows_here, 0, count)
        self.inputs_past = position + (0 if rows_here is None else len(rows_here.exponents))
        return rows_here

    def forget_inputs(self) -> None:
        """Free what is not needed here; what the next stage wants yet is asked for anew."""
        self.inputs.clear()
        self.asked_past = 0


def held_bytes_max(plan: Plan, width: int) -> int:
    """Return how much the stage before may have sent a stage beyond what that has computed."""
    return plan.sessions_max * HELD_ROWS_MAX * row_bytes_max(width)
