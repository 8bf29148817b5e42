from __future__ import annotations

import math
from typing import Any

import pytest

from edgellama.demo import demo_model_path

gguf = pytest.importorskip("gguf")

SIZE_BYTES_MAX = 5_000_000  # it travels with every installation
WIDEST_BLOCK = 256  # the k-quants' block: a row must be cut into whole ones


@pytest.fixture(scope="module")
def reader() -> Any:
    return gguf.GGUFReader(demo_model_path())


def metadata(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_the_file_is_in_the_package_and_small() -> None:
    assert demo_model_path().is_file()
    assert demo_model_path().stat().st_size <= SIZE_BYTES_MAX


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "llama"),
        ("general.name", "Little Stories"),
        ("general.license", "MIT"),
        ("llama.context_length", 512),
        ("llama.embedding_length", 256),
        ("llama.block_count", 4),
        ("llama.feed_forward_length", 512),
        ("llama.attention.head_count", 8),
        ("llama.attention.head_count_kv", 4),
        ("llama.rope.dimension_count", 32),
        ("llama.rope.freq_base", 10000.0),
        ("llama.vocab_size", 1024),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.add_bos_token", True),
        ("tokenizer.ggml.add_eos_token", False),
        ("tokenizer.ggml.add_space_prefix", True),
    ],
)
def test_metadata(reader: Any, key: str, value: object) -> None:
    assert metadata(reader, key) == value


def test_epsilon_is_the_usual_one(reader: Any) -> None:
    epsilon = metadata(reader, "llama.attention.layer_norm_rms_epsilon")
    assert math.isclose(epsilon, 1e-5, rel_tol=1e-6)


def test_every_token_has_a_text_a_score_and_a_type(reader: Any) -> None:
    tokens = metadata(reader, "tokenizer.ggml.tokens")
    scores = metadata(reader, "tokenizer.ggml.scores")
    types = metadata(reader, "tokenizer.ggml.token_type")
    kinds = gguf.TokenType

    assert len(tokens) == len(scores) == len(types) == 1024
    assert len(set(tokens)) == 1024
    assert tokens[:3] == ["<unk>", "<s>", "</s>"]
    assert types[:3] == [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
    assert tokens[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert types[3:259] == [kinds.BYTE] * 256
    assert types[259:] == [kinds.NORMAL] * 765
    assert scores[259:] == [float(-rank) for rank in range(765)]


def test_every_longer_piece_is_two_pieces_of_the_vocabulary(reader: Any) -> None:
    pieces = set(metadata(reader, "tokenizer.ggml.tokens")[259:])
    for piece in pieces:
        cuts = range(1, len(piece))
        assert len(piece) == 1 or any({piece[:at], piece[at:]} <= pieces for at in cuts), piece


def test_only_the_first_letter_of_a_piece_is_the_marker(reader: Any) -> None:
    for piece in metadata(reader, "tokenizer.ggml.tokens")[259:]:
        assert "\u2581" not in piece[1:]


def test_tensors_are_those_of_four_llama_layers(reader: Any) -> None:
    shapes = {
        "attn_norm": [256],
        "attn_q": [256, 256],
        "attn_k": [256, 128],
        "attn_v": [256, 128],
        "attn_output": [256, 256],
        "ffn_norm": [256],
        "ffn_gate": [256, 512],
        "ffn_up": [256, 512],
        "ffn_down": [512, 256],
    }
    expected = {
        f"blk.{layer}.{name}.weight": shape for layer in range(4) for name, shape in shapes.items()
    }
    expected |= {"token_embd.weight": [256, 1024], "output_norm.weight": [256]}

    assert {t.name: t.shape.tolist() for t in reader.tensors} == expected


def test_norms_are_f32_and_matrices_are_q8_0_in_rows_that_fit_every_block(reader: Any) -> None:
    for tensor in reader.tensors:
        columns, *rows = tensor.shape.tolist()
        assert tensor.tensor_type.name == ("Q8_0" if rows else "F32"), tensor.name
        assert columns % WIDEST_BLOCK == 0
