"""The GGUF reader against files written by the gguf package."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import gguf
import gguf_writing
import numpy as np
import pytest

from edgellama.errors import MisuseError, ModelFileError
from edgellama.model.gguf import GgufFile
from edgellama.model.gguf_layout import TENSOR_KINDS, UNSUPPORTED_TENSOR_KINDS

if TYPE_CHECKING:
    from pathlib import Path

KIND_NAMES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]

VALUES: dict[str, tuple[gguf.GGUFValueType, object]] = {
    "a.uint8": (gguf.GGUFValueType.UINT8, 255),
    "a.int8": (gguf.GGUFValueType.INT8, -128),
    "a.uint16": (gguf.GGUFValueType.UINT16, 65535),
    "a.int16": (gguf.GGUFValueType.INT16, -32768),
    "a.uint32": (gguf.GGUFValueType.UINT32, 2**32 - 1),
    "a.int32": (gguf.GGUFValueType.INT32, -(2**31)),
    "a.uint64": (gguf.GGUFValueType.UINT64, 2**64 - 1),
    "a.int64": (gguf.GGUFValueType.INT64, -(2**63)),
    "a.float32": (gguf.GGUFValueType.FLOAT32, -0.15625),
    "a.float64": (gguf.GGUFValueType.FLOAT64, 0.1),
    "a.true": (gguf.GGUFValueType.BOOL, True),
    "a.false": (gguf.GGUFValueType.BOOL, False),
    "a.string": (gguf.GGUFValueType.STRING, "größe 日本 🙂 \0\n"),
    "a.empty": (gguf.GGUFValueType.STRING, ""),
}
ARRAYS: dict[str, list[object]] = {
    "b.integers": [1, -2, 3],
    "b.fractions": [0.5, -1.25, float("inf")],
    "b.booleans": [True, False, True],
    "b.strings": ["", "▁the", "\n", "日本"],
    "b.nested": [[1, 2], [3]],
    "b.nested_strings": [["a", "bc"], ["", "d"]],
}


def write_values(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value_type, value) in VALUES.items():
        writer.add_key_value(key, value, value_type)
    for key, values in ARRAYS.items():
        writer.add_array(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def as_tuples(value: object) -> object:
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value


def write_matrices(path: Path, kind_name: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    kind = gguf.GGMLQuantizationType[kind_name]
    writer = gguf.GGUFWriter(path, "llama")
    raw = {}
    for name, shape in {"a": (64,), "b": (3, 96), "c": (2, 5, 32), "d": (2, 1, 3, 32)}.items():
        data = gguf.quants.quantize(random.standard_normal(shape, dtype=np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
        raw[name] = data.view(np.uint8).reshape(-1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return raw


def test_every_value_type_reads_as_it_was_written(tmp_path: Path) -> None:
    write_values(tmp_path / "values.gguf")
    metadata = GgufFile.open(tmp_path / "values.gguf").metadata
    expected = {"general.architecture": "llama"}
    expected |= {key: value for key, (_, value) in VALUES.items()}
    expected |= {key: as_tuples(values) for key, values in ARRAYS.items()}
    assert dict(metadata) == expected
    assert list(metadata) == list(expected)
    assert [type(metadata[key]) for key in VALUES] == [type(value) for _, value in VALUES.values()]
    assert all(type(item) is bool for item in metadata["b.booleans"])


@pytest.mark.parametrize("kind_name", KIND_NAMES)
def test_tensors_of_every_type_and_rank_read_as_they_were_written(
    tmp_path: Path, kind_name: str
) -> None:
    path = tmp_path / "matrices.gguf"
    raw = write_matrices(path, kind_name)
    file = GgufFile.open(path)
    oracle = gguf.GGUFReader(path)
    assert list(file.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        info = file.tensors[tensor.name]
        assert info.kind_name == kind_name
        assert info.shape == tuple(tensor.shape.tolist())
        assert info.columns == info.shape[0]
        assert info.rows * info.columns == tensor.n_elements
        assert info.rows * info.row_bytes == info.bytes == tensor.n_bytes
        assert info.offset == tensor.data_offset
        expected = raw[tensor.name]
        assert bytes(file.tensor_bytes(info.name)) == expected.tobytes()
        rows = file.tensor_rows(info.name, 0, info.rows)
        np.testing.assert_array_equal(rows, expected.reshape(info.rows, info.row_bytes))


def test_some_rows_are_a_read_only_view(tmp_path: Path) -> None:
    raw = write_matrices(tmp_path / "matrices.gguf", "Q8_0")["c"].reshape(10, 34)
    file = GgufFile.open(tmp_path / "matrices.gguf")
    rows = file.tensor_rows("c", 3, 7)
    np.testing.assert_array_equal(rows, raw[3:7])
    assert rows.base is not None
    assert not rows.flags.writeable
    assert file.tensor_bytes("c").readonly
    assert file.tensor_rows("c", 10, 10).shape == (0, 34)


def test_the_tables_of_types_agree_with_the_gguf_package() -> None:
    for number, kind in TENSOR_KINDS.items():
        oracle = gguf.GGMLQuantizationType(number)
        assert (kind.name, kind.block_size, kind.block_bytes) == (
            oracle.name,
            *gguf.GGML_QUANT_SIZES[oracle],
        )
    for oracle in gguf.GGMLQuantizationType:
        if oracle.value not in TENSOR_KINDS and oracle.value in UNSUPPORTED_TENSOR_KINDS:
            assert UNSUPPORTED_TENSOR_KINDS[oracle.value] == oracle.name
    assert not set(TENSOR_KINDS) & set(UNSUPPORTED_TENSOR_KINDS)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_versions_and_alignments(version: int, alignment: int) -> None:
    data = bytes(range(64))
    raw = gguf_writing.whole_file(
        [gguf_writing.key("general.alignment", 4, alignment.to_bytes(4, "little"))],
        [gguf_writing.tensor("x", (16,), 0, 0)],
        data,
        version=version,
        alignment=alignment,
    )
    file = GgufFile.parse(raw, "x.gguf")
    assert (file.version, file.alignment, file.file_bytes) == (version, alignment, len(raw))
    assert file.data_offset == len(raw) - 64
    assert file.data_offset % alignment == 0
    assert bytes(file.tensor_bytes("x")) == data


def test_a_vocabulary_of_150000_strings_is_read_whole() -> None:
    pieces = [f"▁piece{number}" for number in range(150_000)]
    raw = gguf_writing.whole_file(
        [gguf_writing.key("tokenizer.ggml.tokens", 9, gguf_writing.strings(pieces))]
    )
    assert GgufFile.parse(raw, "x.gguf").metadata["tokenizer.ggml.tokens"] == tuple(pieces)


def test_the_header_alone_tells_everything_but_the_weights(tmp_path: Path) -> None:
    write_matrices(tmp_path / "matrices.gguf", "Q4_0")
    whole = GgufFile.open(tmp_path / "matrices.gguf")
    raw = (tmp_path / "matrices.gguf").read_bytes()
    part = GgufFile.parse_header(raw[: whole.data_offset], "part", whole.file_bytes)
    assert part.metadata == whole.metadata
    assert part.tensors == whole.tensors
    assert (part.data_offset, part.file_bytes) == (whole.data_offset, whole.file_bytes)
    with pytest.raises(ModelFileError, match="weights of tensor 'b' are not here"):
        part.tensor_bytes("b")
    with pytest.raises(ModelFileError, match="the file is cut off: tensor 'd'"):
        GgufFile.parse_header(raw[: whole.data_offset], "part", whole.file_bytes - 64)


def test_no_beginning_of_a_file_passes_for_the_file(tmp_path: Path) -> None:
    write_matrices(tmp_path / "matrices.gguf", "Q4_0")
    raw = (tmp_path / "matrices.gguf").read_bytes()
    last = max(info.offset + info.bytes for info in GgufFile.parse(raw, "whole").tensors.values())
    for length in range(last):
        with pytest.raises(ModelFileError):
            GgufFile.parse(raw[:length], "cut.gguf")


def test_views_outlive_the_file_and_metadata_too(tmp_path: Path) -> None:
    raw = write_matrices(tmp_path / "matrices.gguf", "F16")["b"]
    with GgufFile.open(tmp_path / "matrices.gguf") as file:
        rows = file.tensor_rows("b", 0, 3)
    np.testing.assert_array_equal(rows.reshape(-1), raw)
    assert file.metadata["general.architecture"] == "llama"
    with pytest.raises(ModelFileError, match="are not here"):
        file.tensor_bytes("b")


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    raw = write_matrices(tmp_path / "matrices.gguf", "F32")["b"]
    file = GgufFile.open(tmp_path / "matrices.gguf")
    rows = file.tensor_rows("b", 0, 3)
    file.release_pages()
    np.testing.assert_array_equal(rows.reshape(-1), raw)
    GgufFile.parse((tmp_path / "matrices.gguf").read_bytes(), "in memory").release_pages()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write_matrices(tmp_path / "matrices.gguf", "F32")
    with pytest.raises(ModelFileError, match=r"matrices\.gguf: tensor 'y' is missing"):
        GgufFile.open(tmp_path / "matrices.gguf").tensor_rows("y", 0, 1)


@pytest.mark.shared_model
@pytest.mark.parametrize("kind_name", KIND_NAMES)
def test_the_trained_model_and_its_quantized_copies(
    shared_model: Path, tmp_path: Path, kind_name: str
) -> None:
    path = gguf_writing.quantized_copy(shared_model, tmp_path / "copy.gguf", kind_name)
    file, original = GgufFile.open(path), GgufFile.open(shared_model)
    oracle = gguf.GGUFReader(path)
    assert file.tensors.keys() == original.tensors.keys()
    for key, value in original.metadata.items():
        assert key == "general.file_type" or file.metadata[key] == value
    for tensor in oracle.tensors:
        info = file.tensors[tensor.name]
        assert info.shape == original.tensors[tensor.name].shape
        whole_blocks = info.columns % 32 == 0 or kind_name in ("F16", "BF16")
        assert info.kind_name == (kind_name if info.rows > 1 and whole_blocks else "F32")
        assert bytes(file.tensor_bytes(info.name)) == tensor.data.tobytes()


def test_paths_that_are_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="there is no model file"):
        GgufFile.open(tmp_path / "nothing.gguf")
    with pytest.raises(MisuseError, match="is a folder"):
        GgufFile.open(tmp_path)
    with pytest.raises(MisuseError, match="is not a path"):
        GgufFile.open(f"{tmp_path}/\0")
    (tmp_path / "file").touch()
    with pytest.raises(MisuseError, match="cannot be read"):
        GgufFile.open(tmp_path / "file" / "model.gguf")
    with pytest.raises(ModelFileError, match="the file is empty"):
        GgufFile.open(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MisuseError, match="not a regular file"):
        GgufFile.open(tmp_path / "pipe")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything may be read as root"
)
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    write_values(tmp_path / "values.gguf")
    (tmp_path / "values.gguf").chmod(0)
    with pytest.raises(MisuseError, match="may not be read"):
        GgufFile.open(tmp_path / "values.gguf")
