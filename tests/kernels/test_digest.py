from __future__ import annotations

import os
import subprocess
import sys

import pytest
from called_verbs import VERBS, called
from edgellama_kernels import load
from edgellama_kernels.digest import EXPECTED_DIGEST, digest, outputs
from kernel_cases import assert_same_bits

OTHER_TARGET = """
from edgellama_kernels import load
from edgellama_kernels.digest import digest
from edgellama_kernels.lowering import compiled_features
print(digest(load("numba")), *sorted(compiled_features()))
"""
# The CPU's name and its features, as numba is told them.
AVX2 = "haswell", "+sse3,+ssse3,+sse4.1,+sse4.2,+avx,+avx2,+fma,+f16c,+popcnt,+bmi,+bmi2"
BETTER = {"avx2", "f16c", "fma", "sse4.1", "dotprod", "avx512vnni", "avxvnni"}


def test_the_digest_is_the_one_that_every_device_sends(kernels) -> None:
    assert digest(kernels) == EXPECTED_DIGEST


def test_the_digest_has_every_kernel(reference) -> None:
    assert called(reference, outputs) >= VERBS | {"embed"}


def test_every_output_is_the_same(compiled, reference) -> None:
    expected = outputs(reference)
    for name, array in outputs(compiled).items():
        assert_same_bits(array, expected[name])


@pytest.mark.parametrize(
    ("target", "used"),
    [(("generic", ""), set()), (AVX2, {"avx2", "f16c", "fma", "sse4.1"})],
    ids=["no vector extensions", "avx2"],
)
def test_a_weaker_cpu_computes_the_same(compiled, target, used) -> None:
    """Plainer variants, chosen because numba says that it compiles for nothing better."""
    from edgellama_kernels.lowering import compiled_features

    if not used <= compiled_features():
        pytest.skip(f"this CPU has not all of {used}")
    environment = os.environ | dict(
        zip(("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"), target, strict=True)
    )
    done = subprocess.run(
        [sys.executable, "-c", OTHER_TARGET],
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    made, *features = done.stdout.split() or ["nothing"]
    assert made == EXPECTED_DIGEST, done.stderr
    assert set(features) & BETTER == used


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_show(compiled, threads, monkeypatch) -> None:
    monkeypatch.setattr("edgellama_kernels.compiled.SHARED_WORK_MIN", 0)
    team = load("numba", threads)
    try:
        assert digest(team) == EXPECTED_DIGEST
    finally:
        team.close()
