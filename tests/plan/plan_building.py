"""Models, devices and checks for tests of the planner."""

from __future__ import annotations

from itertools import pairwise

from edgellama.plan.ram import Requirements, Unplaceable, place, stage_bytes
from edgellama.values import DeviceFacts, ModelFacts, StagePlacement

MIB = 1 << 20
SMALL = Requirements(context=64, sessions_max=1)


def model_of(
    layer_bytes: tuple[int, ...], home_bytes: int = 0, kv: int = 0, scratch: int = 0
) -> ModelFacts:
    return ModelFacts(
        root="00" * 32,
        name="made up",
        file_bytes=sum(layer_bytes) + home_bytes,
        width=64,
        context_max=4096,
        layer_bytes=layer_bytes,
        home_bytes=home_bytes,
        kv_bytes_per_token=kv,
        scratch_bytes=scratch,
        kv_q8_bytes_per_token=kv // 2,
    )


def devices_of(*ram_bytes: int) -> list[DeviceFacts]:
    return [
        DeviceFacts(node=f"{index:032x}", name=f"device {index}", ram_bytes=ram)
        for index, ram in enumerate(ram_bytes)
    ]


def placed(
    model: ModelFacts, devices: list[DeviceFacts], requirements: Requirements = SMALL
) -> tuple[StagePlacement, ...]:
    stages = place(model, devices, requirements)
    assert not isinstance(stages, Unplaceable), stages.reason
    return stages


def assert_sound(
    model: ModelFacts,
    devices: list[DeviceFacts],
    requirements: Requirements,
    stages: tuple[StagePlacement, ...],
) -> None:
    offers = {device.node: device.ram_bytes for device in devices}
    assert len({stage.node for stage in stages}) == len(stages)
    assert stages[0].span.first == 0
    assert stages[-1].span.past == model.layers
    assert all(a.span.past == b.span.first for a, b in pairwise(stages))
    assert all(stage.span.layers > 0 for stage in stages[1:])
    for index, stage in enumerate(stages):
        assert stage_bytes(model, stage.span, index == 0, requirements) <= offers[stage.node]
