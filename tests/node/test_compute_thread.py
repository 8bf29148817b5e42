"""Tests of the thread that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from edgellama.errors import EdgellamaError
from edgellama.node.compute import ComputeThread

if TYPE_CHECKING:
    from edgellama.node.engine import Engine


class UnprovableEngine:
    """Kernels that cannot be proven, and what comes of trying."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def prove(self) -> str:
        raise self._error

    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [EdgellamaError("other numbers"), MemoryError("no room")])
def test_who_waits_for_the_proof_hears_why_there_is_none(error: Exception) -> None:
    crashes: list[BaseException] = []
    engine = cast("Engine", UnprovableEngine(error))
    compute = ComputeThread(engine, lambda *_: None, crashes.append)
    compute.start()
    try:
        with pytest.raises(type(error), match=str(error)):
            compute.prove()
    finally:
        compute.stop(1.0)
    assert not crashes
