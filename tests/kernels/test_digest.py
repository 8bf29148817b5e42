from __future__ import annotations

import os
import subprocess
import sys

import pytest
from called_verbs import VERBS, called
from edgellama_kernels import load
from edgellama_kernels.digest import EXPECTED_DIGEST, digest, outputs
from kernel_cases import assert_same_bits

PLAIN_TARGET = """
from edgellama_kernels import load
from edgellama_kernels.digest import digest
from edgellama_kernels.lowering import target_features
from numba.core.registry import cpu_target
features = target_features(tuple(cpu_target.target_context.codegen().magic_tuple()))
assert not features & {"avx2", "f16c", "fma", "sse4.1", "dotprod"}, features
print(digest(load("numba")))
"""


def test_the_digest_is_the_one_that_every_device_sends(kernels) -> None:
    assert digest(kernels) == EXPECTED_DIGEST


def test_the_digest_has_every_kernel(reference) -> None:
    assert called(reference, outputs) >= VERBS | {"embed"}


def test_every_output_is_the_same(compiled, reference) -> None:
    expected = outputs(reference)
    for name, array in outputs(compiled).items():
        assert_same_bits(array, expected[name])


def test_a_cpu_without_vector_extensions_computes_the_same(compiled) -> None:
    """The plain variant, chosen because numba says that it compiles for nothing better."""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_TARGET],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == EXPECTED_DIGEST, done.stderr


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_show(compiled, threads, monkeypatch) -> None:
    monkeypatch.setattr("edgellama_kernels.compiled.SHARED_WORK_MIN", 0)
    team = load("numba", threads)
    try:
        assert digest(team) == EXPECTED_DIGEST
    finally:
        team.close()
