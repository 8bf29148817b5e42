"""Marks what runs on an emulated ARM CPU, and gives each of two CPUs by turns."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import emulated_arm
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ENDS_WITHIN_S = 1500  # kernels compile at a tenth of the speed, and others may want the cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.aarch64)


@pytest.fixture(scope="session", params=[emulated_arm.FIRST_CPU, emulated_arm.DOTPROD_CPU])
def cpu(request: pytest.FixtureRequest) -> str:
    """One without and one with dot products of bytes."""
    emulated_arm.skip_without()
    return str(request.param)


@pytest.fixture(scope="session")
def on_arm(cpu: str) -> Callable[..., str]:
    """Return what runs Python there and returns its output; a failure shows it."""

    def run(*arguments: object) -> str:
        tool = emulated_arm.tool()
        done = subprocess.run(
            [*tool.command(), *map(str, arguments)],
            env=tool.environment(cpu) | {"EDGELLAMA_HOME": os.environ["EDGELLAMA_HOME"]},
            cwd=tool.CHECKOUT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ENDS_WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, f"{cpu}: code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run
