"""A placement after a change that moves the fewest bytes: who stays keeps the layers it holds.

See ``docs/spec/plan.md``. Weights that move have to be fetched and packed, and the KV caches of
running answers computed again; so when a device is lost, the others shall move little.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edgellama.plan.ram import Requirements, layer_kv_bytes
from edgellama.values import DeviceFacts, ModelFacts, Span, StagePlacement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgellama.values import NodeId

HOMES_TRIED_MAX: Final = 8
SPARES_MAX: Final = 64  # devices without layers that are tried, the greatest offers first

_UNITS: Final = 1 << 20  # that all layers together are counted in, so that squares fit 64 bits
_CROWDING_BITS: Final = 32  # a score is the units kept, times 2**32, less the units of crowding
_IMPOSSIBLE: Final = -(1 << 62)


class _Seat(NamedTuple):
    """A device of a ring: how many bytes it has room for, and what it holds already."""

    node: NodeId
    room: int
    held: Span


def place_with_least_movement(
    model: ModelFacts,
    devices: Sequence[DeviceFacts],
    requirements: Requirements,
    held: Sequence[StagePlacement],
) -> tuple[StagePlacement, ...] | None:
    """Return the placement that leaves the most bytes of layers where ``held`` has them.

    ``devices`` are those that can take part, ``held`` the stages of the plan before, lost ones
    too. Who is in both keeps its place in the ring; home stays home while it can. Devices that
    held nothing are taken in only when it does not fit without them, in the place of who is
    lost. Among placements that move equally little the one that crowds devices least is chosen.
    None where no such ring fits the model: then it takes a placement from scratch.
    """
    costs = [weights + layer_kv_bytes(model, requirements) for weights in model.layer_bytes]
    for rings in _rings(devices, held):
        best: tuple[int, tuple[StagePlacement, ...]] | None = None
        for ring in rings:
            found = _best_cuts(costs, _seats(model, ring, held))
            if found is not None and (best is None or found[0] > best[0]):
                best = found
        if best is not None:
            return best[1]
    return None


def _rings(
    devices: Sequence[DeviceFacts], held: Sequence[StagePlacement]
) -> Iterator[list[list[DeviceFacts]]]:
    """Yield groups of rings to be tried, home first in each: with the fewest newcomers first."""
    by_node = {device.node: device for device in devices}
    held_nodes = {stage.node for stage in held}
    spares = [device for device in devices if device.node not in held_nodes]
    spares.sort(key=lambda device: (-device.ram_bytes, device.node))
    counts = range(min(len(spares), SPARES_MAX) + 1)
    rings = [ring for count in counts if (ring := _ring(by_node, held, spares[:count]))]
    if held and held[0].node in by_node:
        yield from ([ring] for ring in rings)
    for ring in rings:
        yield [_with_home(ring, index) for index in _homes(ring)]


def _ring(
    by_node: dict[NodeId, DeviceFacts],
    held: Sequence[StagePlacement],
    newcomers: Sequence[DeviceFacts],
) -> list[DeviceFacts]:
    """Return who is left of the old ring in its order, with newcomers where others are lost."""
    waiting = list(newcomers)
    ring = []
    for stage in held:
        device = by_node.get(stage.node)
        if device is not None:
            ring.append(device)
        elif waiting:
            ring.append(waiting.pop(0))
    return ring + waiting


def _homes(ring: Sequence[DeviceFacts]) -> list[int]:
    """Return which devices of a ring are tried as home: the first one and the greatest offers."""
    others = sorted(range(1, len(ring)), key=lambda i: (-ring[i].ram_bytes, ring[i].node))
    return [0, *others[: HOMES_TRIED_MAX - 1]]


def _with_home(ring: Sequence[DeviceFacts], index: int) -> list[DeviceFacts]:
    return [ring[index], *ring[:index], *ring[index + 1 :]]


def _seats(
    model: ModelFacts, ring: Sequence[DeviceFacts], held: Sequence[StagePlacement]
) -> list[_Seat]:
    spans = {stage.node: stage.span for stage in held}
    rooms = [device.ram_bytes - model.scratch_bytes for device in ring]
    rooms[0] -= model.home_bytes
    return [
        _Seat(device.node, room, spans.get(device.node, Span(0, 0)))
        for device, room in zip(ring, rooms, strict=True)
    ]


def _best_cuts(
    costs: Sequence[int], seats: Sequence[_Seat]
) -> tuple[int, tuple[StagePlacement, ...]] | None:
    """Return the best score for a ring and its placement; None where the layers do not fit.

    Dynamic programming over (seat, layer): the best score with which the seats so far hold
    exactly the layers before that one. Empty spans are left out, but for home's.
    """
    if seats[0].room < 0:
        return None
    ends = np.array([0, *accumulate(costs)], np.int64)
    layers = len(costs)
    best = np.full(layers + 1, _IMPOSSIBLE, np.int64)
    best[0] = 0
    choices: list[NDArray[np.int64]] = []
    for seat in seats:
        scores = _span_scores(ends, seat)  # [first, past]
        possible = (best[:, None] > _IMPOSSIBLE) & (scores > _IMPOSSIBLE)
        reached = np.where(possible, best[:, None] + scores, _IMPOSSIBLE)
        choices.append(np.argmax(reached, axis=0))
        best = np.max(reached, axis=0)
    if best[layers] <= _IMPOSSIBLE:
        return None
    spans: list[Span] = []
    past = layers
    for choice in reversed(choices):
        first = int(choice[past])
        spans.append(Span(first, past))
        past = first
    placements = zip(seats, reversed(spans), strict=True)
    return int(best[layers]), tuple(
        StagePlacement(seat.node, span)
        for index, (seat, span) in enumerate(placements)
        if span.layers or index == 0
    )


def _span_scores(ends: NDArray[np.int64], seat: _Seat) -> NDArray[np.int64]:
    """Return the score of every span [first, past] for a seat: what it keeps, less crowding.

    The crowding of a span is its size squared by the seat's room; the sum over all seats is the
    least where all are equally full.
    """
    first = np.arange(len(ends))[:, None]
    past = np.arange(len(ends))[None, :]
    possible = (first == past) | ((first < past) & (ends[past] - ends[first] <= seat.room))
    unit_bytes = int(ends[-1]) // _UNITS + 1
    units = ends // unit_bytes
    kept_first = np.clip(first, seat.held.first, seat.held.past)
    kept_past = np.clip(past, seat.held.first, seat.held.past)
    kept = units[kept_past] - units[kept_first]
    size = units[past] - units[first]
    crowding = size * size // max(1, seat.room // unit_bytes)
    return np.where(possible, (kept << _CROWDING_BITS) - crowding, _IMPOSSIBLE)
