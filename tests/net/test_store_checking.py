"""What lies in a store from an earlier life is looked at before it counts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from edgellama.errors import TransferError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.net.own_model import OwnModel
    from edgellama.net.store import Store
    from edgellama.net.stored_model import StoredModel


@pytest.fixture
def again(start: Callable[[], Store], own: OwnModel) -> Callable[[], StoredModel]:
    """Open the copy as another process would."""
    return lambda: start().create(own.manifest)


def fill(stored: StoredModel, own: OwnModel, indexes: list[int]) -> None:
    for index in indexes:
        assert stored.write_chunk(index, own.read_chunk(index))


def test_what_a_killed_process_wrote_is_found(
    own: OwnModel, stored: StoredModel, again: Callable[[], StoredModel]
) -> None:
    fill(stored, own, [0, 5])
    stored.flush()
    fill(stored, own, [7, 8])  # and now the process is killed, in the middle of a third
    with stored.path.open("r+b") as file:
        chunk = own.manifest.chunk(9)
        file.seek(chunk.offset)
        file.write(own.read_chunk(9)[: chunk.size // 2])
    other = again()
    assert other.missing([0, 5, 7, 8, 9]) == [7, 8, 9]
    other.check([0, 5, 7, 9, 10])
    assert other.missing([0, 5, 7, 8, 9, 10]) == [8, 9, 10]
    other.check([8])
    assert other.read_chunk(8) == own.read_chunk(8)
    other.flush()
    assert again().missing([0, 5, 7, 8]) == []


@pytest.mark.parametrize("whole", [False, True])
def test_what_has_decayed_counts_as_missing(
    own: OwnModel, stored: StoredModel, again: Callable[[], StoredModel], whole: bool
) -> None:
    fill(stored, own, list(range(own.manifest.chunks if whole else 8)))
    stored.flush()
    assert stored.complete == whole
    content = bytearray(stored.path.read_bytes())
    content[own.manifest.chunk(3).offset + 5] ^= 1
    with stored.path.open("r+b") as file:
        file.write(content)
    stored.check([3])  # this process has written it itself, a moment ago
    assert stored.missing([3]) == []
    other = again()
    other.check(range(8))
    assert other.missing(range(8)) == [3]
    with pytest.raises(TransferError, match="chunk 3 of the model is not in the store"):
        other.read_chunk(3)
    assert other.read_chunk(4) == own.read_chunk(4)
    fill(other, own, [3])
    other.flush()
    last = again()
    last.check(range(8))
    assert last.missing(range(8)) == []
    assert last.complete == whole


def test_holes_are_told_from_data_on_any_system(
    own: OwnModel,
    stored: StoredModel,
    again: Callable[[], StoredModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(stored, own, [2])
    for _ in range(2):
        other = again()
        other.check(range(own.manifest.chunks))
        assert other.missing(range(5)) == [0, 1, 3, 4]
        monkeypatch.delattr(os, "SEEK_DATA", raising=False)
