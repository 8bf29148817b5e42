"""What a ``config.json`` says of RoPE, as a GGUF's keys and tensors say it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.model.gguf_header import file_unsupported, quoted
from edgellama.model.rope_settings import (
    FACTORS_TENSOR,
    LONG_FACTORS_TENSOR,
    SHORT_FACTORS_TENSOR,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellama.model.families import Family
    from edgellama.model.json_fields import JsonFields

_LONGROPE: Final = ("longrope", "su")  # the latter is its first name


@dataclass(frozen=True)
class StoredRope:
    """``keys``: under the architecture's name. ``tensors``: float32 [dimensions // 2] by name."""

    keys: dict[str, int | float | str]
    tensors: dict[str, NDArray[np.float32]]

    @classmethod
    def read(cls, config: JsonFields, family: Family, head_width: int, context: int) -> StoredRope:
        """Raise UnsupportedModelError for another scaling, ModelFileError for a wrong number."""
        stated = _stated(config, family)
        place = stated if stated.value("rope_theta") is not None else config
        base = place.number("rope_theta", 1e6 if family.name == "gemma3" else 10000.0)
        dimensions = _dimensions(config, stated, family, head_width)
        keys: dict[str, int | float | str] = {
            "rope.freq_base": base,
            "rope.dimension_count": dimensions,
        }
        tensors = {}
        kind = stated.text("rope_type", stated.text("type", "default"))
        if kind == "linear":
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": stated.number("factor")}
        elif kind == "llama3":
            tensors[FACTORS_TENSOR] = _llama_3_factors(stated, dimensions, base)
        elif kind in _LONGROPE and family.name == "phi3":
            keys |= _longrope_keys(config, stated, context)
            tensors[LONG_FACTORS_TENSOR] = _listed(stated, "long_factor", dimensions // 2)
            tensors[SHORT_FACTORS_TENSOR] = _listed(stated, "short_factor", dimensions // 2)
        elif kind != "default":
            raise file_unsupported(
                config.name,
                f"RoPE scaling {quoted(kind)} is not supported in models of type "
                f"{quoted(config.text('model_type'))}; supported are linear, llama3, and longrope "
                "in phi3",
            )
        return cls(keys, tensors)


def _stated(config: JsonFields, family: Family) -> JsonFields:
    """Return what is said of RoPE: newer files say all of it in one place, by kinds of layers."""
    stated = config.child("rope_parameters" if config.value("rope_parameters") else "rope_scaling")
    if family.local_rope_base is None:
        return stated
    local = stated.child("sliding_attention")
    place = local if local.value("rope_theta") is not None else config
    key = "rope_theta" if place is local else "rope_local_base_freq"
    base = place.number(key, family.local_rope_base)
    kind = local.text("rope_type", "default")
    if base != family.local_rope_base or kind != "default":
        raise file_unsupported(
            config.name, f"RoPE {quoted(kind)} of base {base:g} is not supported in windows"
        )
    return stated.child("full_attention") if stated.value("full_attention") else stated


def _dimensions(config: JsonFields, stated: JsonFields, family: Family, head_width: int) -> int:
    key = "partial_rotary_factor"
    place = stated if stated.value(key) is not None else config
    share = place.number(key, 1.0)
    if share != 1 and family.name != "phi3":
        raise file_unsupported(config.name, f"{key!r} of {quoted(str(share))} is not supported")
    dimensions = int(head_width * share)
    if not 2 <= dimensions <= head_width or dimensions % 2:
        raise place.fault(key, f"turns {dimensions} of {head_width} numbers")
    return dimensions


def _llama_3_factors(rope: JsonFields, dimensions: int, base: float) -> NDArray[np.float32]:
    """Return what Llama 3.1 divides each frequency by: float32 [dimensions // 2].

    Source: ``_compute_llama3_parameters`` in transformers' modeling_rope_utils.py.
    """
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


def _longrope_keys(
    config: JsonFields, rope: JsonFields, context: int
) -> dict[str, int | float | str]:
    """Return the keys of two sets of factors.

    Source: ``_compute_longrope_parameters`` in transformers' modeling_rope_utils.py.
    """
    key = "original_max_position_embeddings"
    place = rope if rope.value(key) is not None else config
    before = place.integer(key)
    if not 1 < before <= context:
        raise place.fault(key, f"is {before}, not within 2 to the {context} positions of the model")
    growth = rope.number("factor", context / before)
    usual = math.sqrt(1 + math.log(growth) / math.log(before)) if growth > 1 else 1.0
    return {
        "rope.scaling.original_context_length": before,
        "rope.scaling.attn_factor": rope.number("attention_factor", usual),
    }


def _listed(rope: JsonFields, key: str, count: int) -> NDArray[np.float32]:
    values = rope.value(key)
    numbers = values if isinstance(values, list) else []
    sound = all(isinstance(each, int | float) and 0 < each < 1e6 for each in numbers)
    if len(numbers) != count or not sound:
        raise rope.fault(key, f"is no list of {count} factors")
    return np.array(numbers, np.float32)
