"""Weights to the blocks of GGUF's types, rows at a time.

F32, F16, BF16, Q8_0 and Q4_0 come out byte for byte as the gguf package writes them; the K-quants
are searched for (see `k_quants`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edgellama.model.k_quants import HALF_MAX, SUPER_BLOCK, quantize_affine, quantize_signed

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OutputKind(NamedTuple):
    """A tensor type that can be written: its number in the file and the shape of its blocks."""

    number: int
    block_size: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row of ``columns`` weights, whole blocks of them."""
        assert columns % self.block_size == 0
        return columns // self.block_size * self.block_bytes


OUTPUT_KINDS: Final[dict[str, OutputKind]] = {
    "F32": OutputKind(0, 1, 4),
    "F16": OutputKind(1, 1, 2),
    "BF16": OutputKind(30, 1, 2),
    "Q8_0": OutputKind(8, 32, 34),
    "Q6_K": OutputKind(14, SUPER_BLOCK, 210),
    "Q5_K": OutputKind(13, SUPER_BLOCK, 176),
    "Q4_K": OutputKind(12, SUPER_BLOCK, 144),
    "Q4_0": OutputKind(2, 32, 18),
}
"""By GGUF's name, the widest first; Q4_K and Q4_0 both take 4.5 bits a weight."""


def quantize_rows(
    kind_name: str, rows: NDArray[np.float32], weights: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Return rows as GGUF stores them: uint8 [n, bytes of a row].

    ``rows``: float32 [n, columns], columns a multiple of the kind's block. ``weights``: float32
    [columns], what a squared error in each column counts; the K-quants heed it. Raises
    ValueError for a number that the kind cannot hold.
    """
    if not np.isfinite(rows).all():
        raise ValueError("holds a number that is not finite")
    match kind_name:
        case "F32":
            return rows.astype("<f4").view(np.uint8)
        case "F16":
            _check_range(rows, kind_name, HALF_MAX)
            return rows.astype("<f2").view(np.uint8)
        case "BF16":
            return _bfloat16(rows)
        case "Q8_0":
            return _q8_0(rows)
        case "Q4_0":
            return _q4_0(rows)
    _check_range(rows, kind_name, HALF_MAX)
    if kind_name == "Q6_K":
        return quantize_signed(rows, weights)
    return quantize_affine(rows, weights, {"Q4_K": 15, "Q5_K": 31}[kind_name])


def _check_range(rows: NDArray[np.float32], kind_name: str, greatest: float) -> None:
    if np.abs(rows).max(initial=0) > greatest:
        raise ValueError(f"holds a number beyond {greatest:g}, which {kind_name} cannot")


def _bfloat16(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round to the nearest, ties to even, in integers."""
    bits = np.ascontiguousarray(rows).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").view(np.uint8)


def _q8_0(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    blocks = rows.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    # Halves go away from zero, as C's roundf has it.
    quants = np.sign(scaled) * (whole + np.floor(2 * (magnitude - whole)))
    return _joined(rows, scale, quants.astype(np.int8).view(np.uint8))


def _q4_0(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    blocks = rows.reshape(-1, 32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = extreme / np.float32(-8)
    quants = np.trunc(blocks * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return _joined(rows, scale, quants[:, :16] | (quants[:, 16:] << 4))


def _inverse(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 / scale, and 0 where that is no number: such a scale is 0 in fp16."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _joined(
    rows: NDArray[np.float32], scale: NDArray[np.float32], quants: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    if np.abs(scale).max(initial=0) > HALF_MAX:
        raise ValueError("holds a number that is too great for a block of 32")
    blocks = np.concatenate([scale.astype("<f2").view(np.uint8), quants], axis=1)
    return blocks.reshape(len(rows), -1)
