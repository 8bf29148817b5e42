"""What every test shares: a fresh kernel cache and state folder, and the trained model if there."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Before numba is imported anywhere: a cached kernel from an older source must never be met. A whole
# run compiles each kernel once: devices share the cache, as two programs on one device do.
if "NUMBA_CACHE_DIR" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="edgellama-kernels-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

SHARED_MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"


@pytest.fixture(scope="session")
def shared_model() -> Path:
    """Path to the trained stories260K.gguf that lies beside the checkout, where it does."""
    path = SHARED_MODELS / "stories260K.gguf"
    if not path.exists():
        pytest.skip(
            "the trained model ../shared/models/stories260K.gguf is not beside the checkout"
        )
    return path


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test's state out of the user's own folders."""
    folder = tmp_path / "edgellama-home"
    monkeypatch.setenv("EDGELLAMA_HOME", str(folder))
    monkeypatch.delenv("EDGELLAMA_KEY", raising=False)
    return folder
