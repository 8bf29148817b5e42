"""How far RoPE turns each pair of a head, as a file says it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from edgellama_kernels import WeightKind

from edgellama.model.gguf_header import file_fault, file_unsupported, quoted

if TYPE_CHECKING:
    from edgellama.model.config_keys import ConfigKeys
    from edgellama.model.gguf import GgufFile

ROPE_FACTORS_TENSOR: Final = "rope_freqs.weight"


@dataclass(frozen=True)
class Rope:
    """RoPE turns the first ``dimensions`` values of a head.

    Pair ``i`` turns by ``base ** (-2 i / dimensions) / scale / factors[i]`` radians a position.
    """

    base: float
    dimensions: int
    scale: float
    factors: tuple[float, ...]  # [dimensions // 2]

    @classmethod
    def read(cls, gguf: GgufFile, keys: ConfigKeys, dimensions: int) -> Rope:
        """Return what the file says of RoPE.

        The factors' tensor, where present, is the one of which bytes are read. Raises
        ModelFileError for a value out of bounds, UnsupportedModelError for other scalings.
        """
        return cls(
            base=keys.number("rope.freq_base", 1.0, 1e12, default=10000.0),
            dimensions=dimensions,
            scale=_scale(gguf, keys),
            factors=_factors(gguf, dimensions // 2),
        )


def _scale(gguf: GgufFile, keys: ConfigKeys) -> float:
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


def _factors(gguf: GgufFile, pairs: int) -> tuple[float, ...]:
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
