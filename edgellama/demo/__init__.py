"""The demo model that ships with the package: it tells little stories and knows nothing else."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

DEMO_MODEL_FILE = "little-stories.gguf"


def demo_model_path() -> Path:
    """Find the demo model's GGUF file inside the installed package.

    The package is always unpacked into files (pip does so), so the path can be mapped to memory.
    """
    return Path(str(resources.files(__name__).joinpath(DEMO_MODEL_FILE)))
