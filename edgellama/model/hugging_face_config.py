"""A model's shape from the ``config.json`` of Hugging Face's transformers, as GGUF keys.

What a configuration asks for and GGUF's runners do not compute is refused by name, not left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.model.config import GEMMA_3_27B_LAYERS
from edgellama.model.families import FAMILIES, Family
from edgellama.model.gguf_header import file_unsupported, quoted
from edgellama.model.hugging_face_rope import StoredRope

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgellama.model.json_fields import JsonFields

_FAMILIES: Final = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
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

    ``rope_factors``: tensors of what RoPE's frequencies are divided by. ``tied``: the
    configuration's word on the output, None where it says nothing.
    """

    family: Family
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    experts: int
    vocabulary: int
    tied: bool | None
    rope_factors: dict[str, NDArray[np.float32]]
    keys: Values

    @classmethod
    def read(cls, config: JsonFields) -> ModelShape:
        """Check a ``config.json``.

        Raises UnsupportedModelError for another family or variant, ModelFileError for a value
        that is missing or out of bounds.
        """
        model_type = config.text("model_type")
        if model_type not in _FAMILIES:
            raise file_unsupported(
                config.name,
                f"models of type {quoted(model_type)} are not supported; "
                f"supported are {', '.join(_FAMILIES)}",
            )
        family = FAMILIES[_FAMILIES[model_type]]
        _refuse_variants(config, family)
        heads = _bounded(config, "num_attention_heads", HEADS_MAX)
        width = _bounded(config, "hidden_size", 1 << 17)
        head_width = _bounded(config, "head_dim", HEAD_WIDTH_MAX, default=max(1, width // heads))
        context = _context(config, family)
        rope = StoredRope.read(config, family, head_width, context)
        shape = cls(
            family=family,
            layers=_bounded(config, "num_hidden_layers", LAYERS_MAX),
            heads=heads,
            kv_heads=_bounded(config, "num_key_value_heads", HEADS_MAX, default=heads),
            head_width=head_width,
            experts=_experts(config) if family.experts else 0,
            vocabulary=_bounded(config, "vocab_size", 1 << 22),
            tied=config.value("tie_word_embeddings") and config.flag("tie_word_embeddings"),
            rope_factors=rope.tensors,
            keys={},
        )
        shape.keys["general.architecture"] = family.name
        for key, value in (_keys(config, shape, width, context) | rope.keys).items():
            shape.keys[f"{family.name}.{key}"] = value
        if family.name == "gemma3":
            _check_gemma_3(config, shape, width)
        return shape


def _bounded(config: JsonFields, key: str, most: int, default: int | None = None) -> int:
    value = config.integer(key) if default is None else config.integer(key, default)
    if not 1 <= value <= most:
        raise config.fault(key, f"is {value}, not within 1 to {most}")
    return value


def _refuse_variants(config: JsonFields, family: Family) -> None:
    """Refuse what would change the result and has no place in the GGUF of these families."""
    activations = ("gelu_pytorch_tanh",) if family.gelu else ("silu",)
    expected: dict[str, tuple[object, ...]] = {
        "hidden_act": activations,
        "hidden_activation": activations,
        "attention_bias": (True,) if family.biases else (False,),
        "mlp_bias": (False,),
        "quantization_config": (),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
        "attn_logit_softcapping": (),
        "final_logit_softcapping": (),
        "use_bidirectional_attention": (False,),
    }
    for key, values in expected.items():
        value = config.value(key)
        if value is not None and value not in values:
            raise file_unsupported(config.name, f"{key!r} of {quoted(str(value))} is not supported")


def _check_gemma_3(config: JsonFields, shape: ModelShape, width: int) -> None:
    """Refuse a pattern of windows or a scale of scores that no key of the GGUF can state."""
    every = shape.family.window_every
    pattern = [
        "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
        for layer in range(shape.layers)
    ]
    stated = config.value("layer_types")
    if config.integer("sliding_window_pattern", every) != every or stated not in (None, pattern):
        raise file_unsupported(config.name, f"windows in other than {every - 1} of {every} layers")
    scaled = shape.layers == GEMMA_3_27B_LAYERS
    expected = width / shape.heads if scaled else shape.head_width
    if config.number("query_pre_attn_scalar", 256.0) != expected:
        raise file_unsupported(
            config.name, f"a 'query_pre_attn_scalar' other than {expected:g} is not supported"
        )


def _experts(config: JsonFields) -> int:
    # Left out, it is false for qwen3_moe, and a GGUF of this family cannot say so.
    if not config.flag("norm_topk_prob", default=False):
        raise file_unsupported(config.name, "'norm_topk_prob' of false is not supported")
    key = "num_experts" if config.value("num_experts") is not None else "num_local_experts"
    return _bounded(config, key, EXPERTS_MAX)


def _keys(config: JsonFields, shape: ModelShape, width: int, context: int) -> Values:
    """Return the keys under the architecture's name, those of RoPE apart."""
    keys: Values = {
        "block_count": shape.layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": _bounded(config, "intermediate_size", 1 << 20),
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-6),
        "vocab_size": shape.vocabulary,
    }
    if shape.experts:
        keys |= {
            "expert_count": shape.experts,
            "expert_used_count": _bounded(config, "num_experts_per_tok", shape.experts),
            "expert_feed_forward_length": _bounded(config, "moe_intermediate_size", 1 << 20),
        }
    family = shape.family
    if family.window_every > 1 or (family.window_every and config.value("sliding_window")):
        keys["attention.sliding_window"] = _bounded(config, "sliding_window", 1 << 24)
    return keys


def _context(config: JsonFields, family: Family) -> int:
    """Return how many positions the model has, or its window where none can be computed."""
    positions = _bounded(config, "max_position_embeddings", 1 << 24)
    # The qwen family names a window that it does not use.
    unused = config.value("use_sliding_window") is False
    if family.window_every or unused or config.value("sliding_window") is None:
        return positions
    return min(positions, _bounded(config, "sliding_window", 1 << 24))
