"""Layers to devices in proportion to the memory that each offers: the specification's code.

See ``docs/spec/plan.md``. Everything is an integer and every tie is broken by node id, so that
any node with the same facts computes the same placement, whatever the order they came in.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from edgellama.plan.sizes import format_size
from edgellama.values import (
    KV_F16,
    KV_KINDS,
    DeviceFacts,
    ModelFacts,
    Span,
    StagePlacement,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

KV_POSITIONS_MULTIPLE: Final = 64  # a KV cache holds a multiple of this many positions


@dataclass(frozen=True)
class Requirements:
    """For how much KV cache there must be room: ``context`` positions in each session."""

    context: int
    sessions_max: int
    kv_kind: str = KV_F16

    def __post_init__(self) -> None:
        assert self.kv_kind in KV_KINDS
        assert self.context >= 1
        assert self.sessions_max >= 1


@dataclass(frozen=True)
class Unplaceable:
    """The devices cannot hold the model; with ``missing_bytes`` more on ``worst`` they could.

    ``need_bytes`` is what the model would take on one device, ``offered_bytes`` what all offer
    together, ``worst`` the name of the device that comes nearest to being home (empty without
    any device) and ``reason`` the line for a person.
    """

    missing_bytes: int
    need_bytes: int
    offered_bytes: int
    worst: str
    reason: str


def layer_kv_bytes(model: ModelFacts, requirements: Requirements) -> int:
    """Return the bytes of one layer's KV cache for all sessions."""
    blocks = -(-requirements.context // KV_POSITIONS_MULTIPLE)
    f16 = requirements.kv_kind == KV_F16
    token_bytes = model.kv_bytes_per_token if f16 else model.kv_q8_bytes_per_token
    return token_bytes * blocks * KV_POSITIONS_MULTIPLE * requirements.sessions_max


def stage_bytes(model: ModelFacts, span: Span, is_home: bool, requirements: Requirements) -> int:
    """Return the bytes that a device holds for ``span``: weights, KV cache and scratch.

    Home holds the embedding, the output norm and the head besides.
    """
    weights = sum(model.layer_bytes[span.first : span.past])
    kv = span.layers * layer_kv_bytes(model, requirements)
    return weights + kv + model.scratch_bytes + (model.home_bytes if is_home else 0)


def place(
    model: ModelFacts, devices: Sequence[DeviceFacts], requirements: Requirements
) -> tuple[StagePlacement, ...] | Unplaceable:
    """Return the stages in the order of the ring, home first, or why there are none.

    No device ever holds more than it offers, and together the spans are all the layers in
    order. Home is the device that offers the most among those with which the model fits; the
    others follow by falling offer, and those whose share rounds to no layer are left out (home
    stays, with an empty span if it has room for nothing more). Where all layers cost the same,
    Unplaceable means that no placement exists; else, that none exists in this order of the ring.
    """
    assert len({device.node for device in devices}) == len(devices)
    layers = _Layers(model, requirements)
    ranked = sorted(devices, key=lambda device: (-device.ram_bytes, device.node))
    offer_tried = None
    for index, home in enumerate(ranked):
        if home.ram_bytes < model.home_bytes + model.scratch_bytes:
            break
        if home.ram_bytes == offer_tried:
            continue  # the same offer as home does not fit the model either
        offer_tried = home.ram_bytes
        ring = [home, *ranked[:index], *ranked[index + 1 :]]
        rooms = _rooms(model, ring)
        if layers.fit(rooms):
            cuts = layers.cuts(rooms)
            return tuple(
                StagePlacement(device.node, Span(first, past))
                for device, first, past in zip(ring, [0, *cuts], cuts, strict=False)
                if past > first or device is home
            )
    return _unplaceable(model, layers, ranked)


def _rooms(model: ModelFacts, ring: Sequence[DeviceFacts]) -> list[int]:
    """Return the bytes that each device of the ring, home first, has for layers."""
    rooms = [max(0, device.ram_bytes - model.scratch_bytes) for device in ring]
    rooms[0] -= model.home_bytes
    return rooms


class _Layers:
    """What the layers cost, weights and KV cache together, added up from the first on.

    ``rooms`` are always the bytes for layers in the order of the ring, and a cut is the number
    of the first layer of the next device.
    """

    def __init__(self, model: ModelFacts, requirements: Requirements) -> None:
        kv = layer_kv_bytes(model, requirements)
        self.ends = list(accumulate((weights + kv for weights in model.layer_bytes), initial=0))
        self.count = model.layers

    def reach(self, first: int, room: int) -> int:
        """Return how far a device with ``room`` gets when it starts at layer ``first``."""
        return bisect_right(self.ends, self.ends[first] + room) - 1

    def start(self, past: int, room: int) -> int:
        """Return the least layer from which a device with ``room`` gets to ``past``."""
        return bisect_left(self.ends, self.ends[past] - room)

    def fit(self, rooms: Sequence[int]) -> bool:
        """Say whether all layers fit when every device takes as many as it can.

        More room anywhere, or one more device, never turns yes into no: the rooms after home
        fall, so each one's reach can only grow.
        """
        first = 0
        for index, room in enumerate(rooms):
            past = self.reach(first, room)
            if past == self.count:
                return True
            if past == first and index > 0:
                return False  # the devices after this one have no more room than it
            first = past
        return False

    def latest_starts(self, rooms: Sequence[int]) -> list[int]:
        """Return for each device the least layer at which it and those after it can start.

        One entry more than there are rooms: after the last device no layer may be left.
        """
        starts = [self.count]
        for room in reversed(rooms):
            starts.append(self.start(starts[-1], room))
        return starts[::-1]

    def cuts(self, rooms: Sequence[int]) -> list[int]:
        """Return where each device's span ends: in proportion, moved only where it must be.

        A cut may lie no further than the device before it reaches, and no nearer than where
        the devices after it can still take the rest. Such a cut always exists when the layers
        fit: from a start that is late enough the device reaches the next one's.
        """
        starts = self.latest_starts(rooms)
        cuts: list[int] = []
        first = 0
        for room, wish, start in zip(rooms, self._wishes(rooms), starts[1:], strict=True):
            first = min(max(first, wish, start), self.reach(first, room))
            cuts.append(first)
        assert first == self.count
        return cuts

    def _wishes(self, rooms: Sequence[int]) -> list[int]:
        """Return the cuts by largest remainder, each at the nearest boundary of bytes.

        Where layers cost the same the boundary is the count itself. Home gets at least one
        layer if it has room for it.
        """
        counts = largest_remainder(self.count, rooms)
        total_bytes = self.ends[-1]
        wishes = []
        for count in accumulate(counts):
            target = total_bytes * count // max(1, self.count)
            past = bisect_left(self.ends, target)
            if past > 0 and target - self.ends[past - 1] < self.ends[past] - target:
                past -= 1
            wishes.append(past)
        wishes[0] = max(wishes[0], min(1, self.count))
        return wishes


def largest_remainder(seats: int, weights: Sequence[int]) -> list[int]:
    """Share ``seats`` in proportion to ``weights``; of equal remainders the earlier wins."""
    total = sum(weights)
    if total == 0:  # nothing to go by, and with no room at all nothing to share
        return [seats, *([0] * (len(weights) - 1))]
    shares = [seats * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(seats * weights[i] % total), i))
    for index in by_remainder[: seats - sum(shares)]:
        shares[index] += 1
    return shares


