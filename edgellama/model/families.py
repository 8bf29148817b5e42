"""The families of models: what an architecture's name means beside the keys of its files.

A family is a decoder of attention and a gated feed-forward unit, each added to its input. In what
these differ is said here; every number is read from the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Family:
    """An architecture, by GGUF's name of it.

    ``neighbours``: RoPE turns pairs (2i, 2i + 1) of a head, else (i, i + dimensions / 2).
    ``biases``: queries, keys and values have biases. ``head_norms``: each head of queries and keys
    is normalised before RoPE. ``experts``: the feed-forward unit is a mixture of experts.
    ``fused``: one tensor holds queries, keys and values, another gate and up. ``post_norms``: what
    attention and the feed-forward unit make is normalised before it is added. ``gelu``: the unit's
    gate is GELU, else SiLU. ``scaled_embedding``: embeddings are multiplied by sqrt(width).

    ``window_every``: 0 where every layer's attention sees everything before it; 1 where all
    layers see a window; n where each n-th layer sees everything and the others a window.
    ``local_rope_base``: of the layers with a window, where it is another than the file's.
    """

    name: str
    neighbours: bool = False
    biases: bool = False
    head_norms: bool = False
    experts: bool = False
    fused: bool = False
    post_norms: bool = False
    gelu: bool = False
    scaled_embedding: bool = False
    window_every: int = 0
    local_rope_base: float | None = None


FAMILIES: Final = {
    family.name: family
    for family in (
        Family("llama", neighbours=True),
        Family("qwen2", biases=True),
        Family("qwen3", head_norms=True),
        Family("qwen3moe", head_norms=True, experts=True),
        Family(
            "gemma3",
            head_norms=True,
            post_norms=True,
            gelu=True,
            scaled_embedding=True,
            window_every=6,
            local_rope_base=10000.0,
        ),
        Family("phi3", fused=True, window_every=1),
    )
}
