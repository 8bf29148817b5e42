"""Whole models of every family: the same bits for any backend, cut, chunking and threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import edgellama_kernels
import gguf_writing
import numpy as np
import pytest
from model_running import Ring, packed_model

from edgellama.model.cost import model_facts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgellama_kernels import Kernels

SHAPES = [
    "tiny-llama-3.1",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-qwen3moe",
    "tiny-gemma3",
    "tiny-phi3",
    "tiny-phi3-long",
]
TOKENS = [number * 37 % 500 for number in range(150)]  # in the third tile of attention


@pytest.fixture(params=[("numpy", 1), ("numba", 1), ("numba", 2)], ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    try:
        loaded = edgellama_kernels.load(*request.param)
    except edgellama_kernels.BackendUnavailable as error:
        pytest.skip(str(error))
    yield loaded
    loaded.close()


@pytest.mark.parametrize("kind_name", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("shape", SHAPES)
def test_backends_cuts_and_chunks_agree(
    tmp_path: Path, kernels: Kernels, shape: str, kind_name: str
) -> None:
    model = packed_model(gguf_writing.random_model(tmp_path / "m.gguf", shape, kind_name))
    layers = model.config.layers
    reference = edgellama_kernels.load("numpy")
    expected = Ring(model, reference, (layers,)).prefill(TOKENS, [100, 1, 49])
    assert np.isfinite(expected).all()
    for counts, sizes in (
        ((layers,), (150,)),
        ((1, layers - 1), (64, 1, 85)),
        ((2, layers - 2), (140, 1)),
    ):
        logits = Ring(model, kernels, counts).prefill(TOKENS, sizes)
        np.testing.assert_array_equal(logits, expected, err_msg=f"{counts} {sizes}")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tensor_of_a_layer_is_counted(tmp_path: Path, shape: str) -> None:
    model = packed_model(gguf_writing.random_model(tmp_path / "m.gguf", shape, "F32"))
    facts = model_facts(model.gguf, "00", "m")
    for layer in range(model.config.layers):
        stored = sum(
            tensor.bytes
            for name, tensor in model.gguf.tensors.items()
            if name.startswith(f"blk.{layer}.")
        )
        assert stored <= facts.layer_bytes[layer] <= stored * 1.05
