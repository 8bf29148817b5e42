"""The rows of the table in which a person reads a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama.plan.ram import Requirements, layer_kv_bytes, stage_bytes
from edgellama.values import DeviceFacts, ModelFacts, NodeId, Span, StagePlacement, StageTimes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class PlanRow:
    """One device: what it holds, and of how much. An empty span is a device left out, or home."""

    node: NodeId
    name: str
    span: Span
    is_home: bool
    weights_bytes: int  # home: with the embedding, the output norm and the head
    kv_bytes: int
    used_bytes: int  # weights, KV cache and scratch; 0 for a device that is left out
    offered_bytes: int
    predicted: StageTimes = StageTimes()  # noqa: RUF009 - immutable
    reason: str = ""  # why a device is left out

    @property
    def used_percent(self) -> int:
        """How much of its offer the device holds, rounded up: 100 is full."""
        return -(-100 * self.used_bytes // max(1, self.offered_bytes))


def plan_rows(
    model: ModelFacts,
    devices: Sequence[DeviceFacts],
    requirements: Requirements,
    stages: Sequence[StagePlacement],
    predicted: Sequence[StageTimes] = (),
    reasons: Mapping[NodeId, str] | None = None,
) -> tuple[PlanRow, ...]:
    """Return a row for each stage in the order of the ring, then those of the devices left out.

    ``predicted`` is of each stage, ``reasons`` of the devices left out, as far as they are known.
    """
    by_node = {device.node: device for device in devices}
    rows = []
    for index, (node, span) in enumerate((stage.node, stage.span) for stage in stages):
        is_home = index == 0
        device = by_node.pop(node)
        home_bytes = model.home_bytes if is_home else 0
        rows.append(
            PlanRow(
                node=node,
                name=device.name,
                span=span,
                is_home=is_home,
                weights_bytes=sum(model.layer_bytes[span.first : span.past]) + home_bytes,
                kv_bytes=span.layers * layer_kv_bytes(model, requirements),
                used_bytes=stage_bytes(model, span, is_home, requirements),
                offered_bytes=device.ram_bytes,
                predicted=predicted[index] if predicted else StageTimes(),
            )
        )
    left_out = sorted(by_node.values(), key=lambda device: (-device.ram_bytes, device.node))
    rows.extend(
        PlanRow(
            *(device.node, device.name, Span(0, 0), False, 0, 0, 0, device.ram_bytes),
            reason=(reasons or {}).get(device.node, ""),
        )
        for device in left_out
    )
    return tuple(rows)
