"""The shape of a model, read from a GGUF file and checked against its tensor table.

What passes here is consistent: every tensor that a layer or home will read exists, has the type
and the shape that the numbers say, and no tensor is left over that would change the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama_kernels import WeightKind
from edgellama_kernels.expert_layout import EXPERTS_MAX

from edgellama.model.config_keys import ConfigKeys
from edgellama.model.families import FAMILIES, Family
from edgellama.model.gguf_header import file_fault, file_unsupported, quoted
from edgellama.model.rope_settings import CONTEXT_MAX, ROPE_TENSORS, Rope, usable_context
from edgellama.model.tensor_parts import home_parts, layer_parts, layer_tensor

if TYPE_CHECKING:
    from edgellama.model.gguf import GgufFile

# Far above any published model, and low enough that products of two fit 64-bit integers easily.
LAYERS_MAX = 1024
HEADS_MAX = 1024
HEAD_WIDTH_MAX = 1024
WIDTH_MAX = 1 << 17
FEED_FORWARD_MAX = 1 << 20
VOCABULARY_MAX = 1 << 22

# Tables that old converters wrote into every layer; each node computes its own (rope.py).
_IGNORED_SUFFIX = "attn_rot_embd.weight"

# The one Gemma 3 that scales scores by width / heads; no key says so.
GEMMA_3_27B_LAYERS = 62

# Keys of families' relatives that bound scores or logits by a tanh.
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and constants of one model; all counts are at least 1.

    ``feed_forward`` is the inner width of the gated unit, or of each of a layer's ``experts``,
    of which a token meets ``experts_used``; 0 where there is one unit for all tokens.
    ``window``: the positions that layers with a window see, their own included; 0 is all.
    """

    family: Family
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    experts: int
    experts_used: int
    vocabulary: int
    context_max: int
    epsilon: float
    rope: Rope
    window: int
    tied_output: bool

    @classmethod
    def from_gguf(cls, gguf: GgufFile) -> ModelConfig:
        """Read and check the configuration of a file of a supported family.

        The factors of RoPE, where there are any, are the one tensor whose bytes are read.
        Raises UnsupportedModelError for another architecture or variant, ModelFileError for a
        missing key, a value out of bounds, or a tensor that contradicts the keys.
        """
        family = _family(gguf)
        keys = ConfigKeys(gguf, family.name)
        width = keys.integer("embedding_length", WIDTH_MAX)
        heads = keys.integer("attention.head_count", HEADS_MAX)
        kv_heads = keys.integer("attention.head_count_kv", HEADS_MAX, default=heads)
        head_width = keys.integer(
            "attention.key_length", HEAD_WIDTH_MAX, default=max(1, width // heads)
        )
        rope_dimensions = keys.integer("rope.dimension_count", HEAD_WIDTH_MAX, default=head_width)
        experts, experts_used = _experts(gguf, keys, family)
        _check_heads(gguf, keys, heads, kv_heads, head_width, rope_dimensions)
        config = cls(
            family=family,
            layers=keys.integer("block_count", LAYERS_MAX),
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            feed_forward=keys.integer(
                "expert_feed_forward_length" if experts else "feed_forward_length",
                FEED_FORWARD_MAX,
            ),
            experts=experts,
            experts_used=experts_used,
            vocabulary=_vocabulary(gguf, keys),
            context_max=usable_context(gguf, keys),
            epsilon=keys.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
            rope=Rope.read(gguf, keys, rope_dimensions),
            window=_window(gguf, keys, family),
            tied_output="output.weight" not in gguf.tensors,
        )
        _check_tensors(gguf, config)
        return config

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """Every way in which RoPE turns the heads of some layer."""
        if self.family.local_rope_base is None:
            return (self.rope,)
        return self.rope, self.rope.local(self.family)

    def rope_of(self, layer: int) -> int:
        """Return which of ``ropes`` a layer uses."""
        return len(self.ropes) - 1 if self._is_local(layer) else 0

    def window_of(self, layer: int) -> int:
        """Return how many positions a layer's attention sees; 0 is all."""
        return self.window if self._is_local(layer) else 0

    def _is_local(self, layer: int) -> bool:
        every = self.family.window_every
        return every == 1 or (every > 1 and (layer + 1) % every != 0)

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by."""
        return math.sqrt(self.width) if self.family.scaled_embedding else 1.0

    @property
    def score_scale(self) -> float | None:
        """What attention's scores are multiplied by; None is 1 / sqrt(head_width)."""
        if self.family.name == "gemma3" and self.layers == GEMMA_3_27B_LAYERS:
            return 1 / math.sqrt(self.width / self.heads)
        return None


def _family(gguf: GgufFile) -> Family:
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise file_fault(gguf.path_name, "key general.architecture is missing or not text")
    family = FAMILIES.get(architecture)
    if family is None:
        raise file_unsupported(
            gguf.path_name,
            f"architecture {quoted(architecture)} is not supported; "
            f"supported are {', '.join(FAMILIES)}",
        )
    return family


def _experts(gguf: GgufFile, keys: ConfigKeys, family: Family) -> tuple[int, int]:
    """Return how many experts a layer has, and how many of them a token meets."""
    if family.experts:
        experts = keys.integer("expert_count", EXPERTS_MAX)
        return experts, keys.integer("expert_used_count", experts)
    # Mixtral calls itself llama too; 0 experts are written by some converters.
    if keys.integer("expert_count", EXPERTS_MAX, default=0, minimum=0):
        mixtures = ", ".join(other.name for other in FAMILIES.values() if other.experts)
        raise file_unsupported(
            gguf.path_name,
            f"a mixture of experts in {family.name} is not supported; supported in {mixtures}",
        )
    return 0, 0


def _window(gguf: GgufFile, keys: ConfigKeys, family: Family) -> int:
    """Return how many positions the layers with a window see; 0 is all."""
    for softcap in _SOFTCAPS:
        if keys.number(softcap, -1.0, 1e9, default=0.0):
            raise file_unsupported(gguf.path_name, f"{family.name}.{softcap} is not supported")
    if not family.window_every:
        return 0
    # Phi 3 files that see everything say 0, or nothing.
    required = None if family.window_every > 1 else 0
    least = 1 if family.window_every > 1 else 0
    return keys.integer("attention.sliding_window", CONTEXT_MAX, required, least)


def _check_heads(
    gguf: GgufFile, keys: ConfigKeys, heads: int, kv_heads: int, head_width: int, dimensions: int
) -> None:
    value_width = keys.integer("attention.value_length", HEAD_WIDTH_MAX, default=head_width)
    if value_width != head_width:
        raise file_unsupported(
            gguf.path_name,
            f"heads with keys of {head_width} and values of {value_width} "
            "numbers are not supported; supported is one width for both",
        )
    if heads % kv_heads:
        raise file_fault(
            gguf.path_name, f"{heads} heads cannot share {kv_heads} key-value heads evenly"
        )
    if head_width % 2 or dimensions % 2 or dimensions > head_width:
        raise file_fault(
            gguf.path_name,
            f"RoPE cannot turn {dimensions} of {head_width} numbers of a head in pairs",
        )


def _vocabulary(gguf: GgufFile, keys: ConfigKeys) -> int:
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None:
        raise file_fault(gguf.path_name, "tensor token_embd.weight is missing")
    stated = keys.integer("vocab_size", VOCABULARY_MAX, default=embedding.rows)
    if stated != embedding.rows:
        raise file_fault(
            gguf.path_name,
            f"the embedding has {embedding.rows} rows for a vocabulary of {stated} tokens",
        )
    return stated


def _check_tensors(gguf: GgufFile, config: ModelConfig) -> None:
    expected = {part.name: part.shape for part in home_parts(config)}
    for layer in range(config.layers):
        for part in layer_parts(config):
            expected[layer_tensor(layer, part.name)] = part.shape
    for tensor_name, shape in expected.items():
        _check_tensor(gguf, tensor_name, shape)
    for tensor_name in gguf.tensors:
        known = tensor_name in expected or tensor_name in ROPE_TENSORS
        if not known and not tensor_name.endswith(_IGNORED_SUFFIX):
            raise file_unsupported(
                gguf.path_name,
                f"tensor {quoted(tensor_name)} belongs to a variant of "
                f"{config.family.name} that is not supported",
            )


def _check_tensor(gguf: GgufFile, name: str, shape: tuple[int, ...]) -> None:
    tensor = gguf.tensors.get(name)
    if tensor is None:
        raise file_fault(gguf.path_name, f"tensor {name} is missing")
    if tensor.shape != shape:
        raise file_fault(
            gguf.path_name,
            f"tensor {name} has shape {list(tensor.shape)}, "
            f"but the configuration says {list(shape)}",
        )
    supported = [kind.value for kind in WeightKind] if len(shape) > 1 else [WeightKind.F32.value]
    if tensor.kind_name not in supported:
        raise file_unsupported(
            gguf.path_name,
            f"tensor {name} has type {tensor.kind_name}; "
            f"supported {'are' if len(supported) > 1 else 'is'} {', '.join(supported)}",
        )
