"""Which type each tensor of a quantized file gets.

One type for all matrices, or, within a number of bytes, the types that lose least: each tensor
starts at the narrowest, and then whatever buys the greatest fall of the error for a byte is bought
until nothing more fits. That is the Lagrangian optimum of the knapsack but for the last purchases,
since only steps on each tensor's convex hull are offered.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.model.gguf_layout import TENSOR_KINDS
from edgellama.model.quantization import OUTPUT_KINDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgellama.model.weight_source import SourceTensor

WIDE: Final = "F32"
MATRIX_KINDS: Final = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16", "BF16", "F32")
CHOICE_KINDS: Final = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16", "F32")
"""What a choice is made of; BF16 takes what F16 takes and holds fewer digits."""

RUNNABLE_KINDS: Final = frozenset(kind.name for kind in TENSOR_KINDS.values())
"""What this edgellama can run; a choice is made of nothing else."""

# Where a row is no whole number of blocks: never a narrower type than was asked for.
_FALLBACKS: Final = {"Q4_K": "Q8_0", "Q5_K": "Q8_0", "Q6_K": "Q8_0", "Q4_0": "F16", "Q8_0": "F16"}
_ROUTER: Final = "ffn_gate_inp"


@dataclass(frozen=True)
class Option:
    """A type for a tensor, the bytes it takes and the error it brings."""

    kind_name: str
    bytes: int
    error: float


def is_matrix(tensor: SourceTensor) -> bool:
    """Tell whether a tensor is quantized at all: norms, biases and routers stay wide."""
    return len(tensor.shape) > 1 and _ROUTER not in tensor.name


def kind_for(tensor: SourceTensor, wanted: str) -> str:
    """Return the type a tensor gets where ``wanted`` was asked for."""
    if not is_matrix(tensor):
        return WIDE
    while tensor.columns % OUTPUT_KINDS[wanted].block_size:
        wanted = _FALLBACKS[wanted]
    return wanted


def kinds_offered(tensor: SourceTensor) -> list[str]:
    """Return the types among which to choose for a matrix: those its rows fit into as they are.

    All of them are types that this edgellama can run, and so measure. Where K-quants fit, Q4_0 is
    not offered: it takes what Q4_K takes and errs more. Nothing wider than the source is, as it
    would hold nothing more.
    """
    kinds: list[str] = [
        kind for kind in CHOICE_KINDS if kind in RUNNABLE_KINDS and kind_for(tensor, kind) == kind
    ]
    if "Q4_K" in kinds:
        kinds.remove("Q4_0")
    source = OUTPUT_KINDS.get(tensor.kind_name)
    if source is None:
        return kinds
    most = source.block_bytes / source.block_size
    narrow = [k for k in kinds if OUTPUT_KINDS[k].block_bytes / OUTPUT_KINDS[k].block_size <= most]
    return narrow or kinds[:1]


def tensor_bytes(tensor: SourceTensor, kind_name: str) -> int:
    """Return what a tensor takes in a file as ``kind_name``."""
    return tensor.rows * OUTPUT_KINDS[kind_name].row_bytes(tensor.columns)


def choose(options: Mapping[str, Sequence[Option]], budget_bytes: int) -> dict[str, Option] | None:
    """Return an option for each tensor that together err least within ``budget_bytes``.

    None where even the smallest do not fit. ``options``: by tensor, at least one each.
    """
    hulls = {name: _hull(offered) for name, offered in options.items()}
    chosen = dict.fromkeys(hulls, 0)
    left = budget_bytes - sum(hull[0].bytes for hull in hulls.values())
    if left < 0:
        return None
    steps = [_step(name, hull, 0) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name, index = heapq.heappop(steps)
        hull = hulls[name]
        cost = hull[index].bytes - hull[index - 1].bytes
        if cost > left:
            continue  # what comes after it on this hull costs more still, and buys less
        left -= cost
        chosen[name] = index
        if index + 1 < len(hull):
            heapq.heappush(steps, _step(name, hull, index))
    return {name: hulls[name][index] for name, index in chosen.items()}


def _step(name: str, hull: Sequence[Option], index: int) -> tuple[float, str, int]:
    """Return the next step from ``index``, ordered by what it buys for a byte, the most first."""
    now, then = hull[index], hull[index + 1]
    return (then.error - now.error) / (then.bytes - now.bytes), name, index + 1


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of error over bytes, the smallest first."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda each: (each.bytes, each.error)):
        if hull and option.error >= hull[-1].error:
            continue  # as great or greater, and no better
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(narrow: Option, wide: Option) -> float:
    return (wide.error - narrow.error) / (wide.bytes - narrow.bytes)
