"""Why a device has no part in a plan, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.plan.costs import Ring, ring_times
from edgellama.values import BATCH, RAM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgellama.plan.costs import Costs
    from edgellama.values import NodeId, StagePlacement

WEIGHED_MAX: Final = 32  # devices that are tried in the ring one by one; more are not read anyway


def reasons(costs: Costs, stages: Sequence[StagePlacement], split: str) -> dict[NodeId, str]:
    """Return for each device without a stage why it has none."""
    ring = Ring(
        tuple(costs.index(stage.node) for stage in stages),
        tuple(stage.span.past for stage in stages),
    )
    left_out = [d for d in range(len(costs.devices)) if d not in ring.order]
    return {
        costs.devices[device].node: _reason(costs, ring, device, split, weighed=n < WEIGHED_MAX)
        for n, device in enumerate(left_out)
    }


def _reason(costs: Costs, ring: Ring, device: int, split: str, *, weighed: bool) -> str:
    if costs.rooms[device] < (costs.ends[1:] - costs.ends[:-1]).min():
        return "offers too little memory for a layer"
    if split == RAM:
        return "its share of the memory is less than a layer"
    if not weighed:
        return "others are quicker"
    now = _objective(costs, ring, split)
    then = min((_objective(costs, each, split) for each in _with(costs, ring, device)), default=0)
    if then <= 0:
        return "no span that it has room for fits in"
    what = "between tokens" if split == BATCH else "a token"
    if then <= now:
        return f"the ring would be no quicker with it ({_ms(now)} {what})"
    return f"with it the ring would take {_ms(then)} {what} instead of {_ms(now)}"


def _objective(costs: Costs, ring: Ring, split: str) -> int:
    times = ring_times(costs, ring)
    return times.interval(costs.sessions) if split == BATCH else times.token


def _with(costs: Costs, ring: Ring, device: int) -> Iterator[Ring]:
    """Give rings in which the device has taken layers of the stage before it or after it."""
    starts = costs.starts(device)
    firsts = (0, *ring.cuts[:-1])
    for place, (first, past) in enumerate(zip(firsts, ring.cuts, strict=True)):
        at = place + 1
        # The last layers of the stage before it: one, or all that it has room for.
        for cut in {past - 1, max(first, int(starts[past]))}:
            if first <= cut < past and starts[past] <= cut and (cut > first or place == 0):
                order = (*ring.order[:at], device, *ring.order[at:])
                yield Ring(order, (*ring.cuts[:place], cut, *ring.cuts[place:]))
        if place == 0:
            continue
        # The first layers of the stage after it.
        reach = max((p for p in range(first, past + 1) if starts[p] <= first), default=first)
        for cut in {first + 1, reach}:
            if first < cut < past and starts[cut] <= first:
                order = (*ring.order[:place], device, *ring.order[place:])
                yield Ring(order, (*ring.cuts[:place], cut, *ring.cuts[place:]))
        if starts[past] <= first:  # all of them
            order = (*ring.order[:place], device, *ring.order[at:])
            yield Ring(order, ring.cuts)


def _ms(time_ns: int) -> str:
    return f"{time_ns / 1e6:.1f} ms"
