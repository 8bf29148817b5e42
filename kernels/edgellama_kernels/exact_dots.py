"""A matrix's integer dot products in NumPy (rule 1), by float32 BLAS.

All these integers stay below 2^24, so that float32 holds them, and any order of adding them up
gives the same. There are two ways. For few tokens the weights stay as they lie, four columns of
eight rows side by side, and meet the activations in a matrix that is zero where a row would meet
another's place. For many tokens that is eight times too much to multiply, and bringing each row's
columns together costs less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgellama_kernels.kinds import BLOCK_COLUMNS, FORMATS, Factors
from edgellama_kernels.layout import (
    BYTE_VECTORS,
    GROUP_ROWS,
    PLANE_BITS,
    PackedMatrix,
    factor_pairs,
    float32_of_halves,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellama_kernels.interface import Float32, QuantizedBlocks

COLUMNS_TOGETHER = 4  # of a row, as they lie
FEW_TOKENS = 4  # up to here the weights stay as they lie: about even when measured


class Term(NamedTuple):
    """One of rule 1's sums over blocks: integers times weight scales times activation scales.

    integers: float32 [blocks, rows, T]; scales: float32 [blocks, rows].
    """

    integers: Float32
    scales: Float32


class BlockDots:
    """The terms of a matrix and of activations, for some of its groups of rows at a time."""

    def __init__(self, matrix: PackedMatrix, x: QuantizedBlocks) -> None:
        format_ = FORMATS[matrix.kind]
        self._matrix, self._offset = matrix, format_.offset
        # A block's halves are kept apart where they have factors of their own.
        self._halves = 1 if format_.factors in (Factors.NONE, Factors.SCALE_AND_MINIMUM) else 2
        first, whole = (x.sums[..., n].astype(np.float32)[:, None, :] for n in (0, 1))
        self._sums = (whole,) if self._halves == 1 else (first, whole - first)
        self._few = x.quants.shape[1] <= FEW_TOKENS
        self._x = _spread(x.quants) if self._few else _upright(x.quants)

    def terms(self, groups: slice) -> list[Term]:
        """Return the sum over weights and, where the kind has them, the one over minimums."""
        matrix = self._matrix
        dots = self._dots(groups)
        if self._offset:
            for dot, total in zip(dots, self._sums, strict=True):
                dot -= np.float32(self._offset) * total
        of_minimums: list[Float32] = [np.ones((1, 1, 1), np.float32)] * self._halves
        if matrix.factors.size:
            of_scales, of_minimums = self._factors(groups)
            for dot, factor in zip(dots, of_scales, strict=True):
                dot *= factor
        terms = [Term(_added(dots), self._scales(matrix.scales[groups]))]
        if matrix.minimums.size:
            sums = [f * s for f, s in zip(of_minimums, self._sums, strict=True)]
            scales = self._scales(matrix.minimums[groups])
            shape = *scales.shape, sums[0].shape[2]
            terms.append(Term(np.broadcast_to(_added(sums), shape), scales))
        return terms

    def _dots(self, groups: slice) -> list[Float32]:
        """Return the dot products of quants, float32 [blocks, rows, T], of each half."""
        planes = self._matrix.quants[groups]  # [groups, blocks, vectors, 8 rows, 4 bytes]
        count, blocks = planes.shape[:2]
        if self._few:
            weights = _widened(self._matrix, planes.reshape(*planes.shape[:3], -1))
            weights = weights.reshape(count, blocks, -1).transpose(1, 0, 2)
            axis = weights.shape[2]
        else:
            words = np.ascontiguousarray(planes).view(np.uint32)[..., 0].transpose(1, 0, 3, 2)
            bytes_ = np.ascontiguousarray(words).view(np.uint8)
            planes = bytes_.reshape(blocks, count * GROUP_ROWS, -1, COLUMNS_TOGETHER)
            weights = _widened(self._matrix, planes).reshape(blocks, -1, BLOCK_COLUMNS)
            axis = BLOCK_COLUMNS
        step = axis // self._halves
        cuts = [slice(first, first + step) for first in range(0, axis, step)]
        rows, tokens = count * GROUP_ROWS, self._sums[0].shape[2]
        return [
            np.matmul(weights[..., cut], self._x[:, cut]).reshape(blocks, rows, tokens)
            for cut in cuts
        ]

    def _factors(self, groups: slice) -> tuple[list[Float32], list[Float32]]:
        """Return the factors of scales and of minimums of each half, float32 [blocks, rows, 1]."""
        pairs = factor_pairs(self._matrix, groups)
        of_scales, of_minimums = (
            [factors[..., half, None].astype(np.float32) for half in range(self._halves)]
            for factors in pairs
        )
        return of_scales, of_minimums

    def _scales(self, halves: NDArray[np.uint16]) -> Float32:
        """Return fp16 [groups, GGUF blocks, 8] as float32 [blocks, rows]."""
        scales = float32_of_halves(halves.transpose(1, 0, 2)).reshape(halves.shape[1], -1)
        return scales.repeat(self._matrix.kind.block_size // BLOCK_COLUMNS, axis=0)


def _added(parts: list[Float32]) -> Float32:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _widened(matrix: PackedMatrix, planes: NDArray[np.uint8]) -> Float32:
    """Return planes [..., vectors, n] as quants, float32 [..., 8, n], their offset not yet off."""
    bits = FORMATS[matrix.kind].bits
    wide = np.empty((*planes.shape[:-2], BYTE_VECTORS, planes.shape[-1]), np.float32)
    if bits == BYTE_VECTORS:
        wide[:] = planes.view(np.int8)
        return wide
    quants = np.empty(wide.shape, np.uint8)
    first = 0
    for width in PLANE_BITS[bits]:
        plane = planes[..., first : first + width, :]
        mask = np.uint8((1 << width) - 1)
        for n in range(BYTE_VECTORS // width):
            columns = quants[..., width * n : width * (n + 1), :]
            digits = columns if first == 0 else np.empty_like(columns)
            np.right_shift(plane, np.uint8(width * n), out=digits)
            digits &= mask
            if first > 0:
                digits <<= np.uint8(first)
                columns |= digits
        first += width
    wide[:] = quants
    return wide


def _upright(quants: NDArray[np.int8]) -> Float32:
    """Return activations [blocks, T, 32] as float32 [blocks, 32, T]."""
    return np.ascontiguousarray(quants.transpose(0, 2, 1)).astype(np.float32)


def _spread(quants: NDArray[np.int8]) -> Float32:
    """Return activations as float32 [blocks, 256, 8 T]: each row's own, zero in others' places.

    The 256 are 8 vectors of four columns of 8 rows, the 8 T are 8 rows of T tokens.
    """
    blocks, tokens, _ = quants.shape
    upright = _upright(quants).reshape(blocks, BYTE_VECTORS, COLUMNS_TOGETHER, tokens)
    spread = np.zeros(
        (blocks, BYTE_VECTORS, GROUP_ROWS, COLUMNS_TOGETHER, GROUP_ROWS, tokens), np.float32
    )
    for row in range(GROUP_ROWS):
        spread[:, :, row, :, row] = upright
    return spread.reshape(blocks, GROUP_ROWS * BLOCK_COLUMNS, GROUP_ROWS * tokens)
