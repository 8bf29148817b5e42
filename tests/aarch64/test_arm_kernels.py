"""The kernels on ARM: the instructions that it has, and the bits of every other machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import emulated_arm
import pytest

pytest.importorskip("numba")

import edgellama_kernels
import gguf_writing
import kernel_exchange
import model_exchange
import numpy as np
from called_verbs import VERBS, called
from edgellama_kernels.digest import EXPECTED_DIGEST

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
DIGEST = """
import json, edgellama_kernels, numba
from edgellama_kernels import matmul
from edgellama_kernels.digest import digest
from numba.core.dispatcher import Dispatcher
made, code = digest(edgellama_kernels.load("numba")), ""
for kernel in vars(matmul).values():
    function = kernel.py_func if isinstance(kernel, Dispatcher) else None
    if function and any(name.startswith("dot_") for name in function.__code__.co_names):
        names = set(function.__annotations__.values())
        if names == {"int"}:  # no vectors: Python can call it
            again = numba.njit(nogil=True)(function)  # what comes from the cache has no text
            again.compile((numba.int64,) * function.__code__.co_argcount)
            code += "".join(again.inspect_asm().values())
print(json.dumps([made, {name: code.count(f"\\t{name}\\t") for name in ("sdot", "smull")}]))
"""
KEPT_CODE = """
import json, sys, edgellama_kernels
from edgellama_kernels.digest import digest
from edgellama_kernels.row_codec import agrees
kernels = edgellama_kernels.load("numba")
print(json.dumps([digest(kernels), agrees(kernels.row_codec), "numba" in sys.modules]))
"""
GREEDY_TEST = "tests/golden/test_golden_tokens.py::test_greedy_run_feeds_its_own_tokens"
# The kernels' tests that say something about a machine, and the trained model's text.
THOROUGH = (
    "tests/kernels/test_same_bits.py",
    "tests/kernels/test_digest.py::test_every_output_is_the_same",
    "tests/kernels/test_words.py",
    "tests/golden/test_golden_tokens.py::test_every_chunking_gives_the_same_answer",
)
LEFT_OUT = "says or (golden and numpy) or (chunking and (16 or 64 or 63 or 3-5))"


def test_the_digest_and_the_instructions(cpu: str, on_arm: Callable[..., str]) -> None:
    made, counts = json.loads(on_arm("-c", DIGEST))
    assert made == EXPECTED_DIGEST
    if cpu == emulated_arm.DOTPROD_CPU:
        assert counts["sdot"] > 0, counts
        assert counts["smull"] == 0, counts
    else:
        assert counts["sdot"] == 0, counts
        assert counts["smull"] > 0, counts


def test_kept_machine_code_needs_no_compiler(on_arm: Callable[..., str]) -> None:
    emulated_arm.skip_unless_thorough()
    on_arm("-m", "edgellama_kernels.warming")
    assert json.loads(on_arm("-c", KEPT_CODE)) == [EXPECTED_DIGEST, True, False]


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_random_kernels(
    on_arm: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, backend: str
) -> None:
    path = tmp_path_factory.mktemp("exchange") / "kernels.npz"
    kernel_exchange.write(str(path))
    with np.load(path, allow_pickle=False) as kept:
        made = [kept[name].size for name in kept.files if " made " in name]
    found = json.loads(on_arm(HERE / "kernel_exchange.py", "compare", path, backend))
    sys.stdout.write(f"{found}\n")
    assert found["backend"] == backend
    assert found["different"] == []
    assert (found["arrays"], found["values"]) == (len(made), sum(made))
    assert len(made) >= kernel_exchange.CASES * len(VERBS)


def test_the_exchange_has_every_kernel() -> None:
    kernels = edgellama_kernels.load("numpy")
    given = kernel_exchange.random_inputs(np.random.default_rng(0), 0)
    names = called(kernels, lambda watched: kernel_exchange.outputs(watched, 0, given))
    assert names >= VERBS | {"embed", "row_codec"}


def test_families_of_models(
    on_arm: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Windows, GELU, experts and both kinds of cache as stages run them, beside this machine's."""
    folder = tmp_path_factory.mktemp("models")
    paths = [
        str(gguf_writing.random_model(folder / f"{shape}-{kind}.gguf", shape, kind))
        for shape in ("tiny-gemma3", "tiny-qwen3moe")
        for kind in ("F32", "Q8_0", "Q4_0")
    ]
    expected = model_exchange.logit_hashes("numba", paths)
    assert len(set(expected.values())) == 2 * len(paths)
    assert json.loads(on_arm(HERE / "model_exchange.py", "numba", *paths)) == expected


def run_tests(on_arm: Callable[..., str], *selection: str) -> None:
    said = on_arm("-m", "pytest", "-q", "-p", "no:cacheprovider", *selection)
    sys.stdout.write(said)
    assert " passed" in said


def test_a_hundred_tokens(on_arm: Callable[..., str], shared_model: Path) -> None:
    """Greedy, of the trained model in F32, Q8_0 and Q4_0."""
    run_tests(on_arm, GREEDY_TEST, "-k", "numba and 1")


def test_the_kernels_own_tests(on_arm: Callable[..., str]) -> None:
    emulated_arm.skip_unless_thorough()
    run_tests(on_arm, *THOROUGH, "-k", f"not ({LEFT_OUT})")
