"""Layers to devices by what devices and links have measured: the specification's code.

For a chat the time of a token counts, which is what all stages and hops of the ring take one after
the other. For a batch it is the time between two tokens while as many answers are made as the plan
has sessions: no less than the busiest device or link needs, nor than a token's time shared by all
sessions. Memory is never exceeded. See ``docs/spec/plan.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from edgellama.plan.bounds import Outlook, least_busy_ns
from edgellama.plan.costs import NEVER, Costs, Ring, ring_times
from edgellama.plan.exact import Effort, quickest_ring
from edgellama.plan.search import likely_ring, promising_devices
from edgellama.values import BATCH, CHAT, Span, StagePlacement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellama.plan.costs import RingTimes

EXACT_DEVICES_MAX: Final = 12  # that can hold a layer, or be home
EFFORT_MAX: Final = 400_000_000  # times of partial rings; a dozen devices and 80 layers: 58 million
EFFORT_AT_ONCE: Final = 3_000_000  # while links wait: a slow phone takes a second, none is missed
MENDED_DEVICES_MAX: Final = 9  # of a larger mesh that are looked at once more, exactly
NARROWING: Final = 64  # of what is left between bound and best
TRIALS_MAX: Final = 8  # of a batch's interval among many devices
WORTH_PERMILLE: Final = 150  # a change of plan costs loading and repeating: it must save so much


@dataclass(frozen=True)
class Prediction:
    """What a placement is expected to take; nanoseconds.

    ``compute_ns`` is of each stage in the order of the ring, ``hops_ns`` from each to the next and
    home; ``rates`` is what the links of those hops carry, bytes a second, 0 where that is not
    known. ``token_ns`` is the time of one token of one answer, ``interval_ns`` that between two
    tokens, whosever, while all sessions are in use.
    """

    compute_ns: tuple[int, ...]
    hops_ns: tuple[int, ...]
    rates: tuple[int, ...]
    token_ns: int
    interval_ns: int

    def objective_ns(self, goal: str) -> int:
        """Return what the split for ``goal`` makes as small as it can."""
        return self.interval_ns if goal == BATCH else self.token_ns


@dataclass(frozen=True)
class SpeedPlacement:
    """The stages in the order of the ring, home first, and what is expected of them.

    No placement takes less than ``bound_ns``; this one is the best where it takes no more.
    """

    stages: tuple[StagePlacement, ...]
    prediction: Prediction
    bound_ns: int


def place_by_speed(costs: Costs, goal: str, effort_max: int = EFFORT_MAX) -> SpeedPlacement | None:
    """Return a placement for ``goal``, the best of all among a dozen devices.

    Where the search for that one would take more than ``effort_max``, in times of partial rings,
    it is a good one, as among more devices.

    None where none was found. ``ram.place`` may still find one among more than a dozen devices,
    or may say what is missing.
    """
    assert goal in (CHAT, BATCH)
    if not costs.devices:
        return None
    outlook = Outlook(costs)
    token_bound = outlook.least_token_ns()
    if token_bound >= NEVER:
        return None
    able = [
        device
        for device in range(len(costs.devices))
        if outlook.kib[device] > 0 or outlook.home_kib[device] >= 0
    ]
    bound = token_bound if goal == CHAT else outlook.least_interval_ns(token_bound)
    chosen = costs.only(able) if len(able) < len(costs.devices) else costs
    search = _quickest if goal == CHAT else _fullest
    ring, bound = search(chosen, bound, Effort(effort_max))
    if ring is None:
        return None
    return SpeedPlacement(_stages(chosen, ring), _predicted(chosen, ring), bound)


def predict(costs: Costs, stages: Sequence[StagePlacement]) -> Prediction:
    """Return what a placement on these devices is expected to take, whatever it was made for."""
    order = tuple(costs.index(stage.node) for stage in stages)
    return _predicted(costs, Ring(order, tuple(stage.span.past for stage in stages)))


def is_worth_changing(now: Prediction, then: Prediction, goal: str) -> bool:
    """Say whether a better placement is so much better that a mesh that runs shall change to it."""
    before, after = now.objective_ns(goal), then.objective_ns(goal)
    return (before - after) * 1000 > before * WORTH_PERMILLE


def _predicted(costs: Costs, ring: Ring) -> Prediction:
    times = ring_times(costs, ring)
    interval_ns = times.interval(costs.sessions)
    return Prediction(times.compute, times.hops, times.rates, times.token, interval_ns)


def _stages(costs: Costs, ring: Ring) -> tuple[StagePlacement, ...]:
    return tuple(
        StagePlacement(costs.devices[device].node, Span(first, past))
        for device, first, past in zip(ring.order, (0, *ring.cuts), ring.cuts, strict=False)
    )


def _quickest(costs: Costs, bound: int, effort: Effort) -> tuple[Ring | None, int]:
    """Return the ring of the least time a token, and what no ring takes less than."""
    ring = likely_ring(costs, Outlook(costs))
    if len(costs.devices) > EXACT_DEVICES_MAX:
        return ring and _mended(costs, ring), bound
    below = ring_times(costs, ring).token + 1 if ring else NEVER
    ring = quickest_ring(costs, below_ns=below, effort=effort) or ring
    return ring, bound if ring is None or effort.is_spent else ring_times(costs, ring).token


def _mended(costs: Costs, ring: Ring) -> Ring:
    """Return the quickest ring of the devices of a short ring and of others that promise most."""
    near = dict.fromkeys([*ring.order, *promising_devices(Outlook(costs))])
    few = costs.only(sorted(list(near)[:MENDED_DEVICES_MAX]))
    if len(ring.order) > MENDED_DEVICES_MAX:
        return ring
    better = quickest_ring(few, below_ns=ring_times(costs, ring).token)
    if better is None:
        return ring
    return Ring(tuple(costs.index(few.devices[each].node) for each in better.order), better.cuts)


def _fullest(costs: Costs, bound: int, effort: Effort) -> tuple[Ring | None, int]:
    """Return the ring of the least interval between tokens, and what no ring goes below.

    A ring has an interval of at most X if every device and link is busy for at most X a token, and
    a token takes at most X times the sessions: so the quickest ring under a cap answers yes or no.
    """

    def likely(cap_ns: int) -> Ring | None:
        return likely_ring(costs, Outlook(costs, cap_ns), cap_ns)

    def quickest(cap_ns: int, *, any_will_do: bool = False) -> Ring | None:
        below_ns = costs.sessions * cap_ns + 1
        return quickest_ring(costs, cap_ns, below_ns, any_will_do=any_will_do, effort=effort)

    # What is best for one answer comes first: no interval is less than its sessions' share.
    first, token_ns = _quickest(costs, 0, effort)
    if first is None:
        return None, bound
    low = max(bound, -(-token_ns // costs.sessions)) - 1
    if len(costs.devices) <= EXACT_DEVICES_MAX:
        low = max(low, least_busy_ns(costs, low, _interval(costs, first)) - 1)
    ring, _ = _narrowed(costs, likely, first, low, TRIALS_MAX)
    if len(costs.devices) > EXACT_DEVICES_MAX or effort.is_spent:
        return ring, low + 1
    any_ring = partial(quickest, any_will_do=True)
    ring, low = _narrowed(costs, any_ring, ring, low, NEVER, effort)
    # Of all rings with this interval the quickest, so that the way here does not matter.
    return quickest(_interval(costs, ring)) or ring, low + 1


def _narrowed(
    costs: Costs,
    ring_within: Callable[[int], Ring | None],
    best: Ring,
    low: int,
    trials: int,
    effort: Effort | None = None,
) -> tuple[Ring, int]:
    """Return the ring of the least interval above ``low`` that ``ring_within`` a cap finds.

    Also the greatest interval up to which it has found none.

    What is known already is mostly next to the best: the range is cut near its upper end, and
    where that finds better rings further down. After a cut too deep the very next interval is
    tried: where there is none so good either, that is all.
    """
    high, share = _interval(costs, best), NARROWING
    for _ in range(trials):
        if high - low <= 1:
            break
        middle = high - max(1, (high - low) // share)
        ring = ring_within(middle)
        interval = _interval(costs, ring) if ring else NEVER
        if interval < high:
            best, high = ring or best, interval
        if effort is not None and effort.is_spent:
            break
        if interval > middle:
            low, share = middle, high - low
        else:
            share = NARROWING if share > NARROWING else max(2, share // 4)
    return best, low


def _interval(costs: Costs, ring: Ring) -> int:
    times: RingTimes = ring_times(costs, ring)
    return times.interval(costs.sessions)
