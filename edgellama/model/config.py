"""The shape of a llama model, read from a GGUF file and checked against its tensor table.

What passes here is consistent: every tensor that a layer or home will read exists, has the type
and the shape that the numbers say, and no tensor is left over that would change the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from edgellama_kernels import WeightKind

from edgellama.model.gguf_header import file_fault, file_unsupported, quoted

if TYPE_CHECKING:
    from edgellama.errors import ModelFileError
    from edgellama.model.gguf import GgufFile

ARCHITECTURE = "llama"

# Far above any published llama, and low enough that products of two fit 64-bit integers easily.
LAYERS_MAX = 1024
HEADS_MAX = 1024
HEAD_WIDTH_MAX = 1024
WIDTH_MAX = 1 << 17
FEED_FORWARD_MAX = 1 << 20
VOCABULARY_MAX = 1 << 22
CONTEXT_MAX = 1 << 24

ROPE_FACTORS_TENSOR = "rope_freqs.weight"
# Tables that old converters wrote into every layer; each node computes its own (rope.py).
_IGNORED_SUFFIX = "attn_rot_embd.weight"


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and constants of one model; all counts are at least 1.

    ``feed_forward`` is the inner width of the SiLU-gated unit. RoPE turns the first
    ``rope_dimensions`` of each head's ``head_width`` values; pair ``i`` turns by
    ``rope_base ** (-2 i / rope_dimensions) / rope_scale / rope_factors[i]`` radians a position.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    context_max: int
    epsilon: float
    rope_base: float
    rope_dimensions: int
    rope_scale: float
    rope_factors: tuple[float, ...]  # [rope_dimensions // 2]
    tied_output: bool

    @classmethod
    def from_gguf(cls, gguf: GgufFile) -> ModelConfig:
        """Read and check the configuration of a file of architecture ``llama``.

        ``rope_freqs.weight``, where present, is the one tensor whose bytes are read.
        Raises UnsupportedModelError for another architecture or variant, ModelFileError for a
        missing key, a value out of bounds, or a tensor that contradicts the keys.
        """
        keys = _Keys(gguf)
        _check_architecture(gguf)
        width = keys.integer("embedding_length", WIDTH_MAX)
        heads = keys.integer("attention.head_count", HEADS_MAX)
        kv_heads = keys.integer("attention.head_count_kv", HEADS_MAX, default=heads)
        head_width = keys.integer(
            "attention.key_length", HEAD_WIDTH_MAX, default=max(1, width // heads)
        )
        rope_dimensions = keys.integer("rope.dimension_count", HEAD_WIDTH_MAX, default=head_width)
        _check_heads(gguf, keys, heads, kv_heads, head_width, rope_dimensions)
        config = cls(
            layers=keys.integer("block_count", LAYERS_MAX),
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_width=head_width,
            feed_forward=keys.integer("feed_forward_length", FEED_FORWARD_MAX),
            vocabulary=_vocabulary(gguf, keys),
            context_max=keys.integer("context_length", CONTEXT_MAX),
            epsilon=keys.number("attention.layer_norm_rms_epsilon", 0.0, 1.0),
            rope_base=keys.number("rope.freq_base", 1.0, 1e12, default=10000.0),
            rope_dimensions=rope_dimensions,
            rope_scale=_rope_scale(gguf, keys),
            rope_factors=_rope_factors(gguf, rope_dimensions // 2),
            tied_output="output.weight" not in gguf.tensors,
        )
        _check_tensors(gguf, config)
        return config

    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the GGUF shape (columns first) of each tensor of a layer, by short name."""
        attention_width = self.heads * self.head_width
        kv_width = self.kv_heads * self.head_width
        return {
            "attn_norm": (self.width,),
            "attn_q": (self.width, attention_width),
            "attn_k": (self.width, kv_width),
            "attn_v": (self.width, kv_width),
            "attn_output": (attention_width, self.width),
            "ffn_norm": (self.width,),
            "ffn_gate": (self.width, self.feed_forward),
            "ffn_up": (self.width, self.feed_forward),
            "ffn_down": (self.feed_forward, self.width),
        }

    def home_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the GGUF shape (columns first) of each tensor of home, by short name."""
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd": (self.width, self.vocabulary),
            "output_norm": (self.width,),
        }
        if not self.tied_output:
            shapes["output"] = (self.width, self.vocabulary)
        return shapes


def layer_tensor(layer: int, short_name: str) -> str:
    """Return the GGUF name of a layer's tensor, such as ``blk.3.attn_q.weight``."""
    return f"blk.{layer}.{short_name}.weight"


