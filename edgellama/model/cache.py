"""The keys and values of one session on one stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama_kernels import CacheKind, allocate_cache_layer, cache_position_bytes

if TYPE_CHECKING:
    from edgellama_kernels import CacheLayer

    from edgellama.model.config import ModelConfig


@dataclass
class SessionCache:
    """Keys and values for ``length`` positions in each layer of a stage.

    What lies behind ``length`` may be left over from a longer past; it is finite, no query looks
    at it, and it is written over when its position comes.
    """

    layers: tuple[CacheLayer, ...]
    length: int = 0

    @classmethod
    def allocate(
        cls, config: ModelConfig, layers: int, context: int, kind: CacheKind
    ) -> SessionCache:
        """Reserve zeros for ``context`` positions; the system commits pages as they are written."""
        return cls(
            tuple(
                allocate_cache_layer(config.kv_heads, config.head_width, context, kind)
                for _ in range(layers)
            )
        )


def cache_bytes_per_token(config: ModelConfig, kind: CacheKind) -> int:
    """Return the bytes of one layer's keys and values for one position."""
    return cache_position_bytes(config.kv_heads, config.head_width, kind)
