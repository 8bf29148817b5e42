"""What devices and links cost for one model: the numbers that every planner by speed works on.

All times are whole nanoseconds in int64 arrays, and devices are in the order of their node ids,
so that the same facts give the same numbers and the same plan in whatever order they come.
"""

from __future__ import annotations

from copy import copy
from statistics import median_low
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edgellama.plan.ram import Requirements, layer_kv_bytes
from edgellama.plan.wires import wire_between
from edgellama.values import WIRE_F16, WIRE_Q8, WIRES, DeviceSpeed
from edgellama.wire.lossy_activations import row_bytes as lossy_row_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edgellama.values import DeviceFacts, LinkFacts, ModelFacts, NodeId

    Times = NDArray[np.int64]

NEVER: Final = 1 << 60  # nanoseconds that no sum of real ones reaches
CUT: Final = 1 << 50  # any single fact above is taken as this: thirteen days

# What is not measured yet is taken to be usual.
SPEED_USUAL: Final = DeviceSpeed(100_000, 200, 200)  # 5 GB/s of weights
ROUND_TRIP_USUAL_US: Final = 3_000
BYTES_PER_S_USUAL: Final = 10_000_000
STEP_HEADER_BYTES: Final = 100  # of a step's message and its datagrams, beside the row


class Hops(NamedTuple):
    """What it takes to pass a token's row on, [n, n] from each device to each other one.

    ``times`` is from the end of one stage to the beginning of the next; for ``sends`` of it the
    sender's link is busy. ``rates`` are the bytes a second that links carry, 0 where that is not
    known and taken to be usual.
    """

    times: Times
    sends: Times
    rates: Times