def _unplaceable(model: ModelFacts, layers: _Layers, ranked: Sequence[DeviceFacts]) -> Unplaceable:
    """Say what is missing, on the device with the most memory, as home."""
    fixed_bytes = model.home_bytes + model.scratch_bytes
    need_bytes = fixed_bytes + layers.ends[-1]
    offered_bytes = sum(device.ram_bytes for device in ranked)
    if not ranked:
        reason = f"the model needs {format_size(need_bytes)} of memory and no device offers any"
        return Unplaceable(need_bytes, need_bytes, 0, "", reason)
    others = [max(0, device.ram_bytes - model.scratch_bytes) for device in ranked[1:]]
    home_layers = layers.latest_starts(others)[0]
    missing_bytes = fixed_bytes + layers.ends[home_layers] - ranked[0].ram_bytes
    assert missing_bytes > 0
    devices = "1 device offers" if len(ranked) == 1 else f"{len(ranked)} devices offer"
    uncut = "" if offered_bytes < need_bytes else ", where no cut between layers fits"
    reason = (
        f"the model needs {format_size(need_bytes)} of memory and {devices} "
        f"{format_size(offered_bytes)}{uncut}: {format_size(missing_bytes)} "
        f"({missing_bytes} bytes) are missing in all, on {ranked[0].name}"
    )
    return Unplaceable(missing_bytes, need_bytes, offered_bytes, ranked[0].name, reason)
