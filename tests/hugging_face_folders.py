"""Small random models in the layout of Hugging Face's transformers, and safetensors by hand.

Any test may `import hugging_face_folders`: pytest puts the folder of `tests/conftest.py` on the
path.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

VOCABULARY = 320
WIDTH = 64
LAYERS = 2
HEADS = 4
KV_HEADS = 2
FEED_FORWARD = 96
EXPERTS = 4

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": 256,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
    "bos_token_id": 280,
    "eos_token_id": 281,
}


def stored(values: Floats, kind_name: str) -> bytes:
    """Return numbers as safetensors hold them; they must be exact in that type."""
    if kind_name == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[kind_name]).tobytes()


def safetensors(tensors: Mapping[str, Floats], kind_name: str = "F32") -> bytes:
    """Return a whole file."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        content = stored(values, kind_name)
        place = [len(data), len(data) + len(content)]
        table[name] = {"dtype": kind_name, "shape": list(values.shape), "data_offsets": place}
        data += content
    return safetensors_of(table, data)


def safetensors_of(table: object, data: bytes) -> bytes:
    """Return a file with any table, be it true or not."""
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + data


def random_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, Floats]:
    """Return weights by name; they are exact in every type that is read."""
    random = np.random.default_rng(seed)
    family, width = config["model_type"], config["hidden_size"]
    head_width = config.get("head_dim", width // HEADS)

    def numbers(*shape: int) -> Floats:
        return random.integers(-16, 17, shape).astype(np.float32) / np.float32(64)

    tensors = {
        "model.embed_tokens.weight": numbers(VOCABULARY, width),
        "model.norm.weight": 1 + numbers(width),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = numbers(VOCABULARY, width)
    for layer in range(config["num_hidden_layers"]):
        attention = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
        block = {
            f"self_attn.{part}_proj.weight": numbers(heads * head_width, width)
            for part, heads in attention.items()
        }
        block["self_attn.o_proj.weight"] = numbers(width, HEADS * head_width)
        block["input_layernorm.weight"] = 1 + numbers(width)
        block["post_attention_layernorm.weight"] = 1 + numbers(width)
        if family == "qwen2":
            for part, heads in attention.items():
                block[f"self_attn.{part}_proj.bias"] = numbers(heads * head_width)
        if family.startswith("qwen3"):
            block["self_attn.q_norm.weight"] = 1 + numbers(head_width)
            block["self_attn.k_norm.weight"] = 1 + numbers(head_width)
        units = ["mlp."]
        inner = config["intermediate_size"]
        if family == "qwen3_moe":
            units = [f"mlp.experts.{expert}." for expert in range(EXPERTS)]
            inner = config["moe_intermediate_size"]
            block["mlp.gate.weight"] = numbers(EXPERTS, width)
        for unit in units:
            block[f"{unit}gate_proj.weight"] = numbers(inner, width)
            block[f"{unit}up_proj.weight"] = numbers(inner, width)
            block[f"{unit}down_proj.weight"] = numbers(width, inner)
        tensors |= {f"model.layers.{layer}.{name}": values for name, values in block.items()}
    return tensors


def family_config(family: str, **changed: Any) -> dict[str, Any]:
    """Return the configuration of a small model of a family."""
    config = {**CONFIG, "model_type": family}
    if family.startswith("qwen3"):
        config["head_dim"] = 32
    if family == "qwen3_moe":
        config |= {
            "num_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        }
    return {**config, **changed}


def byte_level_tokenizer(pattern: str = LLAMA_3) -> Tokenizer:
    """Train a tokenizer of 280 tokens with a few special ones after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["The cat sat on the mat.", "There is nothing that the others think of, is there?"]
    tokenizer.train_from_iterator(texts * 4, trainer)
    assert tokenizer.get_vocab_size() == 280
    tokenizer.add_special_tokens([AddedToken("<|begin|>"), AddedToken("<|end|>")])
    tokenizer.add_tokens([AddedToken("<think>")])
    return tokenizer


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Floats],
    kind_name: str = "F32",
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a whole model; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(safetensors(tensors, kind_name))
    (tokenizer or byte_level_tokenizer()).save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder
