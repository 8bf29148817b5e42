"""The trained model in three types and both kinds of KV cache, and every way of computing it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import edgellama_kernels
import gguf_writing
import model_running
import pytest

from edgellama.values import KV_F16

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgellama_kernels import Kernels
    from model_running import PackedModel


@pytest.fixture(scope="session", params=["F32", "Q8_0", "Q4_0", "Q8_0+q8"])
def kind_name(request: pytest.FixtureRequest) -> str:
    """The type of the model's matrices; with ``+q8``, of keys and values kept as int8."""
    return str(request.param)


@pytest.fixture(scope="session")
def model(
    shared_model: Path, kind_name: str, tmp_path_factory: pytest.TempPathFactory
) -> PackedModel:
    """Return the trained model with matrices of one type."""
    type_name, _, kv_kind = kind_name.partition("+")
    path = tmp_path_factory.mktemp("golden") / f"{type_name}.gguf"
    packed = model_running.packed_model(gguf_writing.quantized_copy(shared_model, path, type_name))
    return replace(packed, kv_kind=kv_kind or KV_F16)


@pytest.fixture(scope="session", params=[("numpy", 1), ("numba", 1), ("numba", 2)], ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """Return each backend, the compiled one alone and as a team."""
    backend, threads = request.param
    try:
        loaded = edgellama_kernels.load(backend, threads)
    except edgellama_kernels.BackendUnavailable as error:
        pytest.skip(str(error))
    yield loaded
    loaded.close()
