"""The shape of a model, read from a GGUF file and checked against its tensor table.

What passes here is consistent: every tensor that a layer or home will read exists, has the type
and the shape that the numbers say, and no tensor is left over that would change the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama_kernels import WeightKind
from edgellama_kernels.expert_layout import EXPERTS_MAX

from edgellama.model.config_keys import ConfigKeys
from edgellama.model.families import FAMILIES, Family
from edgellama.model.gguf_header import file_fault, file_unsupported, quoted
from edgellama.model.rope_settings import ROPE_FACTORS_TENSOR, Rope
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
CONTEXT_MAX = 1 << 24

# Tables that old converters wrote into every layer; each node computes its own (rope.py).
_IGNORED_SUFFIX = "attn_rot_embd.weight"


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and constants of one model; all counts are at least 1.

    ``feed_forward`` is the inner width of the gated unit, or of each of a layer's ``experts``,
    of which a token meets ``experts_used``; 0 where there is one unit for all tokens.
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
            context_max=keys.integer("context_length", CONTEXT_MAX),
            epsilon=keys.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
            rope=Rope.read(gguf, keys, rope_dimensions),
            tied_output="output.weight" not in gguf.tensors,
        )
        _check_tensors(gguf, config)
        return config

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """Every way in which RoPE turns the heads of some layer."""
        return (self.rope,)

    def rope_of(self, layer: int) -> int:
        """Return which of ``ropes`` a layer uses."""
        return 0


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
        known = tensor_name in expected or tensor_name == ROPE_FACTORS_TENSOR
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
