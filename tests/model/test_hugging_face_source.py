"""Folders of Hugging Face's transformers as GGUF: names, order, numbers, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hugging_face_folders import (
    EXPERTS,
    HEADS,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    family_config,
    random_tensors,
    write_folder,
)

from edgellama.errors import EdgellamaError
from edgellama.model.hugging_face_source import HuggingFaceSource
from edgellama.node.quantizing import stored_kinds, write_quantized

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")


def converted(folder: Path, target: Path) -> gguf.GGUFReader:
    source = HuggingFaceSource(folder)
    write_quantized(source, stored_kinds(source), target, {}, 1, lambda _done, _total: None)
    return gguf.GGUFReader(target)


def values(reader: gguf.GGUFReader, name: str) -> NDArray[np.float32]:
    (tensor,) = (each for each in reader.tensors if each.name == name)
    wide: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return wide


@pytest.mark.parametrize("kind_name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_arrives(tmp_path: Path, family: str, kind_name: str) -> None:
    config = family_config(family)
    tensors = random_tensors(config, seed=3)
    reader = converted(
        write_folder(tmp_path / "model", config, tensors, kind_name), tmp_path / "out.gguf"
    )
    assert len(reader.tensors) == len(tensors) - (
        3 * LAYERS * (EXPERTS - 1) if family == "qwen3_moe" else 0
    )
    for tensor in reader.tensors:
        vector_or_router = len(tensor.shape) == 1 or "ffn_gate_inp" in tensor.name
        assert tensor.tensor_type.name == ("F32" if vector_or_router else kind_name), tensor.name

    def same(name: str, stored: str) -> None:
        assert (values(reader, name) == tensors[stored]).all(), name

    same("token_embd.weight", "model.embed_tokens.weight")
    same("output_norm.weight", "model.norm.weight")
    same("output.weight", "lm_head.weight")
    same("blk.1.attn_norm.weight", "model.layers.1.input_layernorm.weight")
    same("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight")
    same("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight")
    same("blk.1.attn_output.weight", "model.layers.1.self_attn.o_proj.weight")
    if family in ("llama", "mistral"):
        half = (64 // HEADS) // 2
        stored = tensors["model.layers.1.self_attn.k_proj.weight"]
        pairs = stored.reshape(KV_HEADS, 2, half, -1).transpose(0, 2, 1, 3).reshape(stored.shape)
        assert (values(reader, "blk.1.attn_k.weight") == pairs).all()
    else:
        same("blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight")
    if family == "qwen2":
        same("blk.1.attn_q.bias", "model.layers.1.self_attn.q_proj.bias")
    if family == "qwen3":
        same("blk.1.attn_k_norm.weight", "model.layers.1.self_attn.k_norm.weight")
    if family == "qwen3_moe":
        same("blk.0.ffn_gate_inp.weight", "model.layers.0.mlp.gate.weight")
        for short in ("gate", "up", "down"):
            stack = values(reader, f"blk.1.ffn_{short}_exps.weight")
            for expert in range(EXPERTS):
                name = f"model.layers.1.mlp.experts.{expert}.{short}_proj.weight"
                assert (stack[expert] == tensors[name]).all(), name
    else:
        same("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight")


def test_slices_of_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    config = family_config("qwen3_moe")
    source = HuggingFaceSource(write_folder(tmp_path / "m", config, random_tensors(config)))
    llama = family_config("llama")
    other = HuggingFaceSource(write_folder(tmp_path / "l", llama, random_tensors(llama)))
    for each, name in ((source, "blk.0.ffn_up_exps.weight"), (other, "blk.0.attn_q.weight")):
        (tensor,) = (t for t in each.tensors if t.name == name)
        whole = each.raw_rows(tensor, 0, tensor.rows)
        for step in (1, 5, 33):
            parts = [
                each.raw_rows(tensor, first, min(first + step, tensor.rows))
                for first in range(0, tensor.rows, step)
            ]
            assert (np.concatenate(parts) == whole).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_keys(tmp_path: Path, family: str) -> None:
    config = family_config(family)
    folder = write_folder(tmp_path / "model", config, random_tensors(config))
    fields = converted(folder, tmp_path / "out.gguf").fields
    name = {"mistral": "llama", "qwen3_moe": "qwen3moe"}.get(family, family)
    expected = {
        "general.architecture": name,
        "general.name": "model",
        f"{name}.block_count": LAYERS,
        f"{name}.context_length": 256,
        f"{name}.embedding_length": 64,
        f"{name}.attention.head_count": HEADS,
        f"{name}.attention.head_count_kv": KV_HEADS,
        f"{name}.attention.key_length": 32 if family.startswith("qwen3") else 16,
        f"{name}.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        f"{name}.rope.freq_base": 5000.0,
        f"{name}.vocab_size": VOCABULARY,
    }
    if family == "qwen3_moe":
        expected |= {
            f"{name}.expert_count": EXPERTS,
            f"{name}.expert_used_count": 2,
            f"{name}.expert_feed_forward_length": 32,
        }
    assert {key: fields[key].contents() for key in expected} == expected


class Float64Transformers:
    """A llama as transformers computes it, from the names and the order of its own files."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.config = config
        self.weights = {name: each.astype(np.float64) for name, each in tensors.items()}

    def logits(self, ids: list[int]) -> Float64:
        w = self.weights
        x = w["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            x = x + self.attention(p, self.norm(x, w[p + "input_layernorm.weight"]))
            h = self.norm(x, w[p + "post_attention_layernorm.weight"])
            gate = h @ w[p + "mlp.gate_proj.weight"].T
            up = h @ w[p + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
        output = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        result: Float64 = self.norm(x, w["model.norm.weight"]) @ output.T
        return result

    def norm(self, x: Float64, weight: Float64) -> Float64:
        epsilon = self.config["rms_norm_eps"]
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight

    def attention(self, p: str, h: Float64) -> Float64:
        w, count = self.weights, len(h)
        q, k, v = (
            (h @ w[f"{p}self_attn.{part}_proj.weight"].T).reshape(count, heads, -1)
            for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        q, k = self.rotated(q), self.rotated(k)
        mixed = np.zeros_like(q)
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = q[:, head] @ k[:, shared].T / np.sqrt(q.shape[-1])
            scores[np.triu_indices(count, 1)] = -np.inf
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = shares / shares.sum(-1, keepdims=True) @ v[:, shared]
        result: Float64 = mixed.reshape(count, -1) @ w[p + "self_attn.o_proj.weight"].T
        return result

    def rotated(self, x: Float64) -> Float64:
        half = x.shape[-1] // 2
        frequencies = self.config["rope_theta"] ** -(np.arange(half) / half)
        scaling = self.config.get("rope_scaling")
        if scaling:
            frequencies = self.scaled(frequencies, scaling)
        angles = np.arange(len(x))[:, None, None] * frequencies
        first, second = x[..., :half], x[..., half:]
        cosine, sine = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)

    def scaled(self, frequencies: Float64, scaling: Mapping[str, Any]) -> Float64:
        if scaling["rope_type"] == "linear":
            return frequencies / scaling["factor"]
        before = scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        scaled = []
        for frequency in frequencies:
            turns = before * frequency / (2 * np.pi)
            if turns > high:
                scaled.append(frequency)
            elif turns < low:
                scaled.append(frequency / scaling["factor"])
            else:
                share = (turns - low) / (high - low)
                scaled.append((1 - share) * frequency / scaling["factor"] + share * frequency)
        return np.array(scaled)


LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tie_word_embeddings": True},
        {"rope_scaling": LLAMA_3_SCALING},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ],
    ids=str,
)
def test_logits_are_those_of_transformers(tmp_path: Path, changed: dict[str, Any]) -> None:
    import edgellama_kernels
    from model_running import packed_model

    from edgellama.model.head import Head
    from edgellama.model.stage import Stage
    from edgellama.values import Span

    config = family_config("llama", **changed)
    tensors = random_tensors(config, seed=8)
    converted(write_folder(tmp_path / "model", config, tensors), tmp_path / "out.gguf")
    ids = [int(each) for each in np.random.default_rng(1).integers(0, 320, 90)]
    model = packed_model(tmp_path / "out.gguf")
    kernels = edgellama_kernels.load("numpy")
    stage = Stage(kernels, model.config, Span(0, LAYERS), model.layers, 128, 1)
    head = Head(kernels, model.config, model.home)
    stage.open(1)
    found = head.logits(stage.forward(1, head.embed(ids), 0))
    kernels.close()
    expected = Float64Transformers(config, tensors).logits(ids)
    assert np.abs(found - expected).max() < 0.01 * expected.std()


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"model_type": "gpt2"}, "models of type 'gpt2' are not supported"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"hidden_act": "gelu"}, "'hidden_act'"),
        ({"attention_bias": True}, "'attention_bias'"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE scaling 'yarn'"),
        ({"rope_scaling": {**LLAMA_3_SCALING, "factor": 0}}, "no scaling can be made"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "'factor' is missing"),
        ({"num_hidden_layers": 0}, "not within 1 to"),
        ({"num_hidden_layers": 1}, "has no place"),
        ({"num_hidden_layers": 3}, "is missing"),
        ({"hidden_size": "64"}, "no whole number"),
        ({"num_attention_heads": 8}, "not those of its heads"),
        ({"vocab_size": 100}, "rows for a vocabulary of 100"),
        ({"rms_norm_eps": float("nan")}, "out of bounds"),
        ({"model_type": "qwen3_moe", "num_experts": 4}, "norm_topk_prob"),
    ],
)
def test_refusals(tmp_path: Path, changed: dict[str, Any], fault: str) -> None:
    config = family_config("llama")
    folder = write_folder(tmp_path / "model", {**config, **changed}, random_tensors(config))
    with pytest.raises(EdgellamaError, match=fault) as caught:
        HuggingFaceSource(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.norm.weight"])
def test_missing_tensors(tmp_path: Path, missing: str) -> None:
    config = family_config("llama")
    tensors = random_tensors(config)
    del tensors[missing]
    folder = write_folder(tmp_path / "model", config, tensors)
    with pytest.raises(EdgellamaError, match="is missing"):
        HuggingFaceSource(folder)


def test_a_bias_of_a_llama_is_not_left_out(tmp_path: Path) -> None:
    config = family_config("llama")
    tensors = random_tensors(config)
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
    folder = write_folder(tmp_path / "model", config, tensors)
    with pytest.raises(EdgellamaError, match="has no place"):
        HuggingFaceSource(folder)


def test_the_window_bounds_the_context(tmp_path: Path) -> None:
    for name, changed, context in (
        ("a", {"sliding_window": 64}, 64),
        ("b", {"sliding_window": 64, "use_sliding_window": False}, 256),
        ("c", {"sliding_window": 4096}, 256),
    ):
        config = family_config("llama", **changed)
        folder = write_folder(tmp_path / name, config, random_tensors(config))
        reader = converted(folder, tmp_path / f"{name}.gguf")
        assert reader.fields["llama.context_length"].contents() == context
