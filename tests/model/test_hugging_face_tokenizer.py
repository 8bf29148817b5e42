"""Tokenizers of Hugging Face folders as GGUF keys; their own libraries are the judges."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sentencepiece
from hugging_face_folders import LLAMA_3, QWEN_2, byte_level_tokenizer
from tokenizers import Tokenizer as Oracle
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from edgellama.errors import EdgellamaError
from edgellama.model.gguf import GgufFile
from edgellama.model.gguf_writer import encoded, header
from edgellama.model.hugging_face_tokenizer import tokenizer_keys
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 330
TEXTS = [
    "",
    "The cat sat on the mat, didn't it?\n\n  There were 12345 of them!",
    "  spaces   and\ttabs\r\n",
    "naïve Ünïcödé 日本語 🙂 <think>no</think>",
    "a" * 50 + " " * 9 + "!?",
]


def folder_of(folder: Path, files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"config.json": {}, **files}.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def converted(folder: Path, size: int = SIZE) -> tuple[dict[str, Any], Tokenizer]:
    keys = tokenizer_keys(folder, size)
    data = header({key: encoded(value) for key, value in keys.items()}, [])
    return keys, Tokenizer.from_gguf(GgufFile.parse(data, "converted"))


def assert_same(oracle: Oracle, tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        assert (
            tokenizer.encode(text, add_special=False)
            == oracle.encode(text, add_special_tokens=False).ids
        ), text
        assert tokenizer.encode(text) == oracle.encode(text).ids, text


@pytest.mark.parametrize(("pattern", "name"), [(LLAMA_3, "llama-bpe"), (QWEN_2, "qwen2")])
def test_byte_level(tmp_path: Path, pattern: str, name: str) -> None:
    oracle = byte_level_tokenizer(pattern)
    files = {
        "tokenizer.json": oracle.to_str(),
        "tokenizer_config.json": {"bos_token": "<|begin|>", "eos_token": "<|end|>"},
    }
    keys, tokenizer = converted(folder_of(tmp_path / "model", files))
    assert keys["tokenizer.ggml.pre"] == name
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.bos_token_id"] == oracle.token_to_id("<|begin|>")
    assert keys["tokenizer.ggml.eos_token_id"] == oracle.token_to_id("<|end|>")
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert tokenizer.size == SIZE
    assert_same(oracle, tokenizer)
    types = keys["tokenizer.ggml.token_type"]
    assert types[oracle.token_to_id("<|begin|>")] == 3
    assert types[oracle.token_to_id("<think>")] == 4
    assert list(types[oracle.get_vocab_size() :]) == [5] * (SIZE - oracle.get_vocab_size())


def test_bos_comes_from_the_template(tmp_path: Path) -> None:
    oracle = byte_level_tokenizer()
    token = oracle.token_to_id("<|begin|>")
    oracle.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin|> $A", special_tokens=[("<|begin|>", token)]
            ),
        ]
    )
    files = {
        "tokenizer.json": oracle.to_str(),
        "tokenizer_config.json": {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|end|>"},
    }
    keys, tokenizer = converted(folder_of(tmp_path / "model", files))
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False
    assert_same(oracle, tokenizer)
    files["tokenizer_config.json"] = {"bos_token": "<|begin|>", "add_bos_token": False}
    keys, _ = converted(folder_of(tmp_path / "model", files))
    assert keys["tokenizer.ggml.add_bos_token"] is False


def test_gpt_2_and_smollm(tmp_path: Path) -> None:
    oracle = byte_level_tokenizer()
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    for before, name in ((plain, "gpt-2"), (digits, "smollm")):
        oracle.pre_tokenizer = before
        folder = folder_of(tmp_path / name, {"tokenizer.json": oracle.to_str()})
        keys, tokenizer = converted(folder)
        assert keys["tokenizer.ggml.pre"] == name
        assert_same(oracle, tokenizer)


def test_older_files_join_merges(tmp_path: Path) -> None:
    stored = json.loads(byte_level_tokenizer().to_str())
    new, _ = converted(folder_of(tmp_path / "new", {"tokenizer.json": stored}))
    stored["model"]["merges"] = [
        " ".join(pair) if isinstance(pair, list) else pair for pair in stored["model"]["merges"]
    ]
    old, _ = converted(folder_of(tmp_path / "old", {"tokenizer.json": stored}))
    assert old["tokenizer.ggml.merges"] == new["tokenizer.ggml.merges"]
    assert len(new["tokenizer.ggml.merges"]) > 10


def sentencepiece_model(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["The cat sat on the mat. Is there any other?"] * 20),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "bpe", **options},
    )
    return model.getvalue()


@pytest.mark.parametrize("adds_space", [True, False])
def test_sentencepiece(tmp_path: Path, adds_space: bool) -> None:
    model = sentencepiece_model(add_dummy_prefix=adds_space)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    keys, tokenizer = converted(folder_of(tmp_path / "model", {"tokenizer.model": model}))
    size = oracle.get_piece_size()
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is adds_space
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.tokens"][:size] == [oracle.id_to_piece(n) for n in range(size)]
    scores = np.array([oracle.get_score(n) for n in range(size)], np.float32)
    assert (keys["tokenizer.ggml.scores"][:size] == scores).all()
    types = keys["tokenizer.ggml.token_type"]
    assert [types[0], types[1], types[2], types[3]] == [2, 3, 3, 6]
    for text in TEXTS:
        assert tokenizer.encode(text, add_special=False) == oracle.encode(text), text


def test_sentencepiece_with_added_tokens(tmp_path: Path) -> None:
    model = sentencepiece_model()
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            str(size): {"content": "<|im_end|>", "special": True},
            str(size + 1): {"content": "<tool>", "special": False},
        },
    }
    files = {"tokenizer.model": model, "tokenizer_config.json": config}
    keys, tokenizer = converted(folder_of(tmp_path / "model", files))
    assert keys["tokenizer.ggml.tokens"][size : size + 2] == ["<|im_end|>", "<tool>"]
    assert list(keys["tokenizer.ggml.token_type"][[0, 1, size, size + 1]]) == [2, 3, 3, 4]
    assert keys["tokenizer.ggml.eos_token_id"] == 2
    assert keys["tokenizer.ggml.unknown_token_id"] == 0
    assert tokenizer.encode("<tool>", add_special=False) == [size + 1]


@pytest.mark.parametrize("old_form", [True, False])
def test_characters_with_byte_tokens(tmp_path: Path, old_form: bool) -> None:
    """What a tokenizer.json says instead of a tokenizer.model: the same pieces come of a text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    vocabulary = {processor.id_to_piece(n): n for n in range(processor.get_piece_size())}
    merges = [
        (processor.get_score(whole), piece[:cut], piece[cut:])
        for piece, whole in vocabulary.items()
        for cut in range(1, len(piece))
        if not processor.is_byte(whole) and not processor.is_control(whole) and whole
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges.sort(key=lambda each: -each[0])
    oracle = Oracle(
        models.BPE(
            vocabulary,
            [(left, right) for _, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if old_form:
        oracle.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        oracle.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    oracle.decoder = decoders.ByteFallback()
    keys, tokenizer = converted(folder_of(tmp_path / "model", {"tokenizer.json": oracle.to_str()}))
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    for text in TEXTS[1:]:
        assert tokenizer.encode(text, add_special=False) == processor.encode(text), text


def test_ends_and_templates(tmp_path: Path) -> None:
    oracle = byte_level_tokenizer()
    begin, end = oracle.token_to_id("<|begin|>"), oracle.token_to_id("<|end|>")
    files: dict[str, Any] = {
        "tokenizer.json": oracle.to_str(),
        "tokenizer_config.json": {
            "eos_token": "<|end|>",
            "chat_template": [
                {"name": "tool_use", "template": "no"},
                {"name": "default", "template": "yes"},
            ],
        },
        "generation_config.json": {"eos_token_id": [end, begin]},
    }
    keys, tokenizer = converted(folder_of(tmp_path / "model", files))
    assert keys["tokenizer.chat_template"] == "yes"
    assert {begin, end} <= tokenizer.end_tokens
    files["chat_template.jinja"] = "{{ 'newer' }}"
    keys, _ = converted(folder_of(tmp_path / "model", files))
    assert keys["tokenizer.chat_template"] == "{{ 'newer' }}"


def changed(**fields: Any) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(byte_level_tokenizer().to_str())
    for key, value in fields.items():
        place = stored
        *path, last = key.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    return stored


def cutting(pattern: str) -> dict[str, Any]:
    oracle = byte_level_tokenizer(pattern)
    stored: dict[str, Any] = json.loads(oracle.to_str())
    return stored


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({}, "has neither tokenizer.model nor"),
        ({"tokenizer.json": "{"}, "is not JSON"),
        ({"tokenizer.json": "[]"}, "is not a JSON object"),
        ({"tokenizer.json": changed(model__type="Unigram")}, "is not BPE"),
        ({"tokenizer.json": changed(model__vocab={"a": -1})}, "an id of its own"),
        ({"tokenizer.json": changed(model__vocab={"a": 1, "b": 1})}, "an id of its own"),
        ({"tokenizer.json": changed(model__vocab={"a": 1 << 40})}, "an id of its own"),
        ({"tokenizer.json": changed(model__vocab=[])}, "is no object"),
        ({"tokenizer.json": changed(model__merges=["a"])}, "no pair of pieces"),
        ({"tokenizer.json": changed(model__merges=[["a", "b", "c"]])}, "no pair of pieces"),
        ({"tokenizer.json": changed(pre_tokenizer=None)}, "is not one of those"),
        ({"tokenizer.json": cutting(r"\w+")}, "is not one of those"),
        ({"tokenizer.json": changed(normalizer={"type": "Lowercase"})}, "normalize"),
        ({"tokenizer.json": changed(model__byte_fallback=True)}, "way to treat spaces"),
        ({"tokenizer.json": changed(added_tokens=[{"id": 9000, "content": "x"}])}, "lies beyond"),
        ({"tokenizer.json": changed(added_tokens=[{"id": 1}])}, "is missing"),
        ({"tokenizer.json": changed(added_tokens=3)}, "no list of objects"),
        ({"tokenizer.model": b""}, "has 0 pieces|not byte-pair"),
        ({"tokenizer.model": b"\xff" * 40}, "no SentencePiece model"),
        ({"tokenizer.model": b"\x0a\x05\x0a"}, "no SentencePiece model"),
    ],
)
def test_refusals(tmp_path: Path, files: dict[str, Any], fault: str) -> None:
    folder = folder_of(tmp_path / "model", files)
    with pytest.raises(EdgellamaError, match=fault) as caught:
        tokenizer_keys(folder, SIZE)
    assert "\n" not in str(caught.value)


def test_too_many_tokens(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", {"tokenizer.json": byte_level_tokenizer().to_str()})
    with pytest.raises(EdgellamaError, match="lies beyond the embedding's 281 rows"):
        tokenizer_keys(folder, 281)
    with pytest.raises(EdgellamaError, match="lies beyond the embedding's 200 rows"):
        tokenizer_keys(folder, 200)


def test_unigram_is_refused(tmp_path: Path) -> None:
    model = sentencepiece_model(model_type="unigram")
    with pytest.raises(EdgellamaError, match="not byte-pair encoding"):
        tokenizer_keys(folder_of(tmp_path / "model", {"tokenizer.model": model}), SIZE)
