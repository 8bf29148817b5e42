"""A model's shape from the ``config.json`` of Hugging Face's transformers, as GGUF keys.

Families: llama (and Mistral, which is one), qwen2, qwen3, qwen3moe. What a configuration asks for
and GGUF's runners do not compute is refused by name, not left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.model.gguf_header import file_unsupported, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellama.model.json_fields import JsonFields

_FAMILIES: Final = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}
# Far above any published model.
LAYERS_MAX: Final = 1024
EXPERTS_MAX: Final = 1024
HEAD_WIDTH_MAX: Final = 1024
HEADS_MAX: Final = 1024

Values = dict[str, bool | int | float | str]


@dataclass(frozen=True)
class ModelShape:
    """What the tensors' names and places depend on, and the keys of the GGUF.

    ``rope_factors``: what RoPE's frequencies are divided by, None where all are 1. ``tied``: the
    configuration's word on the output, None where it says nothing. ``feed_forward`` is that of an
    expert where there are ``experts``.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    experts: int
    vocabulary: int
    tied: bool | None
    rope_factors: NDArray[np.float32] | None
    keys: Values

    @classmethod
    def read(cls, config: JsonFields) -> ModelShape:
        """Check a ``config.json``.

        Raises UnsupportedModelError for another family or variant, ModelFileError for a value
        that is missing or out of bounds.
        """
        model_type = config.text("model_type")
        architecture = _FAMILIES.get(model_type)
        if architecture is None:
            raise file_unsupported(
                config.name,
                f"models of type {quoted(model_type)} are not supported; "
                f"supported are {', '.join(_FAMILIES)}",
            )
        _refuse_variants(config)
        heads = _bounded(config, "num_attention_heads", HEADS_MAX)
        width = _bounded(config, "hidden_size", 1 << 17)
        rope = _rope(config)
        shape = cls(
            architecture=architecture,
            layers=_bounded(config, "num_hidden_layers", LAYERS_MAX),
            heads=heads,
            kv_heads=_bounded(config, "num_key_value_heads", HEADS_MAX, default=heads),
            head_width=_bounded(config, "head_dim", HEAD_WIDTH_MAX, default=max(1, width // heads)),
            experts=_experts(config) if architecture == "qwen3moe" else 0,
            vocabulary=_bounded(config, "vocab_size", 1 << 22),
            tied=config.value("tie_word_embeddings") and config.flag("tie_word_embeddings"),
            rope_factors=None,
            keys={},
        )
        factors = _llama_3_factors(rope, shape.head_width, _rope_base(config, rope))
        return replace(shape, rope_factors=factors, keys=_keys(config, shape, rope, width))


def _bounded(config: JsonFields, key: str, most: int, default: int | None = None) -> int:
    value = config.integer(key) if default is None else config.integer(key, default)
    if not 1 <= value <= most:
        raise config.fault(key, f"is {value}, not within 1 to {most}")
    return value


def _refuse_variants(config: JsonFields) -> None:
    """Refuse what would change the result and has no place in the GGUF of these families."""
    expected: dict[str, tuple[object, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False, None) if config.value("model_type") != "qwen2" else (True, None),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1, 1.0),
        "quantization_config": (),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    }
    for key, values in expected.items():
        value = config.value(key)
        if value is not None and value not in values:
            raise file_unsupported(config.name, f"{key!r} of {quoted(str(value))} is not supported")


def _experts(config: JsonFields) -> int:
    # Left out, it is false for qwen3_moe, and a GGUF of this family cannot say so.
    if not config.flag("norm_topk_prob", default=False):
        raise file_unsupported(config.name, "'norm_topk_prob' of false is not supported")
    key = "num_experts" if config.value("num_experts") is not None else "num_local_experts"
    return _bounded(config, key, EXPERTS_MAX)


def _rope(config: JsonFields) -> JsonFields:
    """Return what is said of RoPE: newer files say all of it in one place."""
    return config.child("rope_parameters" if config.value("rope_parameters") else "rope_scaling")


def _rope_base(config: JsonFields, rope: JsonFields) -> float:
    place = rope if rope.value("rope_theta") is not None else config
    return place.number("rope_theta", 10000.0)


def _rope_type(rope: JsonFields) -> str:
    return rope.text("rope_type", rope.text("type", "default"))


def _keys(config: JsonFields, shape: ModelShape, rope: JsonFields, width: int) -> Values:
    name = shape.architecture
    feed_forward = _bounded(config, "intermediate_size", 1 << 20)
    keys: Values = {
        "general.architecture": name,
        f"{name}.block_count": shape.layers,
        f"{name}.context_length": _context(config),
        f"{name}.embedding_length": width,
        f"{name}.feed_forward_length": feed_forward,
        f"{name}.attention.head_count": shape.heads,
        f"{name}.attention.head_count_kv": shape.kv_heads,
        f"{name}.attention.key_length": shape.head_width,
        f"{name}.attention.value_length": shape.head_width,
        f"{name}.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-6),
        f"{name}.rope.freq_base": _rope_base(config, rope),
        f"{name}.rope.dimension_count": shape.head_width,
        f"{name}.vocab_size": shape.vocabulary,
    }
    if shape.experts:
        used = _bounded(config, "num_experts_per_tok", shape.experts)
        keys |= {
            f"{name}.expert_count": shape.experts,
            f"{name}.expert_used_count": used,
            f"{name}.expert_feed_forward_length": _bounded(
                config, "moe_intermediate_size", 1 << 20
            ),
        }
    kind = _rope_type(rope)
    if kind == "linear":
        keys[f"{name}.rope.scaling.type"] = "linear"
        keys[f"{name}.rope.scaling.factor"] = rope.number("factor")
    elif kind not in ("default", "llama3"):
        raise file_unsupported(
            config.name,
            f"RoPE scaling {quoted(kind)} is not supported; supported are linear and llama3",
        )
    return keys


def _context(config: JsonFields) -> int:
    """Return how many positions the model has, or its window: beyond it attention is cut off."""
    positions = _bounded(config, "max_position_embeddings", 1 << 24)
    window = config.value("sliding_window")
    # The qwen family names a window that it does not use.
    if window is None or config.value("use_sliding_window") is False:
        return positions
    return min(positions, _bounded(config, "sliding_window", 1 << 24))


def _llama_3_factors(rope: JsonFields, dimensions: int, base: float) -> NDArray[np.float32] | None:
    """Return what Llama 3.1 divides each frequency by: float32 [dimensions // 2].

    Source: ``_compute_llama3_parameters`` in transformers' modeling_rope_utils.py.
    """
    if _rope_type(rope) != "llama3":
        return None
    factor, low = rope.number("factor"), rope.number("low_freq_factor")
    high, before = rope.number("high_freq_factor"), rope.number("original_max_position_embeddings")
    if not (factor >= 1 and 0 < low < high and before >= 1 and base > 1):
        raise rope.fault("rope_scaling", "holds numbers of which no scaling can be made")
    factors = []
    for pair in range(dimensions // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / dimensions)
        share = (before / wavelength - low) / (high - low)
        share = min(max(share, 0.0), 1.0)  # 0: divided by the factor; 1: unchanged
        factors.append(1 / ((1 - share) / factor + share))
    return np.array(factors, np.float32)
