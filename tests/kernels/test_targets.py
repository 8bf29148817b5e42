"""Each word's variants: the right instructions where they are, and none where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

import other_targets
from edgellama_kernels.lowering import target_features
from other_targets import TARGETS

BYTE_DOTS = {"vpdpbusd", "vpmaddubsw", "pmaddubsw", "sdot", "smull"}
EXPECTED = {  # what multiplies bytes on each target; nothing of it where the plain text is taken
    "generic": set(),
    "nehalem": set(),
    "haswell by its name alone": set(),
    "haswell": {"vpmaddubsw"},
    "znver3": {"vpmaddubsw"},
    "alderlake": {"vpdpbusd"},
    "vnni without its short vectors": {"vpmaddubsw"},
    "sapphirerapids": {"vpdpbusd"},
    "arm, any": {"smull"},
    "arm, no list": {"smull"},
    "arm with dotprod": {"sdot"},
    "cortex-a53": {"smull"},
    "cortex-a76": {"sdot"},
    "neoverse-v1": {"sdot"},
    "riscv64": set(),
}
HALVES = ("vcvtph2ps", "vcvtps2ph", "fcvtl", "fcvtn")  # how their names begin
FUSED = {"vfmadd213ps", "vfmadd132ps", "vfmadd231ps", "fmla"}


def run_other(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(other_targets.__file__)), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def code() -> dict[str, dict[str, list[str]] | None]:
    """Every word's mnemonics on every target; a variant out of place would end the process."""
    done = run_other()
    found = dict(json.loads(line) for line in done.stdout.splitlines())
    last = list(TARGETS)[len(found) - 1] if found else "none"
    assert done.returncode == 0, f"LLVM died after {last!r}: {done.stderr[-2000:]}"
    return found


def mnemonics(code: dict[str, dict[str, list[str]] | None], label: str) -> dict[str, set[str]]:
    words = code[label]
    if words is None:
        pytest.skip(f"this LLVM knows no {TARGETS[label].triple}")
    return {word: set(found) for word, found in words.items()}


def test_all_targets_have_expectations() -> None:
    assert set(EXPECTED) == set(TARGETS)


@pytest.mark.parametrize("label", TARGETS)
def test_byte_products(code, label) -> None:
    words = mnemonics(code, label)
    for word in (
        *("dot_nibbles", "dot_bytes", "dot_quads", "dot_fives"),
        *("dot_scaled_threes", "dot_scaled_sixes"),
    ):
        assert words[word] & BYTE_DOTS == EXPECTED[label], word


@pytest.mark.parametrize("label", TARGETS)
def test_conversions_and_fused_products(code, label) -> None:
    words = mnemonics(code, label)
    features = target_features(TARGETS[label])
    has_halves, has_fused = bool({"f16c", "aarch64"} & features), {"fma", "aarch64"} & features
    for word in ("load_half_x8", "store_half_x8"):
        assert any(name.startswith(HALVES) for name in words[word]) == has_halves, word
    assert bool(words["multiply_add_exact"] & FUSED) == bool(has_fused)
    assert all(not found & FUSED for word, found in words.items() if word != "multiply_add_exact")


@pytest.mark.parametrize("label", TARGETS)
def test_no_word_calls_a_library(code, label) -> None:
    """A call of libm would be another arithmetic, and a soft one a trap of speed."""
    calls = {"call", "callq", "bl", "blr"}
    calling = {word for word, found in mnemonics(code, label).items() if found & calls}
    assert calling <= {"give_way"}  # the system's scheduler


def test_without_the_choice_llvm_ends_the_process() -> None:
    """So the tests above can fail: here the text is chosen by another CPU's features."""
    done = run_other("--lie")
    assert done.returncode != 0
    assert "LLVM ERROR" in done.stderr


@pytest.mark.parametrize(
    ("magic", "present", "absent"),
    [
        (("x86_64-pc-linux-gnu", "znver3", "+avx2,-avx512f,+fma"), "avx2", "avx512f"),
        (("x86_64-pc-linux-gnu", "haswell", ""), "x86_64", "avx2"),
        (("arm64-apple-darwin", "apple-m1", "+dotprod"), "aarch64", "arm64"),
        (("aarch64-linux-gnu", "generic", ""), "neon", "dotprod"),
        (("aarch64-linux-gnu", "generic", "-neon"), "aarch64", "neon"),
        (("armv7l-linux-gnueabihf", "generic", "+neon,+dotprod"), "armv7l", "aarch64"),
    ],
)
def test_features_are_those_that_are_compiled_for(magic, present, absent) -> None:
    features = target_features(magic)
    assert present in features
    assert absent not in features
