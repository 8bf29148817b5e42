"""The trained model in three types, packed once, and every way of computing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import edgellama_kernels
import gguf_writing
import model_running
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgellama_kernels import Kernels
    from model_running import PackedModel


@pytest.fixture(scope="session", params=["F32", "Q8_0", "Q4_0"])
def kind_name(request: pytest.FixtureRequest) -> str:
    """The type of the model's matrices."""
    return str(request.param)


@pytest.fixture(scope="session")
def model(
    shared_model: Path, kind_name: str, tmp_path_factory: pytest.TempPathFactory
) -> PackedModel:
    """Return the trained model with matrices of one type."""
    path = tmp_path_factory.mktemp("golden") / f"{kind_name}.gguf"
    return model_running.packed_model(gguf_writing.quantized_copy(shared_model, path, kind_name))


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
