"""Inviting, changing and adopting a mesh's key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgellama.errors import MisuseError
from edgellama.net.mesh_key import MeshKeyFile
from edgellama.node.key_holder import KeyHolder
from edgellama.values import Address

if TYPE_CHECKING:
    from pathlib import Path

HERE = Address("10.0.0.1", 7711)
OLD, NEW = b"o" * 32, b"n" * 32


class Notes:
    def __init__(self) -> None:
        self.changed: list[bytes] = []
        self.announced = 0
        self.told: list[str] = []

    def announce(self) -> None:
        self.announced += 1


def holder(key: bytes, file: MeshKeyFile | None) -> tuple[KeyHolder, Notes]:
    notes = Notes()
    made = KeyHolder(key, file, notes.changed.append, notes.announce, notes.told.append)
    return made, notes


def test_an_invitation_has_a_code_and_is_announced(tmp_path: Path) -> None:
    keys, notes = holder(OLD, MeshKeyFile(tmp_path / "mesh.key"))
    assert not keys.is_inviting()
    keys.invite(HERE)
    second = keys.invite(HERE)
    assert keys.is_inviting()
    assert (second.address, second.seconds) == (HERE, 300)
    assert notes.announced == 2


def test_an_open_mesh_has_no_code_and_nobody_to_forget() -> None:
    keys, _ = holder(b"", None)
    with pytest.raises(MisuseError, match="OPEN: edgellama join --open needs no code"):
        keys.invite(HERE)
    with pytest.raises(MisuseError, match="OPEN"):
        keys.renew()


def test_a_new_key_is_kept_and_put_to_use(tmp_path: Path) -> None:
    file = MeshKeyFile(tmp_path / "mesh.key")
    file.write(OLD)
    keys, notes = holder(OLD, file)
    key = keys.renew()
    assert key not in (OLD, bytes(32))
    assert file.read() == keys.key == key
    assert notes.changed == [key]
    keys.adopt(NEW)
    assert file.read() == keys.key == NEW
    assert notes.changed == [key, NEW]


def test_a_key_that_a_person_gave_is_not_changed(tmp_path: Path) -> None:
    keys, notes = holder(OLD, None)
    with pytest.raises(MisuseError, match="comes from EDGELLAMA_KEY or --key"):
        keys.renew()
    keys.adopt(NEW)
    assert keys.key == OLD
    assert notes.changed == []
    assert "join again with a code" in notes.told[0]
