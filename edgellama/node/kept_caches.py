"""KV caches of answers whose epoch is over: a later plan may let this device go on with them.

Keys and values of a position follow from the tokens up to there alone, whoever computes them, so
a cache serves any plan of the same model and context. Used by the compute thread alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgellama_kernels import CacheLayer

    from edgellama.values import Plan, Span


@dataclass
class LayerCache:
    """One layer's keys and values of one answer, for its first ``length`` positions."""

    cache: CacheLayer
    length: int = 0


@dataclass(frozen=True)
class _Kept:
    fits: tuple[str, int, str]  # see ``_shape``
    layers: dict[int, LayerCache]


def _shape(plan: Plan) -> tuple[str, int, str]:
    """Return what two plans must have alike for a cache to serve under both."""
    return plan.model_root, plan.context, plan.kv_kind


class KeptCaches:
    """What is kept of each answer, by the key that names it under every epoch; oldest first."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def answers(self) -> tuple[int, ...]:
        """Return the answers of which something is kept."""
        return tuple(self._kept)

    def put(self, key: int, plan: Plan, layers: Mapping[int, LayerCache]) -> None:
        """Keep an answer's layers, instead of what was kept of it before."""
        self._kept.pop(key, None)
        self._kept[key] = _Kept(_shape(plan), dict(layers))

    def take(self, key: int, plan: Plan, span: Span) -> dict[int, LayerCache]:
        """Return what serves under another plan, and forget the rest."""
        kept = self._kept.pop(key, None)
        if kept is None or kept.fits != _shape(plan):
            return {}
        return {layer: cache for layer, cache in kept.layers.items() if layer in range(*span)}

    def forget(self, key: int) -> None:
        """Free what is kept of an answer."""
        self._kept.pop(key, None)

    def make_room(self, count: int) -> None:
        """Forget the oldest until no more than ``count`` answers are kept."""
        while len(self._kept) > max(count, 0):
            del self._kept[next(iter(self._kept))]
