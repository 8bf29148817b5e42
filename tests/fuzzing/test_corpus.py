"""Inputs that a fuzzer found, and honest ones, through everything that reads bytes from outside."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from edgellama.testing.fuzzing import TARGETS
from edgellama.testing.fuzzing.feed import values
from edgellama.testing.fuzzing.mutation import mutated
from edgellama.wire.messages import decode

CORPUS = Path(__file__).parent / "corpus"
CORPUS_BYTES_MAX = 1_000_000


def kept(target: str) -> list[bytes]:
    with zipfile.ZipFile(CORPUS / f"{target}.zip") as archive:
        return [archive.read(name) for name in archive.namelist()]


@pytest.mark.parametrize("target", TARGETS)
def test_honest_inputs(target: str) -> None:
    for data in TARGETS[target].seeds():
        assert len(data) <= TARGETS[target].bytes_max
        TARGETS[target].run(data)


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs(target: str) -> None:
    inputs = kept(target)
    assert inputs
    for data in inputs:
        TARGETS[target].run(data)


def test_the_corpus_stays_small_and_has_a_target_for_each_file() -> None:
    files = list(CORPUS.iterdir())
    assert sorted(path.stem for path in files) == sorted(TARGETS)
    assert sum(path.stat().st_size for path in files) <= CORPUS_BYTES_MAX


def test_the_seeds_hold_a_message_of_every_kind() -> None:
    from edgellama.testing.fuzzing.examples import kinds

    said = {type(decode(data)) for data in TARGETS["messages"].seeds() if decodes(data)}
    missing = {kind.build for kind in kinds().values()} - said
    # A plan's fields must agree with each other, which examples made field by field do not.
    assert {kind.__name__ for kind in missing} <= {"PlanAnnouncement"}


def decodes(data: bytes) -> bool:
    from edgellama.errors import WireError

    try:
        decode(data)
    except WireError:
        return False
    return True


def test_a_changed_input_is_the_same_each_time_and_still_msgpack() -> None:
    inputs = list(TARGETS["mesh"].seeds())
    changed = [mutated(data, 4096, seed) for seed, data in enumerate(inputs)]
    assert changed == [mutated(data, 4096, seed) for seed, data in enumerate(inputs)]
    assert sum(before != after for before, after in zip(inputs, changed, strict=True)) > 200
    assert all(values(data) for data in changed if data)
