"""The quickest ring of all: every choice of devices, every order of them and every cut, at once.

Dynamic programming over sets of devices, as Held and Karp's for the travelling salesman (1962),
with one more coordinate for the layers that are placed already:

    best[S, j][l] = the least time in which home and the devices of S, j being the last of them,
                    compute the first l layers, hops between them included

A span costs the difference of two sums, so that the best beginning of j's span for each end is a
minimum over a sliding window. There are 2^n sets: it is for a dozen devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgellama.plan.bounds import Outlook
from edgellama.plan.costs import NEVER, Costs, Ring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellama.plan.costs import Times


def quickest_ring(
    costs: Costs,
    cap_ns: int = NEVER,
    below_ns: int = NEVER,
    *,
    any_will_do: bool = False,
    effort: Effort | None = None,
) -> Ring | None:
    """Return a ring of the least time a token, None where no ring takes less than ``below_ns``.

    No device or link is busy with a token for longer than ``cap_ns``. Where ``any_will_do`` the
    first ring that is found counts. When ``effort`` is spent, what was found until then is
    returned, which says nothing of what there is.
    """
    effort = effort or Effort()
    best: _End | None = None
    outlook = Outlook(costs, cap_ns)
    searches = [
        _Search(costs, outlook, home, cap_ns)
        for home in range(len(costs.devices))
        if costs.home_reach(home, cap_ns) >= 0
    ]
    for search in sorted(searches, key=lambda search: (search.least_ns, search.home)):
        end = search.run(below_ns, effort, any_will_do=any_will_do)
        if end is not None:
            best, below_ns = end, end.time
            found = search
            if any_will_do:
                break
        if effort.is_spent:
            break
    if best is None:
        return None
    # Once more with the time known: hardly anything is left to look at, and it may be kept.
    end = found.run(best.time + 1, Effort(), keep=True)
    assert end is not None
    return found.ring(end)


class Effort:
    """How much may still be looked at, in times of partial rings: the same on every machine."""

    def __init__(self, times: int = NEVER) -> None:
        self._left = times

    @property
    def is_spent(self) -> bool:
        """Whether something was left out for it."""
        return self._left < 0

    def take(self, times: int) -> bool:
        """Return whether so many more may be looked at."""
        self._left -= times
        return not self.is_spent


class _End(NamedTuple):
    """Where the quickest ring of a home ends; ``set`` 0: home does all alone."""

    time: int
    level: int
    set: int
    last: int


class _Level(NamedTuple):
    """All sets of so many devices that may belong to the quickest ring.

    ``times`` is [sets, devices, L + 1], NEVER where the device is not in the set.
    """

    sets: NDArray[np.int64]
    times: Times


class _Search:
    """The search with one device as home."""

    def __init__(self, costs: Costs, outlook: Outlook, home: int, cap_ns: int) -> None:
        self.home = home
        self._costs = costs
        self._outlook = outlook
        count, layers = len(costs.devices), costs.layers
        self._windows = {
            device: Window(costs.compute[device], costs.starts(device, cap_ns))
            for device in range(count)
            if device != home
        }
        self._others = [device for device, window in self._windows.items() if window.takes_any]
        times = np.where(costs.hops.sends > cap_ns, NEVER, costs.hops.times)
        self._hops = times[np.ix_(self._others, self._others)]
        self._from_home = times[home, self._others]
        self._to_home = times[self._others, home]
        reach = costs.home_reach(home, cap_ns)
        self._first = np.full(layers + 1, NEVER, np.int64)
        self._first[: reach + 1] = costs.heads[home] + costs.compute[home, : reach + 1]
        self._rest = self._rest_times()
        self.least_ns = int(self._first[-1])
        for place, device in enumerate(self._others):
            after = self._windows[device].take(self._first + self._from_home[place])
            self.least_ns = min(self.least_ns, int((after + self._rest).min()))
        self._levels: list[_Level] = []

    def _rest_times(self) -> Times:
        """Return a bound on what is still to come once the first l layers are placed, [L + 1].

        It is for rings that have left home already. A device may be used again and again there,
        and is reached by its shortest hop.
        """
        layers = self._costs.layers
        rest = np.full(layers + 1, NEVER, np.int64)
        if not self._others:
            return rest
        rest[layers] = self._to_home.min()
        hops = (self._hops + np.diag(np.full(len(self._others), NEVER))).min(axis=0)
        compute = self._costs.compute[self._others]
        starts = np.stack([self._windows[device].starts for device in self._others])
        for first in range(layers - 1, -1, -1):
            spans = compute[:, first + 1 :] - compute[:, first, None] + hops[:, None]
            ends = np.where(starts[:, first + 1 :] <= first, spans + rest[first + 1 :], NEVER)
            rest[first] = min(NEVER, int(ends.min()))
        return rest

    def run(
        self, below_ns: int, effort: Effort, *, keep: bool = False, any_will_do: bool = False
    ) -> _End | None:
        """Return the end of the quickest ring below ``below_ns``; keep the way to it if asked.

        Where ``any_will_do`` it is the quickest of those with the fewest stages.
        """
        best = None
        if self._first[-1] < below_ns:
            best, below_ns = _End(int(self._first[-1]), 0, 0, 0), int(self._first[-1])
        self._levels = []
        level = self._first_level(below_ns)
        while level is not None and not (best is not None and any_will_do):
            if not effort.take(level.times.size):
                break
            if keep:
                self._levels.append(level)
            ends = level.times[:, :, -1] + self._to_home
            row, last = np.unravel_index(int(ends.argmin()), ends.shape)
            if ends[row, last] < below_ns:
                below_ns = int(ends[row, last])
                number = int(level.sets[row]).bit_count()
                best = _End(below_ns, number, int(level.sets[row]), int(last))
            level = self._next_level(level, below_ns)
        return best

    def _first_level(self, below_ns: int) -> _Level | None:
        count = len(self._others)
        if not count:
            return None
        times = np.full((count, count, self._costs.layers + 1), NEVER, np.int64)
        for place, device in enumerate(self._others):
            times[place, place] = self._windows[device].take(self._first + self._from_home[place])
        sets = np.left_shift(1, np.arange(count, dtype=np.int64))
        return self._pruned(_Level(sets, times), below_ns)

    def _next_level(self, level: _Level, below_ns: int) -> _Level | None:
        count = len(self._others)
        grown = level.sets[:, None] | np.left_shift(1, np.arange(count, dtype=np.int64))[None, :]
        sets = np.setdiff1d(grown, level.sets)
        if not len(sets):
            return None
        times = np.full((len(sets), count, self._costs.layers + 1), NEVER, np.int64)
        for place, device in enumerate(self._others):
            without = np.flatnonzero(level.sets >> place & 1 == 0)
            if len(without):
                before = level.times[without] + self._hops[:, place][None, :, None]
                rows = np.searchsorted(sets, level.sets[without] | 1 << place)
                times[rows, place] = self._windows[device].take(before.min(axis=1))
        return self._pruned(_Level(sets, times), below_ns)

    def _pruned(self, level: _Level, below_ns: int) -> _Level | None:
        """Return the level without what cannot become a ring below ``below_ns``."""
        sets, times = level
        free = sets[:, None] >> np.arange(len(self._others)) & 1 == 0
        filled = self._outlook.fill(self._outlook.needed_kib, self._others, free)
        rest = np.maximum(self._rest, filled + self._to_home.min())
        times[times + rest[:, None, :] >= below_ns] = NEVER
        alive = np.flatnonzero((times < NEVER).any(axis=(1, 2)))
        return _Level(sets[alive], times[alive]) if len(alive) else None

    def ring(self, end: _End) -> Ring:
        """Return the ring to an end that ``run`` has kept the way to."""
        order, cuts = [], []
        members, last, past = end.set, end.last, self._costs.layers
        time = end.time - (int(self._to_home[last]) if members else 0)
        for number in range(end.level, 0, -1):
            order.append(self._others[last])
            cuts.append(past)
            before = members & ~(1 << last)
            window = self._windows[self._others[last]]
            wanted = window.before(time, past)
            if number == 1:
                arriving = (self._first + self._from_home[last])[None, :]
                places: Sequence[int] = [0]
            else:
                level = self._levels[number - 2]
                row = int(np.searchsorted(level.sets, before))
                arriving = level.times[row] + self._hops[:, last][:, None]
                places = range(len(self._others))
            first, came_from = _found(arriving, wanted, int(window.starts[past]), past, places)
            if number > 1:
                time = int(arriving[came_from, first]) - int(self._hops[came_from, last])
            members, last, past = before, came_from, first
        return Ring((self.home, *order[::-1]), (past, *cuts[::-1]))


def _found(
    arriving: Times, wanted: Times, start: int, past: int, places: Sequence[int]
) -> tuple[int, int]:
    """Return from which layer and which device the time that was reached has come."""
    for place in places:
        equal = np.flatnonzero(arriving[place, start:past] == wanted[start:past])
        if len(equal):
            return start + int(equal[0]), place
    raise AssertionError("a time that nothing leads to")


class Window:
    """What it costs to let one device take a span of at least one layer.

    ``compute`` [L + 1] are the sums of its layers' times, ``starts`` [L + 1] the first layer that
    a span up to each layer may begin with.
    """

    def __init__(self, compute: Times, starts: Times) -> None:
        self.starts = starts
        self._compute = compute
        pasts = np.arange(len(starts), dtype=np.int64)
        widths = pasts - starts
        self._pasts = pasts[widths > 0]
        self._firsts = starts[widths > 0]
        powers = np.frexp(np.maximum(1, widths[widths > 0]).astype(np.float64))[1] - 1
        self._powers = powers.astype(np.int64)

    @property
    def takes_any(self) -> bool:
        """Whether there is any span that the device can take."""
        return len(self._pasts) > 0

    def take(self, before: Times) -> Times:
        """Return the least time up to each layer, [..., L + 1], after the device has taken a span.

        ``before`` [..., L + 1] are the least times up to each layer until it begins.
        """
        after = np.full_like(before, NEVER)
        # Minimums of spans of a power of two; any window is two of them, which overlap.
        least = before - self._compute
        for power in range(int(self._powers.max()) + 1):
            if power:
                half = 1 << (power - 1)
                least = np.minimum(least[..., :-half], least[..., half:])
            here = self._powers == power
            pasts, firsts = self._pasts[here], self._firsts[here]
            window = np.minimum(least[..., firsts], least[..., pasts - (1 << power)])
            after[..., pasts] = window + self._compute[pasts]
        return np.where(after >= NEVER // 2, NEVER, after)

    def before(self, time: int, past: int) -> Times:
        """Return what the time before the span must have been for each of its firsts, [L + 1]."""
        before: Times = time - (self._compute[past] - self._compute)
        return before
