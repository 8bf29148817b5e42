"""Types chosen for the devices of a mesh: what is written has a place there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gguf_writing
import pytest
from mesh_building import A, B

from edgellama.errors import UnplaceableError
from edgellama.model.cost import model_facts
from edgellama.model.gguf import GgufFile
from edgellama.model.weight_source import GgufSource
from edgellama.node.fitting import Fitting
from edgellama.node.quantizing import write_quantized
from edgellama.plan.ram import Requirements, Unplaceable, place, stage_bytes
from edgellama.values import DeviceFacts, Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.values import ModelFacts

WANTED = Requirements(64, 2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GgufSource]:
    path = tmp_path_factory.mktemp("fitting") / "wide.gguf"
    with GgufFile.open(gguf_writing.random_model(path, "small", "F32")) as gguf:
        yield GgufSource(gguf)


@pytest.fixture(scope="module")
def fitting(source: GgufSource) -> Fitting:
    return Fitting(source, {}, 1, lambda done, total: None)


def facts_of(path: Path) -> ModelFacts:
    with GgufFile.open(path) as gguf:
        return model_facts(gguf, "00" * 32, "x")


def devices(first: int, second: int) -> list[DeviceFacts]:
    return [DeviceFacts(A, "a", first), DeviceFacts(B, "b", second)]


def on_one_device(model: ModelFacts) -> int:
    return stage_bytes(model, Span(0, model.layers), True, WANTED)


def test_what_is_chosen_for_devices_can_be_placed_there(
    source: GgufSource, fitting: Fitting, tmp_path: Path
) -> None:
    wide = facts_of(Path(source.name))
    weights = on_one_device(wide) - wide.scratch_bytes
    errors = []
    for share in (0.3, 0.45, 0.6):
        first = wide.scratch_bytes + int(share * weights)
        second = first - 1000
        choices = fitting.on_devices(devices(first, second), WANTED)
        kinds = {choice.tensor.name: choice.kind_name for choice in choices}
        target = tmp_path / "out.gguf"
        write_quantized(source, kinds, target, {}, 1, lambda done, total: None)
        assert not isinstance(place(facts_of(target), devices(first, second), WANTED), Unplaceable)
        errors.append(sum(choice.error for choice in choices))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > errors[-1]


def test_with_room_for_all_nothing_is_lost(fitting: Fitting) -> None:
    choices = fitting.on_devices(devices(1 << 32, 1 << 32), WANTED)
    assert all(choice.error == 0 for choice in choices)


def test_a_context_beyond_the_models_is_the_models(fitting: Fitting) -> None:
    choices = fitting.on_devices(devices(1 << 32, 1 << 32), Requirements(1 << 20, 2))
    assert all(choice.error == 0 for choice in choices)


def test_too_little_memory_is_said(fitting: Fitting) -> None:
    with pytest.raises(UnplaceableError, match=r"even in the narrowest types: .* are missing"):
        fitting.on_devices(devices(1 << 20, 1 << 20), WANTED)
