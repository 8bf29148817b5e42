"""The kernels on ARM: the instructions that it has, and the bits of every other machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import emulated_arm
import pytest

pytest.importorskip("numba")

import kernel_exchange
from edgellama_kernels.digest import EXPECTED_DIGEST

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
DIGEST = """
import numpy as np, edgellama_kernels, json
from edgellama_kernels import matmul
from edgellama_kernels.digest import digest
kernels = edgellama_kernels.load("numba")
made = digest(kernels)
from numba.core.dispatcher import Dispatcher
code = ""
for member in vars(matmul).values():
    if isinstance(member, Dispatcher):
        code += "".join(member.inspect_asm().values())
print(json.dumps([made, {name: code.count(name + " ") + code.count(name + "\\t")
                         for name in ("sdot", "smull", "smlal")}]))
"""
# The kernels' tests that say something about a machine, and the trained model's text.
SELECTION = (
    "tests/kernels/test_same_bits.py",
    "tests/kernels/test_digest.py::test_every_output_is_the_same",
    "tests/kernels/test_targets.py::test_variants_agree_to_the_bit",
    "tests/golden/test_golden_tokens.py::test_greedy_run_feeds_its_own_tokens",
    "tests/golden/test_golden_tokens.py::test_every_chunking_gives_the_same_answer",
)
LEFT_OUT = "(golden and not numba) or (chunking and (16 or 64 or 63 or 3-5))"


def test_the_digest_and_the_instructions(cpu: str, on_arm: Callable[..., str]) -> None:
    made, counts = json.loads(on_arm("-c", DIGEST))
    assert made == EXPECTED_DIGEST
    if cpu == emulated_arm.DOTPROD_CPU:
        assert counts["sdot"] > 0, counts
        assert counts["smull"] == 0, counts
    else:
        assert counts["sdot"] == 0, counts
        assert counts["smull"] > 0, counts


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_random_kernels(
    on_arm: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, backend: str
) -> None:
    path = tmp_path_factory.mktemp("exchange") / "kernels.npz"
    kernel_exchange.write(str(path))
    found = json.loads(on_arm(HERE / "kernel_exchange.py", "compare", path, backend))
    sys.stdout.write(f"{found}\n")
    assert found["backend"] == backend
    assert found["different"] == []
    assert found["arrays"] == kernel_exchange.CASES * 13


def test_the_kernels_own_tests_and_the_golden_text(on_arm: Callable[..., str]) -> None:
    said = on_arm(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})", *SELECTION
    )
    sys.stdout.write(said)
    assert " passed" in said
