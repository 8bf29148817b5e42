"""ModelConfig: what a file says, and every way in which it can be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_running import SmallShape, llama_keys, llama_tensors, write_llama

from edgellama.errors import EdgellamaError, ModelFileError, UnsupportedModelError
from edgellama.model.config import ModelConfig
from edgellama.model.families import FAMILIES
from edgellama.model.gguf import GgufFile
from edgellama.model.rope_settings import Rope

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = SmallShape(layers=1, vocabulary=12)
Keys = dict[str, Any]
Tensors = dict[str, "NDArray[Any]"]


def config_of(
    folder: Path, keys: Keys, tensors: Tensors, architecture: str = "llama"
) -> ModelConfig:
    path = write_llama(folder / "model.gguf", keys, tensors, architecture)
    return ModelConfig.from_gguf(GgufFile.parse(path.read_bytes(), "model.gguf"))


def test_everything_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, llama_keys(SHAPE), llama_tensors(SHAPE))
    assert config == ModelConfig(
        family=FAMILIES["llama"],
        layers=1,
        width=48,
        heads=6,
        kv_heads=2,
        head_width=16,
        feed_forward=40,
        experts=0,
        experts_used=0,
        vocabulary=12,
        context_max=512,
        epsilon=float(np.float32(1e-5)),
        rope=Rope(base=10000.0, dimensions=16, scale=1.0, factors=(1.0,) * 8),
        window=0,
        tied_output=False,
    )


def test_defaults_are_llama_cpps(tmp_path: Path) -> None:
    shape = SmallShape(layers=1, heads=3, kv_heads=3, head_width=16, vocabulary=12, tied=True)
    keys = llama_keys(shape)
    for key in (
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.freq_base",
        "rope.dimension_count",
        "vocab_size",
    ):
        del keys[f"llama.{key}"]
    config = config_of(tmp_path, keys, llama_tensors(shape))
    assert (config.kv_heads, config.head_width, config.rope.dimensions) == (3, 16, 16)
    assert (config.rope.base, config.vocabulary, config.tied_output) == (10000.0, 12, True)


def test_rope_scaling(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8).astype(np.float32)
    tensors = llama_tensors(SHAPE) | {"rope_freqs.weight": factors}
    keys = llama_keys(SHAPE) | {"llama.rope.scaling.type": "linear"}
    config = config_of(tmp_path, keys | {"llama.rope.scaling.factor": 4.0}, tensors)
    assert config.rope.scale == 4.0
    assert config.rope.factors == tuple(factors.tolist())
    keys = llama_keys(SHAPE) | {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert config_of(tmp_path, keys, tensors).rope.scale == 1.0
    keys = llama_keys(SHAPE) | {"llama.rope.scale_linear": 2.0}
    assert config_of(tmp_path, keys, tensors).rope.scale == 2.0


@pytest.mark.parametrize("architecture", ["gpt2", "gemma", "mamba"])
def test_another_architecture_is_named_with_what_is_supported(
    tmp_path: Path, architecture: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{architecture}.*supported are llama"):
        config_of(tmp_path, {}, {"x": np.zeros(8, np.float32)}, architecture)


@pytest.mark.parametrize("key", [key for key in llama_keys(SHAPE) if key.startswith("llama.")])
def test_missing_keys_are_named_unless_they_have_a_default(tmp_path: Path, key: str) -> None:
    keys = llama_keys(SHAPE)
    del keys[key]
    required = (
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    )
    if key.removeprefix("llama.") in required:
        with pytest.raises(ModelFileError, match=f"model.gguf: key {key} is missing"):
            config_of(tmp_path, keys, llama_tensors(SHAPE))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("block_count", 0, ModelFileError, "block_count is 0, not within 1 to 1024"),
        ("block_count", 2, ModelFileError, "tensor blk.1.attn_norm.weight is missing"),
        ("block_count", 1025, ModelFileError, "block_count is 1025"),
        ("block_count", "two", ModelFileError, "block_count holds a value of type str"),
        ("block_count", True, ModelFileError, "block_count holds a value of type bool"),
        ("block_count", 1.0, ModelFileError, "block_count holds a value of type float"),
        ("embedding_length", 64, ModelFileError, "token_embd.weight has shape"),
        ("embedding_length", 1 << 31, ModelFileError, "embedding_length is 2147483648"),
        ("feed_forward_length", 44, ModelFileError, "ffn_gate.weight has shape"),
        ("attention.head_count", 8, ModelFileError, "attn_q.weight has shape"),
        ("attention.head_count", 5, ModelFileError, "5 heads cannot share 2"),
        ("attention.head_count_kv", 3, ModelFileError, "attn_k.weight has shape"),
        ("attention.head_count_kv", 0, ModelFileError, "head_count_kv is 0"),
        ("attention.key_length", 15, UnsupportedModelError, "keys of 15 and values of 16"),
        ("attention.layer_norm_rms_epsilon", 0.0, ModelFileError, "epsilon is 0.0"),
        ("attention.layer_norm_rms_epsilon", float("nan"), ModelFileError, "epsilon is nan"),
        ("attention.layer_norm_rms_epsilon", "x", ModelFileError, "type str, not one number"),
        ("rope.freq_base", float("inf"), ModelFileError, "freq_base is inf"),
        ("rope.freq_base", 1.0, ModelFileError, "freq_base is 1.0"),
        ("rope.dimension_count", 18, ModelFileError, "cannot turn 18 of 16"),
        ("rope.dimension_count", 7, ModelFileError, "cannot turn 7 of 16"),
        ("rope.scaling.type", "yarn", UnsupportedModelError, "RoPE scaling 'yarn'"),
        ("rope.scaling.type", 3, ModelFileError, "rope.scaling.type holds a value of type int"),
        ("rope.scaling.factor", 0.0, ModelFileError, "factor is 0.0"),
        ("vocab_size", 13, ModelFileError, "12 rows for a vocabulary of 13 tokens"),
        ("context_length", 0, ModelFileError, "context_length is 0"),
        ("expert_count", 8, UnsupportedModelError, "mixture of experts in llama.*qwen3moe"),
        ("expert_count", 1025, ModelFileError, "expert_count is 1025, not within 0 to 1024"),
        ("expert_count", "two", ModelFileError, "expert_count holds a value of type str"),
    ],
)
def test_a_wrong_key_is_named(
    tmp_path: Path, key: str, value: object, error: type[EdgellamaError], message: str
) -> None:
    keys = llama_keys(SHAPE) | {f"llama.{key}": value}
    with pytest.raises(error, match=message) as caught:
        config_of(tmp_path, keys, llama_tensors(SHAPE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(llama_tensors(SHAPE)))
def test_every_tensor_must_be_there_in_its_shape(tmp_path: Path, name: str) -> None:
    tensors = llama_tensors(SHAPE)
    missing = {other: tensor for other, tensor in tensors.items() if other != name}
    if name == "output.weight":
        assert config_of(tmp_path, llama_keys(SHAPE), missing).tied_output
    else:
        with pytest.raises(ModelFileError, match=f"tensor {name} is missing"):
            config_of(tmp_path, llama_keys(SHAPE), missing)
    for wrong in (tensors[name][:-1], tensors[name][None], np.tile(tensors[name], 2)):
        with pytest.raises(ModelFileError, match=r"has shape|rows for a vocabulary"):
            config_of(tmp_path, llama_keys(SHAPE), tensors | {name: wrong})


def test_a_tensor_that_would_be_left_out_is_refused(tmp_path: Path) -> None:
    tensors = llama_tensors(SHAPE) | {"blk.0.attn_q.bias": np.zeros(96, np.float32)}
    with pytest.raises(UnsupportedModelError, match=r"blk.0.attn_q.bias"):
        config_of(tmp_path, llama_keys(SHAPE), tensors)
    tensors = llama_tensors(SHAPE) | {"blk.0.attn_rot_embd.weight": np.zeros(8, np.float32)}
    config_of(tmp_path, llama_keys(SHAPE), tensors)


def test_a_norm_that_is_not_float32_is_refused(tmp_path: Path) -> None:
    tensors: Tensors = dict(llama_tensors(SHAPE))
    tensors["output_norm.weight"] = tensors["output_norm.weight"].astype(np.float16)
    with pytest.raises(UnsupportedModelError, match=r"output_norm.weight has type F16"):
        config_of(tmp_path, llama_keys(SHAPE), tensors)


@pytest.mark.parametrize(
    "factors",
    [
        np.ones(7, np.float32),
        np.ones(8, np.float16),
        np.array([1, 1, 1, 0, 1, 1, 1, 1], np.float32),
        np.array([1, 1, 1, np.nan, 1, 1, 1, 1], np.float32),
        np.array([1, 1, 1, -2, 1, 1, 1, 1], np.float32),
    ],
    ids=["too few", "type", "zero", "nan", "negative"],
)
def test_wrong_rope_factors_are_refused(tmp_path: Path, factors: NDArray[Any]) -> None:
    tensors = llama_tensors(SHAPE) | {"rope_freqs.weight": factors}
    with pytest.raises(ModelFileError, match="rope_freqs"):
        config_of(tmp_path, llama_keys(SHAPE), tensors)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from([key for key in llama_keys(SHAPE) if key != "general.name"]),
        st.one_of(st.integers(0, 2**32 - 1), st.floats(width=32), st.text("ab", max_size=3)),
        max_size=4,
    )
)
def test_any_keys_give_a_config_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, changed: dict[str, Any]
) -> None:
    path = write_llama(
        tmp_path_factory.mktemp("keys") / "model.gguf",
        llama_keys(SHAPE) | changed,
        llama_tensors(SHAPE),
    )
    file = GgufFile.open(path)
    message = f"{path}: "
    try:
        ModelConfig.from_gguf(file)
    except EdgellamaError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
