"""Safetensors: what is read, and that no file however false is read beyond its end."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hugging_face_folders import safetensors, safetensors_of, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellama.errors import EdgellamaError, ModelFileError, UnsupportedModelError
from edgellama.model.safetensors import SafetensorsFile, SafetensorsFolder

if TYPE_CHECKING:
    from pathlib import Path

VALUES = {
    "matrix": np.arange(12, dtype=np.float32).reshape(4, 3),
    "vector": np.array([1.5, -2.0], np.float32),
    "single": np.array(7.0, np.float32),
}


@pytest.mark.parametrize("kind_name", ["F32", "F16", "BF16"])
def test_rows(tmp_path: Path, kind_name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(VALUES, kind_name))
    file = SafetensorsFile(path)
    assert list(file.tensors) == list(VALUES)
    assert file.tensors["matrix"][:2] == (kind_name, (4, 3))
    assert file.rows("matrix", 1, 3).tobytes() == stored(VALUES["matrix"][1:3], kind_name)
    assert file.rows("matrix", 1, 3).shape[0] == 2
    assert file.rows("vector", 0, 1).tobytes() == stored(VALUES["vector"], kind_name)
    assert file.rows("single", 0, 1).tobytes() == stored(VALUES["single"], kind_name)
    file.release_pages()
    assert file.rows("matrix", 0, 4).tobytes() == stored(VALUES["matrix"], kind_name)


def entry(**changed: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changed}}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "cannot be read"),
        (b"1234567", "too short"),
        (b"\xff" * 64, "a table of"),
        (b"\x10" + bytes(7) + b"{", "a table of"),
        (b"\x02" + bytes(7) + b"{]", "no JSON"),
        (b"\x02" + bytes(7) + b"[]", "no table"),
        (b"\x06" + bytes(7) + b'"\xff\xff\xff\xff"', "no JSON"),
        (b"\x40\x0d\x03" + bytes(5) + b"[" * 200_000, "no JSON"),
        (safetensors_of({"a": 1}, b""), "not described"),
        (safetensors_of(entry(dtype=3), bytes(16)), "no type and shape"),
        (safetensors_of(entry(shape="2"), bytes(16)), "no type and shape"),
        (safetensors_of(entry(shape=[2, -2]), bytes(16)), "no type and shape"),
        (safetensors_of(entry(shape=[2, True]), bytes(16)), "no type and shape"),
        (safetensors_of(entry(shape=[1] * 9), bytes(16)), "no type and shape"),
        (safetensors_of(entry(data_offsets=[0]), bytes(16)), "no place"),
        (safetensors_of(entry(data_offsets=[0, 1 << 60]), bytes(16)), "no place"),
        (safetensors_of(entry(), bytes(15)), "cut off"),
        (safetensors_of(entry(data_offsets=[16, 0]), bytes(16)), "cut off"),
        (safetensors_of(entry(shape=[2, 3]), bytes(16)), "has 16 bytes, not 24"),
        (safetensors_of(entry(shape=[1 << 47, 1 << 47]), bytes(16)), "has 16 bytes"),
    ],
)
def test_false_files(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=fault) as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)


def test_other_types_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_of(entry(dtype="F8_E4M3", data_offsets=[0, 4]), bytes(4)))
    file = SafetensorsFile(path)
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        file.rows("a", 0, 1)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path: Path, place: int, byte: int) -> None:
    content = bytearray(safetensors(VALUES))
    content[place % len(content)] = byte
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(EdgellamaError):
        file = SafetensorsFile(path)
        for name, tensor in file.tensors.items():
            assert file.rows(name, 0, tensor.rows).shape[0] == tensor.rows


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    tensors = list(VALUES.items())
    (tmp_path / names[0]).write_bytes(safetensors(dict(tensors[:1])))
    (tmp_path / names[1]).write_bytes(safetensors(dict(tensors[1:])))
    index = {"weight_map": {"matrix": names[0], "vector": names[1], "single": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    folder = SafetensorsFolder(tmp_path)
    assert set(folder.tensors) == set(VALUES)
    assert folder.rows("vector", 0, 1).tobytes() == VALUES["vector"].tobytes()


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": {"a": "../other.safetensors"}},
        {"weight_map": {"a": 1}},
        [],
        {"weight_map": 3},
    ],
)
def test_false_indexes(tmp_path: Path, index: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelFileError):
        SafetensorsFolder(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has neither"):
        SafetensorsFolder(tmp_path)