class Costs:
    """The costs of n devices for a model of L layers.

    ``compute[d, l]`` is what the first l layers take on device d, ``ends[l]`` what they occupy
    with their KV cache, ``rooms[d]`` the bytes that device d has for layers and ``home_rooms[d]``
    those that it has as home (negative: it cannot be home). ``heads[d]`` is a token's time in
    embedding, head and sampler.
    """

    def __init__(
        self,
        model: ModelFacts,
        devices: Sequence[DeviceFacts],
        links: Iterable[LinkFacts],
        requirements: Requirements,
    ) -> None:
        assert len({device.node for device in devices}) == len(devices)
        self.devices = tuple(sorted(devices, key=lambda device: device.node))
        self.layers = model.layers
        self.sessions = requirements.sessions_max
        kv_bytes = layer_kv_bytes(model, requirements)
        weights = np.array(model.layer_bytes, np.int64)
        self.ends = _summed(weights + kv_bytes)
        ram = np.array([device.ram_bytes for device in self.devices], np.int64)
        self.rooms = np.maximum(0, ram - model.scratch_bytes)
        self.home_rooms = ram - model.scratch_bytes - model.home_bytes
        speeds = _speeds(self.devices)
        layer_ns, kib_ns, head_ns = (
            np.minimum(np.array(column, np.int64), CUT >> 24)
            for column in zip(*speeds, strict=True)
        )
        each = layer_ns[:, None] + np.minimum(kib_ns[:, None] * weights // 1024, CUT >> 10)
        self.compute = np.stack([_summed(row) for row in each])
        self.heads = np.minimum(head_ns * model.home_bytes // 1024, CUT)
        nodes = [device.node for device in self.devices]
        self.hops = hops_between(nodes, links, _sent_bytes(model, self.devices))

    def only(self, devices: Sequence[int]) -> Costs:
        """Return the costs of some of the devices, named in rising order."""
        assert list(devices) == sorted(devices)
        chosen = copy(self)
        chosen.devices = tuple(self.devices[device] for device in devices)
        chosen.rooms, chosen.home_rooms = self.rooms[devices], self.home_rooms[devices]
        chosen.compute, chosen.heads = self.compute[devices], self.heads[devices]
        pairs = np.ix_(devices, devices)
        chosen.hops = Hops(*(each[pairs] for each in self.hops))
        return chosen

    def index(self, node: NodeId) -> int:
        """Return the place of a device in the arrays; ValueError where it is none of them."""
        return [device.node for device in self.devices].index(node)

    def starts(self, device: int, cap_ns: int = NEVER) -> Times:
        """Return the first layer that a span up to each layer may begin with, [L + 1].

        The device has room for the span, and computes it within ``cap_ns``.
        """
        by_room = np.searchsorted(self.ends, self.ends - self.rooms[device])
        by_time = np.searchsorted(self.compute[device], self.compute[device] - cap_ns)
        starts: Times = np.maximum(by_room, by_time).astype(np.int64)
        return starts

    def home_reach(self, device: int, cap_ns: int = NEVER) -> int:
        """Return how many of the first layers the device can hold as home; -1 for not even none."""
        if self.home_rooms[device] < 0 or self.heads[device] > cap_ns:
            return -1
        by_room = np.searchsorted(self.ends, self.home_rooms[device], "right") - 1
        by_time = np.searchsorted(self.compute[device], cap_ns - self.heads[device], "right") - 1
        return int(min(by_room, by_time))


def row_bytes(model: ModelFacts, wire: str = WIRE_F16) -> int:
    """Return what one token's hidden row takes on a link that carries ``wire``."""
    row = lossy_row_bytes(model.width) if wire == WIRE_Q8 else 2 * model.width + 1
    return row + STEP_HEADER_BYTES


def _sent_bytes(model: ModelFacts, devices: Sequence[DeviceFacts]) -> Times:
    """Return what a row takes from each device to each other one, [n, n]."""
    sizes = {wire: row_bytes(model, wire) for wire in WIRES}
    asked = sorted({device.wire for device in devices})
    by_wish = np.array([[sizes[wire_between(a, b)] for b in asked] for a in asked], np.int64)
    wishes = [asked.index(device.wire) for device in devices]
    return by_wish[np.ix_(wishes, wishes)]


class Ring(NamedTuple):
    """Devices in the order of the ring, home first, and the layer before which each one ends."""

    order: tuple[int, ...]
    cuts: tuple[int, ...]


class RingTimes(NamedTuple):
    """What a ring takes, stage by stage in its order; nanoseconds.

    ``compute`` is of a stage's layers, at home with embedding, head and sampler; ``hops`` is from
    each stage to the next and from the last one home, none where one device does it all.
    """

    compute: tuple[int, ...]
    hops: tuple[int, ...]
    rates: tuple[int, ...]  # of each hop's link, bytes a second; 0 is not known
    busiest: int  # what the busiest device or link does for each token

    @property
    def token(self) -> int:
        """The time of one token of one answer."""
        return sum(self.compute) + sum(self.hops)

    def interval(self, sessions: int) -> int:
        """Return the time between two tokens, whosever, while ``sessions`` answers are made."""
        return max(self.busiest, -(-self.token // sessions))


def ring_times(costs: Costs, ring: Ring) -> RingTimes:
    """Return what a ring takes."""
    firsts = (0, *ring.cuts[:-1])
    compute = [
        int(costs.compute[device, past] - costs.compute[device, first])
        for device, first, past in zip(ring.order, firsts, ring.cuts, strict=True)
    ]
    compute[0] += int(costs.heads[ring.order[0]])
    if len(ring.order) == 1:
        return RingTimes(tuple(compute), (), (), compute[0])
    pairs = list(zip(ring.order, (*ring.order[1:], ring.order[0]), strict=True))
    times, sends, rates = (tuple(int(each[pair]) for pair in pairs) for each in costs.hops)
    return RingTimes(tuple(compute), times, rates, max(*compute, *sends))


def _summed(values: Times) -> Times:
    """Return the sums of the first 0, 1, 2 ... values."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])


def _speeds(devices: Sequence[DeviceFacts]) -> list[DeviceSpeed]:
    """Return each device's speed; one that is not measured yet is taken for a middling one."""
    known = [device.speed for device in devices if device.speed is not None]
    middling = (
        DeviceSpeed(*(median_low(column) for column in zip(*known, strict=True)))
        if known
        else SPEED_USUAL
    )
    return [device.speed or middling for device in devices]


def hops_between(nodes: Sequence[NodeId], links: Iterable[LinkFacts], sent_bytes: Times) -> Hops:
    """Return the hops between all devices, from what any of them has measured.

    ``sent_bytes`` [n, n] is what is sent for a token.

    Where both ends have measured the round trip their mean counts. A pair that has not been
    measured is taken to be half as far apart as both are from the middling one of their peers.
    """
    places = {node: place for place, node in enumerate(nodes)}
    count = len(nodes)
    trips: dict[tuple[int, int], list[int]] = {}
    around: list[list[int]] = [[] for _ in nodes]
    rates: dict[tuple[int, int], int] = {}
    for link in links:
        pair = (places.get(link.node, -1), places.get(link.peer, -1))
        if -1 in pair or pair[0] == pair[1]:
            continue
        trips.setdefault((min(pair), max(pair)), []).append(link.round_trip_us)
        around[pair[0]].append(link.round_trip_us)
        around[pair[1]].append(link.round_trip_us)
        if link.bytes_per_s:
            rates[pair] = link.bytes_per_s
    measured = sorted(trip for trips_here in trips.values() for trip in trips_here)
    usual = median_low(measured) if measured else ROUND_TRIP_USUAL_US
    middle = np.array([median_low(sorted(here)) if here else usual for here in around], np.int64)
    round_trips = (middle[:, None] + middle[None, :]) // 2
    for (one, other), both in trips.items():
        round_trips[one, other] = round_trips[other, one] = sum(both) // len(both)
    known = np.zeros((count, count), np.int64)
    for (one, other), rate in rates.items():
        known[one, other] = rate
        if (other, one) not in rates:
            known[other, one] = rate
    bytes_per_s = np.where(known > 0, known, BYTES_PER_S_USUAL)
    sends = np.minimum(sent_bytes * 1_000_000_000 // bytes_per_s, CUT)
    times = np.minimum(round_trips * 500, CUT) + sends
    return Hops(times, sends, known)