def home_tensor(short_name: str) -> str:
    """Return the GGUF name of a tensor outside the layers, such as ``token_embd.weight``."""
    return f"{short_name}.weight"


class _Keys:
    """Metadata under ``llama.`` with every value checked as it is read."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf

    def integer(self, key: str, maximum: int, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._fault(key, f"holds {_shown(value)}, not one whole number")
        if not 1 <= value <= maximum:
            raise self._fault(key, f"is {value}, not within 1 to {maximum}")
        return value

    def number(
        self, key: str, minimum: float, maximum: float, default: float | None = None
    ) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._fault(key, f"holds {_shown(value)}, not one number")
        if not minimum < float(value) <= maximum:  # not a number fails every comparison
            raise self._fault(key, f"is {value}, not above {minimum:g} and up to {maximum:g}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._fault(key, f"holds {_shown(value)}, not text")
        return value

    def _value(self, key: str, default: float | str | None) -> object:
        value = self._gguf.metadata.get(f"{ARCHITECTURE}.{key}", default)
        if value is None:
            raise self._fault(key, "is missing")
        return value

    def _fault(self, key: str, fault: str) -> ModelFileError:
        return file_fault(self._gguf.path_name, f"key {ARCHITECTURE}.{key} {fault}")


def _shown(value: object) -> str:
    """Describe a metadata value without repeating what may be long or unprintable."""
    return f"a value of type {type(value).__name__}"


def _check_architecture(gguf: GgufFile) -> None:
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise file_fault(gguf.path_name, "key general.architecture is missing or not text")
    if architecture != ARCHITECTURE:
        raise file_unsupported(
            gguf.path_name,
            f"architecture {quoted(architecture)} is not supported; supported is {ARCHITECTURE!r}",
        )
    # Mixtral calls itself llama too; 0 experts are written by some converters.
    if gguf.metadata.get(f"{ARCHITECTURE}.expert_count", 0) != 0:
        raise file_unsupported(gguf.path_name, "mixtures of experts are not supported")


def _check_heads(
    gguf: GgufFile, keys: _Keys, heads: int, kv_heads: int, head_width: int, rope_dimensions: int
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
    if head_width % 2 or rope_dimensions % 2 or rope_dimensions > head_width:
        raise file_fault(
            gguf.path_name,
            f"RoPE cannot turn {rope_dimensions} of {head_width} numbers of a head in pairs",
        )


def _vocabulary(gguf: GgufFile, keys: _Keys) -> int:
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


def _rope_scale(gguf: GgufFile, keys: _Keys) -> float:
    # A file that names a factor and no type means linear scaling; scale_linear is its older name.
    kind = keys.text("rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise file_unsupported(
            gguf.path_name,
            f"RoPE scaling {quoted(kind)} is not supported; "
            "supported are 'none', 'linear' and factors in rope_freqs.weight",
        )
    older = keys.number("rope.scale_linear", 0.0, 1e6, default=1.0)
    return keys.number("rope.scaling.factor", 0.0, 1e6, default=older)


def _rope_factors(gguf: GgufFile, pairs: int) -> tuple[float, ...]:
    tensor = gguf.tensors.get(ROPE_FACTORS_TENSOR)
    if tensor is None:
        return (1.0,) * pairs
    if tensor.kind_name != WeightKind.F32.value or tensor.shape != (pairs,):
        raise file_fault(
            gguf.path_name, f"tensor {ROPE_FACTORS_TENSOR} must hold {pairs} numbers of type F32"
        )
    values = np.frombuffer(gguf.tensor_bytes(ROPE_FACTORS_TENSOR), dtype="<f4", count=pairs)
    factors = tuple(float(value) for value in values)
    if not all(math.isfinite(factor) and 1e-6 < factor < 1e6 for factor in factors):
        raise file_fault(
            gguf.path_name, f"tensor {ROPE_FACTORS_TENSOR} holds a factor out of bounds"
        )
    return factors


def _check_tensors(gguf: GgufFile, config: ModelConfig) -> None:
    expected = {home_tensor(name): shape for name, shape in config.home_shapes().items()}
    for layer in range(config.layers):
        for name, shape in config.layer_shapes().items():
            expected[layer_tensor(layer, name)] = shape
    for tensor_name, shape in expected.items():
        _check_tensor(gguf, tensor_name, shape)
    for tensor_name in gguf.tensors:
        known = tensor_name in expected or tensor_name == ROPE_FACTORS_TENSOR
        if not known and not tensor_name.endswith(_IGNORED_SUFFIX):
            raise file_unsupported(
                gguf.path_name,
                f"tensor {quoted(tensor_name)} belongs to a variant of "
                f"{ARCHITECTURE} that is not supported",
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
