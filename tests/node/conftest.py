"""A small random model, packed once, and the NumPy kernels to compute it."""

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


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random llama of 4 layers with a tokenizer of 512 pieces."""
    return gguf_writing.random_model(tmp_path_factory.mktemp("node") / "random.gguf")


@pytest.fixture(scope="session")
def packed(model_path: Path) -> PackedModel:
    """Return that model, packed into memory."""
    return model_running.packed_model(model_path)


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    """Return kernels of which closing twice does no harm."""
    loaded = edgellama_kernels.load("numpy")
    yield loaded
    loaded.close()
