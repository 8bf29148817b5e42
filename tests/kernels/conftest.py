"""Both backends, and each of them by turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import edgellama_kernels
import pytest
from edgellama_kernels import BackendUnavailable, Kernels

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return edgellama_kernels.load("numpy")


@pytest.fixture(scope="session")
def compiled() -> Kernels:
    try:
        return edgellama_kernels.load("numba")
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=["numpy", "numba"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.getfixturevalue("reference" if request.param == "numpy" else "compiled")


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch, compiled: Kernels) -> Iterator[list[Kernels]]:
    """Teams of one, two and three threads that share even the smallest call."""
    monkeypatch.setattr("edgellama_kernels.compiled.SHARED_WORK_MIN", 0)
    teams = [edgellama_kernels.load("numba", threads) for threads in (1, 2, 3)]
    yield teams
    for team in teams:
        team.close()
