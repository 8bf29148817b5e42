"""tools/make_random_model.py: what it writes is a sound model of the size that was asked for."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import gguf
import gguf_writing
import numpy as np
import pytest

from edgellama.model.config import ModelConfig
from edgellama.model.gguf import GgufFile
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ["F32", "F16", "Q8_0", "Q4_0"]


@pytest.mark.parametrize("kind_name", KINDS)
@pytest.mark.parametrize("shape", ["tiny", "tiny-tied"])
def test_a_random_model_is_a_sound_llama(tmp_path: Path, shape: str, kind_name: str) -> None:
    path = gguf_writing.random_model(tmp_path / "random.gguf", shape, kind_name)
    file = GgufFile.open(path)
    config = ModelConfig.from_gguf(file)
    assert (config.layers, config.width, config.vocabulary) == (4, 64, 512)
    assert config.tied_output == (shape == "tiny-tied")
    assert Tokenizer.from_gguf(file).size == config.vocabulary
    assert {info.kind_name for info in file.tensors.values()} == {"F32", kind_name}
    last = list(file.tensors.values())[-1]
    assert last.offset + last.bytes == path.stat().st_size


@pytest.mark.parametrize("kind_name", KINDS)
def test_weights_have_the_deviation_that_keeps_activations(tmp_path: Path, kind_name: str) -> None:
    reader = gguf.GGUFReader(
        gguf_writing.random_model(tmp_path / "random.gguf", "small", kind_name)
    )
    expected = {
        tensor.name: tensor
        for tensor in gguf_writing.random_model_tool().model_tensors(
            gguf_writing.random_model_tool().SHAPES["small"]
        )
    }
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        wanted = expected[tensor.name]
        assert abs(weights.mean() - wanted.mean) < wanted.deviation / 4, tensor.name
        assert 0.8 < weights.std() / wanted.deviation < 1.25, tensor.name


def test_the_same_seed_gives_the_same_file_and_another_does_not(tmp_path: Path) -> None:
    first = gguf_writing.random_model(tmp_path / "1.gguf", seed=1).read_bytes()
    assert gguf_writing.random_model(tmp_path / "2.gguf", seed=1).read_bytes() == first
    assert gguf_writing.random_model(tmp_path / "3.gguf", seed=2).read_bytes() != first


def test_every_piece_of_the_vocabulary_can_come_from_text(tmp_path: Path) -> None:
    path = gguf_writing.random_model(tmp_path / "random.gguf")
    tokenizer = Tokenizer.from_gguf(path)
    pieces = [tokenizer.piece(token) for token in range(259, tokenizer.size)]
    assert len(set(pieces)) == len(pieces)
    for token, piece in enumerate(pieces, start=259):
        if piece.startswith("▁") and piece != "▁":
            assert tokenizer.encode(piece[1:], add_special=False) == [token]


def test_the_command_takes_a_shape_and_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    tool = [sys.executable, gguf_writing.RANDOM_MODEL_TOOL]
    options = ["--shape", "tiny", "--layers", "2", "--vocabulary", "300", "--type", "Q8_0"]
    subprocess.run([*tool, path, *options], check=True, capture_output=True)
    config = ModelConfig.from_gguf(GgufFile.open(path))
    assert (config.layers, config.width, config.vocabulary) == (2, 64, 300)
    refused = subprocess.run(
        [*tool, path, "--heads", "7"], check=False, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert refused.stderr == "width must be a multiple of heads, and heads of kv-heads\n"
