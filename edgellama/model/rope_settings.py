"""How far RoPE turns each pair of a head, as a file says it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from edgellama_kernels import WeightKind

from edgellama.model.gguf_header import file_fault, file_unsupported, quoted

if TYPE_CHECKING:
    from edgellama.model.config_keys import ConfigKeys
    from edgellama.model.families import Family
    from edgellama.model.gguf import GgufFile

FACTORS_TENSOR: Final = "rope_freqs.weight"
# Phi 3's two sets, for as many positions as it was first trained on and for more.
SHORT_FACTORS_TENSOR: Final = "rope_factors_short.weight"
LONG_FACTORS_TENSOR: Final = "rope_factors_long.weight"
ROPE_TENSORS: Final = (FACTORS_TENSOR, SHORT_FACTORS_TENSOR, LONG_FACTORS_TENSOR)

CONTEXT_MAX: Final = 1 << 24


@dataclass(frozen=True)
class Rope:
    """RoPE turns the first ``dimensions`` values of a head.

    Pair ``i`` turns by ``base ** (-2 i / dimensions) / scale / factors[i]`` radians a position;
    cosine and sine are multiplied by ``magnitude``.
    """

    base: float
    dimensions: int
    scale: float
    factors: tuple[float, ...]  # [dimensions // 2]
    magnitude: float = 1.0

    @classmethod
    def read(cls, gguf: GgufFile, keys: ConfigKeys, dimensions: int) -> Rope:
        """Return what the file says of RoPE.

        The factors' tensor, where present, is the one of which bytes are read. Raises
        ModelFileError for a value out of bounds, UnsupportedModelError for other scalings.
        """
        short = SHORT_FACTORS_TENSOR in gguf.tensors
        return cls(
            base=keys.number("rope.freq_base", 1.0, 1e12, default=10000.0),
            dimensions=dimensions,
            scale=1.0 if short else _scale(gguf, keys),
            factors=_factors(
                gguf, SHORT_FACTORS_TENSOR if short else FACTORS_TENSOR, dimensions // 2
            ),
            magnitude=keys.number("rope.scaling.attn_factor", 0.0, 1e3, default=1.0),
        )

    def local(self, family: Family) -> Rope:
        """Return that of the layers with a window: a base of their own, and no scaling."""
        assert family.local_rope_base is not None
        factors = (1.0,) * len(self.factors)
        return replace(self, base=family.local_rope_base, scale=1.0, factors=factors)


def usable_context(gguf: GgufFile, keys: ConfigKeys) -> int:
    """Return how many positions a session may have.

    Of two sets of factors the short one is used, which is right for the positions that the model
    was first trained on: one that changed with a text's length would turn what is in a cache.
    """
    stated = keys.integer("context_length", CONTEXT_MAX)
    if SHORT_FACTORS_TENSOR not in gguf.tensors:
        return stated
    return min(stated, keys.integer("rope.scaling.original_context_length", CONTEXT_MAX))


def _scale(gguf: GgufFile, keys: ConfigKeys) -> float:
    # A file that names a factor and no type means linear scaling; scale_linear is its older name.
    kind = keys.text("rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise file_unsupported(
            gguf.path_name,
            f"RoPE scaling {quoted(kind)} is not supported; supported are 'none', 'linear' "
            f"and factors in {FACTORS_TENSOR} or {SHORT_FACTORS_TENSOR}",
        )
    older = keys.number("rope.scale_linear", 0.0, 1e6, default=1.0)
    return keys.number("rope.scaling.factor", 0.0, 1e6, default=older)


def _factors(gguf: GgufFile, name: str, pairs: int) -> tuple[float, ...]:
    tensor = gguf.tensors.get(name)
    if tensor is None:
        return (1.0,) * pairs
    if tensor.kind_name != WeightKind.F32.value or tensor.shape != (pairs,):
        raise file_fault(gguf.path_name, f"tensor {name} must hold {pairs} numbers of type F32")
    values = np.frombuffer(gguf.tensor_bytes(name), dtype="<f4", count=pairs)
    factors = tuple(float(value) for value in values)
    if not all(math.isfinite(factor) and 1e-6 < factor < 1e6 for factor in factors):
        raise file_fault(gguf.path_name, f"tensor {name} holds a factor out of bounds")
    return factors
