"""Written headers, read by the oracle and by the project's own reader."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from edgellama.model.gguf import GgufFile
from edgellama.model.gguf_writer import OutputTensor, encoded, file_bytes, file_parts, header

if TYPE_CHECKING:
    from pathlib import Path

VALUES = {
    "general.architecture": "llama",
    "a.bool": True,
    "a.number": 4_000_000_000,
    "a.float": 0.1,
    "a.text": "grün\n",
    "a.texts": ["a", "", "ß"],
    "a.floats": np.array([1.5, -2.0], np.float32),
    "a.signed": np.array([1, -2, 3], np.int32),
    "a.none": np.array([], np.float32),
}
TENSORS = [
    OutputTensor("first", "F32", (3,)),
    OutputTensor("second", "Q8_0", (64, 5)),
    OutputTensor("third", "Q6_K", (256, 3, 2)),
    OutputTensor("fourth", "BF16", (7, 1, 3, 2)),
]


def written(path: Path) -> dict[str, bytes]:
    random = np.random.default_rng(0)
    content = {each.name: random.bytes(each.bytes) for each in TENSORS}
    metadata = {key: encoded(value) for key, value in VALUES.items()}
    pieces = (
        (each, content[each.name][first : first + each.row_bytes])
        for each in TENSORS
        for first in range(0, each.bytes, each.row_bytes)
    )
    data = b"".join(file_parts(metadata, TENSORS, pieces))
    assert len(data) == file_bytes(metadata, TENSORS)
    path.write_bytes(data)
    return content


def test_the_oracle_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    content = written(path)
    reader = gguf.GGUFReader(path)
    for key, value in VALUES.items():
        found = reader.fields[key].contents()
        if isinstance(value, np.ndarray):
            assert found == value.tolist()
        else:
            assert found == (np.float32(value) if isinstance(value, float) else value)
    for tensor, expected in zip(reader.tensors, TENSORS, strict=True):
        assert tensor.name == expected.name
        assert tuple(tensor.shape) == expected.shape
        assert tensor.tensor_type.name == expected.kind_name
        assert tensor.data.tobytes() == content[expected.name]


def test_values_are_copied_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    data = header({key: encoded(value) for key, value in VALUES.items()}, TENSORS[:2])
    path.write_bytes(data + bytes(32 + 64 * 5 * 34 // 32 + 32))
    with GgufFile.open(path) as file:
        assert list(file.metadata) == list(VALUES)
        for key, value in VALUES.items():
            assert file.encoded_value(key) == encoded(value)
        with pytest.raises(KeyError):
            file.encoded_value("a.other")
        assert file.tensors["second"].shape == (64, 5)
