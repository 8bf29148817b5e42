"""ARM for the tests: what ``tools/aarch64.py`` has set up on this machine, or why there is none."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

TOOL = Path(__file__).parents[1] / "tools" / "aarch64.py"
THOROUGH = "EDGELLAMA_CI_AARCH64"
FIRST_CPU, DOTPROD_CPU = "cortex-a53", "cortex-a76"  # Raspberry Pi 3 and 5


@functools.cache
def tool() -> ModuleType:
    """Return the tool as a module."""
    specification = importlib.util.spec_from_file_location("aarch64", TOOL)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def skip_without() -> None:
    """Skip where nothing can be emulated."""
    if sys.platform != "linux" or platform.machine() == "aarch64":
        pytest.skip("ARM is emulated on Linux of other machines only")
    if os.environ.get("CI") and os.environ.get(THOROUGH) != "1":
        pytest.skip(f"takes minutes, on a busy machine many: set {THOROUGH}=1")
    reason = tool().missing()
    if reason is not None:
        pytest.skip(reason)


def skip_unless_thorough() -> None:
    """Skip what takes many minutes when nobody has asked for it."""
    skip_without()
    if os.environ.get(THOROUGH) != "1":
        pytest.skip(f"takes minutes: set {THOROUGH}=1")
