"""What is told to LLVM of an ARM CPU, from texts of real devices, and what is remembered."""

from __future__ import annotations

import os
import sys

import pytest
from edgellama_kernels import target_choice, warming
from edgellama_kernels.target_choice import FEATURES, NAME, choice, conservative_features

PI_4 = "Features\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
PI_5 = (
    "processor\t: 0\nBogoMIPS\t: 108.00\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
)
PHONE = PI_5.replace("asimddp", "asimddp sve sve2 i8mm bf16")
PC = "processor\t: 0\nmodel name\t: A Processor\ncpu MHz\t\t: 3693.061\nflags\t\t: fpu avx2 fma\n"


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [
        (PI_4 * 4, "+neon"),
        (PI_5 * 4, "+neon,+dotprod"),
        (PHONE * 8, "+neon,+dotprod"),  # never what some phones list and fault on
        (PI_5 * 4 + PI_4 * 4, "+neon"),  # little cores without it: a thread may move there
        ("processor : 0\nprocessor : 1\nFeatures : fp asimd asimddp\n", "+neon,+dotprod"),
        ("Features : fp asimd asimddpx\n", "+neon"),
        (PC, "+neon"),
        ("", "+neon"),
        ("Features", "+neon"),
        ("\x00\xff:::\nFeatures::asimddp\n", "+neon"),
    ],
)
def test_only_what_every_core_lists(cpuinfo, features) -> None:
    assert conservative_features(cpuinfo) == features


def test_android_is_never_left_to_llvm() -> None:
    expected = {NAME: "generic", FEATURES: "+neon,+dotprod"}
    assert choice(PHONE, True, lambda: "cortex-x2") == expected


def test_a_part_that_llvm_does_not_know() -> None:
    assert choice(PI_4, False, lambda: "generic") == {NAME: "generic", FEATURES: "+neon"}


def test_a_part_that_llvm_knows_keeps_its_name_without_its_traps() -> None:
    assert choice(PI_5, False, lambda: "cortex-a76") == {FEATURES: "+neon,+dotprod,-sve"}


@pytest.fixture
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice made yet; what the test sets goes away with it."""
    for name in (NAME, FEATURES):
        monkeypatch.setenv(name, "")  # so that the old state comes back whatever is set
        monkeypatch.delenv(name)


@pytest.fixture
def pretended_phone(plain_environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_choice, "read_cpuinfo", lambda: PHONE)
    monkeypatch.setattr(sys, "platform", "android")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")


def test_a_phone_without_a_note_takes_its_choice(pretended_phone) -> None:
    target_choice.prepare(None)
    assert target_choice.variables() == {NAME: "generic", FEATURES: "+neon,+dotprod"}


def test_the_note_of_an_earlier_start_counts_more(pretended_phone) -> None:
    target_choice.prepare({NAME: "generic", FEATURES: "+neon"})
    assert target_choice.variables() == {NAME: "generic", FEATURES: "+neon"}


def test_the_users_word_counts_most(pretended_phone, monkeypatch) -> None:
    monkeypatch.setenv(FEATURES, "+neon,+i8mm")
    target_choice.prepare({NAME: "generic", FEATURES: "+neon"})
    assert target_choice.variables() == {FEATURES: "+neon,+i8mm"}
    assert target_choice.attempts() == [{}]


def test_attempts_end_at_what_every_cpu_can(pretended_phone, monkeypatch) -> None:
    assert target_choice.attempts() == [{}, {NAME: "generic", FEATURES: "+neon"}]
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert target_choice.attempts() == [{}, {NAME: "generic", FEATURES: ""}]


def test_elsewhere_llvm_asks_the_cpu(plain_environment, monkeypatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    target_choice.prepare(None)
    assert target_choice.variables() == {}


def test_identity_is_of_the_cpu_and_not_of_the_moment() -> None:
    one = target_choice.identity(PC)
    assert target_choice.identity(PC.replace("3693.061", "1200.000")) == one
    assert target_choice.identity(PC * 8) == one
    assert target_choice.identity(PC.replace("avx2", "avx2 avx512f")) != one
    assert target_choice.identity(PI_4) != target_choice.identity(PI_5)


def test_a_note_is_of_one_cpu_and_one_choice(plain_environment, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(target_choice, "read_cpuinfo", lambda: PI_5)
    assert not warming.is_warm()
    note = warming._note()
    note.parent.mkdir()
    note.write_text("NUMBA_CPU_NAME=generic\nNUMBA_CPU_FEATURES=+neon\nPATH=/elsewhere\n")
    assert warming.kept_variables() == {NAME: "generic", FEATURES: "+neon"}
    assert warming.is_warm()
    monkeypatch.setenv(FEATURES, "+neon,+dotprod")
    assert not warming.is_warm(), "the user asks for another choice than the note's"
    monkeypatch.delenv(FEATURES)
    monkeypatch.setattr(target_choice, "read_cpuinfo", lambda: PI_4)
    assert not warming.is_warm(), "the card went into another device"
    assert os.environ.get("PATH") != "/elsewhere"
