"""A good ring among any number of devices.

Of thousands of devices only some are worth a look: those that compute a layer for the least time,
their hop counted in. In one order of the ring the best choice of devices and cuts is found
exactly; orders are tried from the nearest neighbour on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.plan.bounds import SCALE_BITS
from edgellama.plan.costs import NEVER, Costs, Ring, ring_times
from edgellama.plan.exact import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.plan.bounds import Outlook
    from edgellama.plan.costs import Times

MODELS_LOOKED_AT: Final = 2  # devices are looked at until they could hold the model so often
DEVICES_LOOKED_AT_MIN: Final = 24
HOMES_TRIED: Final = 3
ROUNDS_MAX: Final = 4  # of sorting the ring anew
SORTED_MAX: Final = 64  # stages of a ring whose order is still improved pair by pair


def likely_ring(costs: Costs, outlook: Outlook, cap_ns: int = NEVER) -> Ring | None:
    """Return a ring that is hard to better, None where none was found.

    No device or link is busy with a token for longer than ``cap_ns``.
    """
    best, best_ns = None, NEVER
    near = promising_devices(outlook)
    for home in _promising_homes(costs, outlook):
        others = [device for device in near if device != home]
        order = _by_nearest(costs, home, others)
        for _ in range(ROUNDS_MAX):
            ring = cut_in_order(costs, order, cap_ns)
            time = ring_times(costs, ring).token if ring else NEVER
            if ring is None or time >= best_ns:
                break
            best, best_ns = ring, time
            order = _sorted_anew(costs, ring, others)
    return best


def promising_devices(outlook: Outlook) -> list[int]:
    """Return devices worth a look as stages, the quickest first, their hop counted in."""
    ranked = np.argsort(outlook.shared, kind="stable")
    ranked = ranked[outlook.kib[ranked] > 0]
    held = np.cumsum(outlook.kib[ranked])
    enough = int(np.searchsorted(held, MODELS_LOOKED_AT * int(outlook.needed_kib[0]))) + 1
    return [int(device) for device in ranked[: max(enough, DEVICES_LOOKED_AT_MIN)]]


def _promising_homes(costs: Costs, outlook: Outlook) -> list[int]:
    """Return the devices that promise most as home, the best first."""
    homes = np.flatnonzero(outlook.home_kib >= 0)
    total = int(outlook.needed_kib[0])
    own = np.minimum(total, outlook.home_kib[homes])
    # What home computes itself needs no hop: of two alike the one with more room is better.
    usual = int(np.sort(outlook.shared)[len(outlook.shared) // 4])
    time = (own * outlook.rates[homes] + (total - own) * usual) >> SCALE_BITS
    ranked = np.argsort(time + costs.heads[homes] + outlook.arriving[homes], kind="stable")
    return [int(homes[place]) for place in ranked[:HOMES_TRIED]]


def _by_nearest(costs: Costs, home: int, others: Sequence[int]) -> list[int]:
    """Return home and the others, each the nearest that is left to the one before."""
    order, left = [home], np.array(others, np.int64)
    while len(left):
        at = int(costs.hops.times[order[-1], left].argmin())
        order.append(int(left[at]))
        left = np.delete(left, at)
    return order


def _sorted_anew(costs: Costs, ring: Ring, others: Sequence[int]) -> list[int]:
    """Return the ring in a shorter order, with each device left out where it is nearest."""
    order = list(ring.order)
    hops = costs.hops.times
    if len(order) <= SORTED_MAX:
        order = _with_moves(hops, order)
    for device in others:
        if device not in order:
            following = np.array([*order[1:], order[0]])
            here = np.array(order)
            detour = hops[here, device] + hops[device, following] - hops[here, following]
            order.insert(int(detour.argmin()) + 1, device)
    return order


def _with_moves(hops: Times, order: list[int]) -> list[int]:
    """Return the ring after moving single devices to better places while that helps."""
    for _ in range(len(order)):
        moved = False
        for device in order[1:]:
            at = order.index(device)
            rest = order[:at] + order[at + 1 :]
            here, following = np.array(rest), np.array([*rest[1:], rest[0]])
            detour = hops[here, device] + hops[device, following] - hops[here, following]
            place = int(detour.argmin())
            if detour[place] < detour[at - 1]:
                order = [*rest[: place + 1], device, *rest[place + 1 :]]
                moved = True
        if not moved:
            break
    return order


def cut_in_order(costs: Costs, order: Sequence[int], cap_ns: int = NEVER) -> Ring | None:
    """Return the quickest ring whose devices are some of ``order`` in this order, home first.

    None where they cannot hold the model, or not without being busy for longer than ``cap_ns``.
    """
    home, others = order[0], list(order[1:])
    layers, reach = costs.layers, costs.home_reach(home, cap_ns)
    if reach < 0:
        return None
    hops = np.where(costs.hops.sends > cap_ns, NEVER, costs.hops.times)[np.ix_(order, order)]
    # times[i, l]: the least until device i of the order has taken its span and l layers are done.
    times = np.full((len(order), layers + 1), NEVER, np.int64)
    times[0, : reach + 1] = costs.heads[home] + costs.compute[home, : reach + 1]
    starts = []
    for place, device in enumerate(others, start=1):
        window = Window(costs.compute[device], costs.starts(device, cap_ns))
        starts.append(window.starts)
        if window.takes_any:
            times[place] = window.take((times[:place] + hops[:place, place, None]).min(axis=0))
    ends = times[:, layers] + np.concatenate([np.zeros(1, np.int64), hops[1:, 0]])
    last = int(ends.argmin())
    if ends[last] >= NEVER:
        return None
    ring, cuts, past = [order[last]], [layers], layers
    while last > 0:
        compute, start = costs.compute[order[last]], int(starts[last - 1][past])
        arriving = times[:last, start:past] + hops[:last, last, None]
        wanted = times[last, past] - (compute[past] - compute[start:past])
        came_from, first = np.argwhere(arriving == wanted)[0]
        last, past = int(came_from), start + int(first)
        ring.append(order[last])
        cuts.append(past)
    return Ring(tuple(ring[::-1]), tuple(cuts[::-1]))
