"""Which placement a mesh shall have: by its split, and by what it has already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama.plan.costs import Costs
from edgellama.plan.movement import place_with_least_movement
from edgellama.plan.ram import Unplaceable, place, stage_bytes
from edgellama.plan.speed import EFFORT_MAX, is_worth_changing, place_by_speed, predict
from edgellama.values import RAM, StageTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.plan.ram import Requirements
    from edgellama.plan.speed import Prediction
    from edgellama.values import DeviceFacts, LinkFacts, ModelFacts, StagePlacement


@dataclass(frozen=True)
class Choice:
    """The stages in the order of the ring, and what each one is expected to take.

    ``predicted`` is empty where nothing has been measured yet. No placement takes less than
    ``bound_ns``, which is None where the split is not by speed.
    """

    stages: tuple[StagePlacement, ...]
    predicted: tuple[StageTimes, ...]
    bound_ns: int | None = None


def choose(
    model: ModelFacts,
    devices: Sequence[DeviceFacts],
    links: Sequence[LinkFacts],
    requirements: Requirements,
    split: str,
    held: Sequence[StagePlacement] = (),
    effort_max: int = EFFORT_MAX,
) -> Choice | Unplaceable:
    """Return the placement for ``split``; ``held`` are the stages that the mesh has had so far.

    ``effort_max`` bounds the search for the best one by speed.

    Where the split is by speed, another placement than the one held must promise to be better by
    more than 15 %; where a device of it is lost, better than the one that moves the least. By
    memory it is kept until a device comes that shall hold layers as well; where one of it is lost,
    the placement that moves the least is taken.
    """
    if not devices:
        nowhere = place(model, devices, requirements)
        assert isinstance(nowhere, Unplaceable)
        return nowhere
    costs = Costs(model, devices, links, requirements)
    known = any(device.speed for device in devices)
    if split == RAM or not known:
        stages = _by_memory(model, devices, requirements, held)
        if isinstance(stages, Unplaceable):
            return stages
        return Choice(stages, stage_times(predict(costs, stages)) if known else ())
    found = place_by_speed(costs, split, effort_max)
    bound_ns = found.bound_ns if found else None
    if found is None:
        stages = place(model, devices, requirements)
        if isinstance(stages, Unplaceable):
            return stages
        best = predict(costs, stages)
    else:
        stages, best = found.stages, found.prediction
    kept = _kept(model, devices, requirements, held)
    if kept is not None:
        now = predict(costs, kept)
        if not is_worth_changing(now, best, split):
            return Choice(kept, stage_times(now), bound_ns)
    return Choice(stages, stage_times(best), bound_ns)


def _by_memory(
    model: ModelFacts,
    devices: Sequence[DeviceFacts],
    requirements: Requirements,
    held: Sequence[StagePlacement],
) -> tuple[StagePlacement, ...] | Unplaceable:
    kept = _kept(model, devices, requirements, held)
    if kept is not None and kept != tuple(held):
        return kept  # one is lost, or has room for less than it holds
    fresh = place(model, devices, requirements)
    if kept is None or isinstance(fresh, Unplaceable):
        return fresh if kept is None else kept
    comes = {stage.node for stage in fresh} - {stage.node for stage in kept}
    return fresh if comes else kept


def stage_times(prediction: Prediction) -> tuple[StageTimes, ...]:
    """Return a prediction stage by stage."""
    hops, rates = prediction.hops_ns or (0,), prediction.rates or (0,)
    return tuple(map(StageTimes, prediction.compute_ns, hops, rates))


def _kept(
    model: ModelFacts,
    devices: Sequence[DeviceFacts],
    requirements: Requirements,
    held: Sequence[StagePlacement],
) -> tuple[StagePlacement, ...] | None:
    """Return the placement held, or the one that moves the least where it cannot be kept."""
    if not held or held[-1].span.past != model.layers:
        return None  # of another model
    by_node = {device.node: device for device in devices}
    if all(
        stage.node in by_node
        and stage_bytes(model, stage.span, index == 0, requirements)
        <= by_node[stage.node].ram_bytes
        for index, stage in enumerate(held)
    ):
        return tuple(held)
    return place_with_least_movement(model, devices, requirements, held)
