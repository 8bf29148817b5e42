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
    """

    name: str
    neighbours: bool = False
    biases: bool = False
    head_norms: bool = False
    experts: bool = False


FAMILIES: Final = {
    family.name: family
    for family in (
        Family("llama", neighbours=True),
        Family("qwen2", biases=True),
        Family("qwen3", head_norms=True),
        Family("qwen3moe", head_norms=True, experts=True),
    )
}
