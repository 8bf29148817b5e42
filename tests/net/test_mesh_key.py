"""Keys: stretched from secrets, kept in files that are for their owner alone."""

from __future__ import annotations

import hashlib
import stat
from typing import TYPE_CHECKING

import pytest

from edgellama.errors import EdgellamaError, MisuseError
from edgellama.net import mesh_key
from edgellama.net.mesh_key import MeshKeyFile, given_key, stretched

if TYPE_CHECKING:
    from pathlib import Path


def test_a_secret_is_stretched_as_the_specification_says() -> None:
    salt = b"edgellama mesh key, version 1"
    expected = hashlib.scrypt(
        b"tea for two", salt=salt, n=32768, r=8, p=1, maxmem=1 << 26, dklen=32
    )
    assert stretched("tea for two") == expected
    assert stretched("tea for three") != expected


def test_stretching_is_done_once_for_one_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    right = hashlib.scrypt
    monkeypatch.setattr(
        mesh_key.hashlib, "scrypt", lambda *a, **k: calls.append(a) or right(*a, **k)
    )
    stretched.cache_clear()
    assert stretched("once") == stretched("once")
    assert len(calls) == 1


def test_a_key_may_be_a_file_or_the_text_itself(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("  tea for two\n")
    assert given_key(str(file)) == given_key("tea for two") == stretched("tea for two")
    assert given_key(str(tmp_path / "absent")) == stretched(str(tmp_path / "absent"))
    assert given_key("x" * 5000) == stretched("x" * 5000)
    assert given_key("a\0b") == stretched("a\0b")
    for content in (b"", b" \n", b"\xff\xfe"):
        file.write_bytes(content)
        with pytest.raises(MisuseError, match="the key file"):
            given_key(str(file))


def test_a_new_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = MeshKeyFile(tmp_path / "state" / "mesh.key")
    assert file.read() is None
    key = file.make()
    assert len(key) == 32
    assert file.read() == key
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    file.write(bytes(32))
    assert file.read() == bytes(32)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert MeshKeyFile(tmp_path / "other").make() != key


@pytest.mark.parametrize("content", [b"", b"\n", b"ab" * 31, b"AB" * 32, b"ab" * 33, b"\xff" * 64])
def test_a_damaged_key_file_is_an_error_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mesh.key"
    path.write_bytes(content)
    with pytest.raises(EdgellamaError, match="is damaged: remove it"):
        MeshKeyFile(path).read()
    assert path.read_bytes() == content
