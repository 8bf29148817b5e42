"""``edgellama quantize``: whole files, read and judged by the gguf package."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import gguf
import gguf_writing
import hugging_face_folders
import numpy as np
import pytest

from edgellama.cli import main
from edgellama.model.type_choice import RUNNABLE_KINDS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def run(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgellama", "quantize", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert isinstance(code, int)
    return code


def values(tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    wide: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return wide


def kinds(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A llama whose rows are whole super-blocks, but for ffn_down's."""
    tool = gguf_writing.random_model_tool()
    shape = dataclasses.replace(tool.SHAPES["small"], layers=2, vocabulary=512, feed_forward=320)
    path = tmp_path / "model.gguf"
    tool.write_model(path, shape, "F32", seed=2)
    return path


@pytest.mark.parametrize("kind_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_tensors_are_the_oracles_byte_for_byte(model: Path, tmp_path: Path, kind_name: str) -> None:
    target = tmp_path / "out.gguf"
    assert run(model, target, "--type", kind_name, "--threads", 2) == 0
    for before, after in zip(
        gguf.GGUFReader(model).tensors, gguf.GGUFReader(target).tensors, strict=True
    ):
        assert after.name == before.name
        assert list(after.shape) == list(before.shape)
        wanted = kind_name if len(before.shape) > 1 else "F32"
        assert after.tensor_type.name == wanted, after.name
        expected = gguf.quants.quantize(values(before), gguf.GGMLQuantizationType[wanted])
        assert after.data.tobytes() == expected.tobytes(), after.name


def test_metadata_stays_but_for_what_says_the_type(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    assert run(model, target, "--type", "q4_0") == 0
    before, after = gguf.GGUFReader(model).fields, gguf.GGUFReader(target).fields
    changed = {"general.file_type", "general.quantization_version"}
    for key in set(before) | set(after):
        if not key.startswith("GGUF.") and key not in changed:
            assert after[key].contents() == before[key].contents(), key
            assert after[key].types == before[key].types, key
    assert after["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0
    assert after["general.quantization_version"].contents() == 2


@pytest.mark.parametrize("kind_name", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_near_what_they_were_made_of(
    model: Path, tmp_path: Path, kind_name: str
) -> None:
    target = tmp_path / "out.gguf"
    assert run(model, target, "--type", kind_name) == 0
    share = {"Q4_K": 0.08, "Q5_K": 0.04, "Q6_K": 0.02}[kind_name]
    found = set()
    for before, after in zip(
        gguf.GGUFReader(model).tensors, gguf.GGUFReader(target).tensors, strict=True
    ):
        wide = values(before)
        if len(before.shape) == 1:
            assert (values(after) == wide).all()
            continue
        found.add(after.tensor_type.name)
        wanted = kind_name if before.shape[0] % 256 == 0 else "Q8_0"
        assert after.tensor_type.name == wanted
        assert np.sqrt(np.square(values(after) - wide).mean()) < share * wide.std(), after.name
    assert kind_name in found


def test_what_has_the_type_already_is_copied(model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert run(model, first, "--type", "Q6_K") == 0
    for kind_name in sorted({"Q8_0", "Q4_0", "Q6_K"} & RUNNABLE_KINDS):
        assert run(model, first, "--type", kind_name) == 0
        assert run(first, second, "--type", kind_name) == 0
        assert second.read_bytes() == first.read_bytes()


def test_threads_change_nothing(model: Path, tmp_path: Path) -> None:
    one, three = tmp_path / "one.gguf", tmp_path / "three.gguf"
    assert run(model, one, "--type", "Q4_K", "--threads", 1) == 0
    assert run(model, three, "--type", "Q4_K", "--threads", 3) == 0
    assert one.read_bytes() == three.read_bytes()
    assert one.stat().st_mode & 0o400


def test_fitting(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow, wide, between = (tmp_path / f"{name}.gguf" for name in ("narrow", "wide", "between"))
    assert run(model, narrow, "--type", "Q4_K") == 0
    assert run(model, wide, "--type", "Q8_0") == 0
    budget = (narrow.stat().st_size + wide.stat().st_size) // 2
    capsys.readouterr()
    assert run(model, between, "--fit", budget) == 0
    table = capsys.readouterr().out
    assert 0.9 * budget < between.stat().st_size <= budget
    for kind_name in set(kinds(between).values()):
        assert kind_name in table
    assert len(set(kinds(between).values()) - {"F32"}) > 1
    assert run(model, between, "--fit", 1000) == 1
    assert "takes at least" in capsys.readouterr().err


def test_calibrating(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words, and more of them. " * 60, encoding="utf-8")
    plain, calibrated = tmp_path / "plain.gguf", tmp_path / "calibrated.gguf"
    assert run(model, plain, "--type", "Q4_K") == 0
    options = ["--calibrate", text, "--backend", "numpy"]
    assert run(model, calibrated, "--type", "Q4_K", *options) == 0
    assert calibrated.stat().st_size == plain.stat().st_size
    assert calibrated.read_bytes() != plain.read_bytes()
    size = plain.stat().st_size + 40_000
    assert run(model, calibrated, "--fit", size, *options) == 0
    assert calibrated.stat().st_size <= size


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    config = hugging_face_folders.family_config("llama", hidden_size=256, intermediate_size=320)
    tensors = hugging_face_folders.random_tensors(config)
    folder = hugging_face_folders.write_folder(tmp_path / "model", config, tensors, "BF16")
    text = tmp_path / "text.txt"
    text.write_text("There is the cat and the other. " * 40, encoding="utf-8")
    target = tmp_path / "out.gguf"
    assert run(folder, target, "--type", "Q8_0") == 0
    (found,) = (t for t in gguf.GGUFReader(target).tensors if t.name == "output.weight")
    expected = gguf.quants.quantize(tensors["lm_head.weight"], gguf.GGMLQuantizationType.Q8_0)
    assert found.data.tobytes() == expected.tobytes()
    options = ["--calibrate", text, "--backend", "numpy"]
    assert run(folder, target, "--type", "Q4_K", *options) == 0
    assert "Q4_K" in kinds(target).values()
    assert run(tmp_path, target, "--type", "Q8_0") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "fault"),
    [
        (["{model}", "{out}"], 2, "say either --type or --fit"),
        (["{model}", "{out}", "--type", "Q8_0", "--fit", "1G"], 2, "say either"),
        (["{model}", "{out}", "--type", "Q3_K"], 2, "--type"),
        (["none.gguf", "{out}", "--type", "Q8_0"], 2, "no such file"),
        (["{model}", "{model}", "--type", "Q8_0"], 2, "the same file"),
        (["{model}", "{folder}", "--type", "Q8_0"], 2, "is a folder"),
        (["{model}", "{folder}/no/out.gguf", "--type", "Q8_0"], 2, "there is no folder"),
        (["{model}", "{out}", "--fit", "1G", "--calibrate", "none.txt"], 2, "cannot be read"),
        (["{text}", "{out}", "--type", "Q8_0"], 1, "is not a GGUF file"),
        (["{model}", "{out}", "--fit", "elephants"], 2, "elephants"),
        (["{model}", "{out}", "--fit", "1G", "--peer", "127.0.0.1:9"], 2, "go with --fit mesh"),
        (["{model}", "{out}", "--fit", "mesh", "--peer", "127.0.0.1:9"], 3, "no device of a mesh"),
    ],
)
def test_misuse(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    fault: str,
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "text").write_text("no model at all", encoding="utf-8")
    places = {"model": model, "out": folder / "out.gguf", "folder": folder, "text": folder / "text"}
    assert run(*(argument.format(**places) for argument in arguments)) == code
    said = capsys.readouterr().err
    assert fault in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["text"]


def test_weights_beyond_the_type_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = tmp_path / "model.gguf", tmp_path / "out.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("output.weight", np.full((2, 256), 1e6, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert run(path, target, "--type", "F16") == 1
    assert "tensor output.weight holds a number beyond 65504" in capsys.readouterr().err
    assert not target.exists()
    assert [each.name for each in tmp_path.iterdir() if "unfinished" in each.name] == []
