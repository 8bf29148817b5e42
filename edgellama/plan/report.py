"""A plan with all that a person may want to know of it, whether or not a mesh follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama.errors import UnplaceableError
from edgellama.plan.choice import choose, stage_times
from edgellama.plan.costs import Costs
from edgellama.plan.left_out import reasons
from edgellama.plan.ram import Unplaceable
from edgellama.plan.speed import predict
from edgellama.plan.table import plan_rows
from edgellama.values import RAM

if TYPE_CHECKING:
    from edgellama.plan.ram import Requirements
    from edgellama.plan.speed import Prediction
    from edgellama.plan.table import PlanRow
    from edgellama.values import DeviceFacts, LinkFacts, ModelFacts


@dataclass(frozen=True)
class PlanFacts:
    """All that a plan is made of."""

    model: ModelFacts
    devices: tuple[DeviceFacts, ...]
    links: tuple[LinkFacts, ...]
    requirements: Requirements
    split: str


@dataclass(frozen=True)
class PlanReport:
    """A plan made of these facts, as if there were none before.

    ``prediction`` is None where no device's speed is known. No placement takes less than
    ``bound_ns``, which is None where the split is not by speed.
    """

    facts: PlanFacts
    rows: tuple[PlanRow, ...]
    prediction: Prediction | None
    bound_ns: int | None


def plan_report(facts: PlanFacts) -> PlanReport:
    """Return the plan; UnplaceableError says what is missing."""
    model, devices, links, requirements = (
        facts.model,
        facts.devices,
        facts.links,
        facts.requirements,
    )
    choice = choose(model, devices, links, requirements, facts.split)
    if isinstance(choice, Unplaceable):
        raise UnplaceableError(choice.reason)
    costs = Costs(model, devices, links, requirements)
    known = any(device.speed for device in devices)
    prediction = predict(costs, choice.stages) if known else None
    rows = plan_rows(
        model,
        devices,
        requirements,
        choice.stages,
        stage_times(prediction) if prediction else (),
        reasons(costs, choice.stages, facts.split if known else RAM),
    )
    return PlanReport(facts, rows, prediction, choice.bound_ns)
