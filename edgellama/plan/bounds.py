"""What devices can do at their best, and so what no ring can better.

Layers are taken for as divisible as water here, and each device for as far away as the nearest
other one. What is left is filling the quickest devices first, which is easily done and is never
more than any ring takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.plan.costs import NEVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellama.plan.costs import Costs, Times

SCALE_BITS: Final = 10  # a KiB's time is kept in 1024ths of a nanosecond
KIB_MAX: Final = 1 << 33  # above that, times and sizes are cut: a bound only gets lower
RATE_MAX: Final = 1 << 28


class Outlook:
    """What each of n devices can do at its best.

    ``rates`` [n] is the least time of a KiB of layers there in 1024ths of a nanosecond, ``shared``
    [n] the same with the hop to the device shared by all that it can hold; ``kib`` [n] is how much
    it can hold as a stage, and ``home_kib`` as home (-1: it cannot be home).
    """

    def __init__(self, costs: Costs, cap_ns: int = NEVER) -> None:
        self._costs = costs
        count = len(costs.devices)
        total = int(costs.ends[-1])
        sizes = np.maximum(1, np.diff(costs.ends))
        each = np.minimum(np.diff(costs.compute, axis=1), 1 << 40) << (10 + SCALE_BITS)
        self.rates = np.minimum((each // sizes).min(axis=1), RATE_MAX)
        self.layers = costs.layers
        self.needed_kib = _floor_kib(total - costs.ends)  # when the first l layers are done
        within = np.minimum(cap_ns, NEVER >> SCALE_BITS) << SCALE_BITS
        in_time = np.minimum(within // np.maximum(1, self.rates) + 1, KIB_MAX)
        self.kib = np.minimum(_ceil_kib(np.minimum(costs.rooms, total)), in_time)
        least_bytes = int(sizes.min())
        self.kib[costs.rooms < least_bytes] = 0
        home_bytes = np.minimum(costs.home_rooms, total)
        self.home_kib = np.minimum(_ceil_kib(home_bytes), in_time)
        self.home_kib[costs.home_rooms < 0] = -1
        away = costs.hops.times + np.diag(np.full(count, NEVER))
        self.arriving = away.min(axis=0) if count > 1 else np.full(1, NEVER)
        hops = np.minimum(self.arriving, NEVER >> (SCALE_BITS + 1)) << SCALE_BITS
        self.shared = np.minimum(self.rates + hops // np.maximum(1, self.kib), RATE_MAX)

    def fill(self, needed_kib: Times, devices: Sequence[int], free: NDArray[np.bool_]) -> Times:
        """Return the least time for ``needed_kib`` [..., L + 1] on ``devices``, NEVER without room.

        ``free`` [..., n devices] says which of them may be used, for each row.
        """
        left = np.broadcast_to(needed_kib, (*free.shape[:-1], needed_kib.shape[-1])).copy()
        time = np.zeros_like(left)
        for place in np.argsort(self.shared[list(devices)], kind="stable"):
            device = devices[int(place)]
            most = np.where(free[..., place], self.kib[device], 0)
            taken = np.minimum(left, most[..., None])
            time += taken * self.shared[device]
            left -= taken
        return np.where(left > 0, NEVER, time >> SCALE_BITS)

    def least_token_ns(self) -> int:
        """Return a time that no ring goes below for one token; NEVER where there is no ring."""
        costs, total_kib = self._costs, int(self.needed_kib[0])
        ranked = np.argsort(self.shared, kind="stable")
        # sums[i], times[i]: what the i devices that are the quickest with their hops can hold
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.kib[ranked])])
        times = np.cumsum(np.minimum(self.kib[ranked], total_kib) * self.shared[ranked])
        times = np.concatenate([np.zeros(1, np.int64), times])
        best = NEVER
        for home in np.flatnonzero(self.home_kib >= 0):
            if costs.home_rooms[home] >= costs.ends[-1]:
                best = min(best, int(costs.heads[home] + costs.compute[home, -1]))
            if len(costs.devices) == 1:
                continue
            fixed = int(costs.heads[home] + self.arriving[home])
            own = min(total_kib, int(self.home_kib[home]))
            # Home's own layers need no hop: they come after those of devices that are quicker
            # with theirs, and before all others.
            quicker = sums[int(np.searchsorted(self.shared[ranked], self.rates[home]))]
            taken = min(own, max(0, total_kib - int(quicker)))
            at = int(np.searchsorted(sums, total_kib - taken))
            if at == len(sums):
                continue
            filled = taken * int(self.rates[home])
            if at:
                rest = total_kib - taken - int(sums[at - 1])
                filled += int(times[at - 1]) + rest * int(self.shared[ranked[at - 1]])
            best = min(best, fixed + (filled >> SCALE_BITS))
        return best

    def least_interval_ns(self, token_ns: int) -> int:
        """Return what no ring goes below for the time between two tokens, whosever they are.

        ``token_ns`` is a bound of one answer's.
        """
        if token_ns >= NEVER:
            return NEVER
        most_kib = np.maximum(self.kib, self.home_kib)
        low, high = -(-token_ns // self._costs.sessions) - 1, token_ns
        while high - low > 1:
            middle = (low + high) // 2
            done = np.minimum(most_kib, (middle << SCALE_BITS) // np.maximum(1, self.rates) + 1)
            low, high = (low, middle) if done.sum() >= self.needed_kib[0] else (middle, high)
        return high


def least_busy_ns(costs: Costs, low: int, high: int) -> int:
    """Return a time above ``low``, ``high`` at most, that no ring's busiest device goes below.

    Each device takes as many whole layers as it has room for and computes in that time, wherever
    they lie: together they must be all layers.
    """
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _can_share(costs, middle) else (middle, high)
    return high


def _can_share(costs: Costs, cap_ns: int) -> bool:
    devices, pasts = range(len(costs.devices)), np.arange(costs.layers + 1)
    most = [int((pasts - costs.starts(device, cap_ns)).max()) for device in devices]
    reaches = [costs.home_reach(device, cap_ns) for device in devices]
    homes = [reach - most[home] for home, reach in enumerate(reaches) if reach >= 0]
    return bool(homes) and sum(most) + max(homes) >= costs.layers


def _floor_kib(size_bytes: Times) -> Times:
    kib: Times = np.minimum(size_bytes >> 10, KIB_MAX)
    return kib


def _ceil_kib(size_bytes: Times) -> Times:
    return _floor_kib(np.maximum(0, size_bytes) + 1023)
