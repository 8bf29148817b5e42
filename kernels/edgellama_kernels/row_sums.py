"""What matmuls do with a group's sums: keep those of many tokens at hand, add residuals, store."""

from __future__ import annotations

from typing import Any

from edgellama_kernels.jit import inlined
from edgellama_kernels.lanes import load_lanes, store_lanes
from edgellama_kernels.vec import load_f32x8, store_f32x8, zeros_f32x8


@inlined
def finish(y: int, residual: int, index: int, count: int, lanes: Any) -> None:
    """Store ``count`` rows' sums; a residual is one more addition afterwards."""
    if residual != 0:
        lanes = lanes + load_lanes(residual, index, count)
    store_lanes(y, index, count, lanes)


@inlined
def clear(scratch: int, tokens: int) -> None:
    """Set a tile's sums to +0."""
    for token in range(tokens):
        store_f32x8(scratch, token * 8, zeros_f32x8())


@inlined
def finish_tile(
    scratch: int, y: int, residual: int, group: int, rows: int, start: int, stop: int
) -> None:
    """Store a tile's sums of one group of rows for the tokens ``start`` up to ``stop``."""
    for token in range(start, stop):
        total = load_f32x8(scratch, (token - start) * 8)
        finish(y, residual, token * rows + group * 8, rows - group * 8, total)
