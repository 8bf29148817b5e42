"""Weights to K-quants: super-blocks of 256 weights in Q4_K, Q5_K and Q6_K.

Q4_K and Q5_K hold eight sub-blocks of 32 weights as ``d * scale * q - dmin * minimum``, with d and
dmin in fp16, scale and minimum in 6 bits and q in 4 or 5 bits. Q6_K holds sixteen sub-blocks of 16
as ``d * scale * q``, the scale in 8 bits and q in 6, both signed. How the bits lie is
``block_q4_K`` and its like in llama.cpp's ggml-common.h.

The search is this project's own. Each sub-block tries a few ranges, from clipping its extremes to
leaving them room; rounding fixes the integers of each and least squares the scale and the minimum.
The super-block rounds them, then refits d and dmin, scales and integers in turn. Of all that was
tried, and of the plain range from least to greatest too, the super-block keeps what errs least, so
it never errs more than the plain range. Errors are squares, weighted where the columns have
weights.

Arrays hold a block's weights in the first axis and the blocks in the last: NumPy then adds whole
rows instead of many short ones, about five times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

SUPER_BLOCK: Final = 256
HALF_MAX: Final = 65504.0  # the greatest fp16
_NOTHING: Final = 2.0**-26  # less than half the least fp16, of which all values are multiples

_AFFINE_SIZE: Final = 32  # weights of a sub-block of Q4_K and Q5_K
_AFFINE_SCALE_MAX: Final = 63
_SIGNED_SIZE: Final = 16  # weights of a sub-block of Q6_K
_SIGNED_SCALE_MAX: Final = 127
_SIGNED_MAX: Final = 31
# How many levels more than there are the sub-block's range is cut into: the more, the more of its
# extremes are clipped and the finer is the rest. More candidates than these gain under 0.3 %.
_STRETCHES: Final = tuple(np.linspace(-1.0, 3.0, 9).astype(np.float32))
_REFITS: Final = 4  # d and scales in turn; a further pair gains under 0.1 %
_SINGULAR: Final = np.float32(1e-6)  # least squares of integers that are all the same


class _Affine(NamedTuple):
    """Values ``scale * q - minimum``, each [..., blocks]."""

    scale: Floats
    minimum: Floats


@dataclass
class _Best:
    """What errs least so far, for each super-block: its error, and the fields that give it."""

    error: Floats  # [blocks]
    fields: dict[str, NDArray[np.generic]]

    def offer(self, error: Floats, fields: dict[str, NDArray[np.generic]]) -> None:
        better = error < self.error
        self.error = np.where(better, error, self.error)
        for name, values in fields.items():
            self.fields[name] = np.where(better, values, self.fields[name])


def quantize_affine(rows: Floats, weights: Floats | None, levels: int) -> Bytes:
    """Return Q4_K (``levels`` 15) or Q5_K (31) of rows: uint8 [n, bytes of a row].

    ``rows``: float32 [n, columns], finite and within fp16's range; columns a multiple of 256.
    ``weights``: float32 [columns], what a squared error in the column counts; None for 1.
    """
    x, w = _blocks(rows, weights, _AFFINE_SIZE)  # [32, 8, blocks]
    low = np.minimum(x.min(axis=0), 0)
    span = x.max(axis=0).clip(0) - low
    plain = _Affine(span / np.float32(levels), -low)
    best = _round_affine(None, x, w, plain, levels, refits=0)
    searched = _search_affine(x, w, low, span, levels)
    best = _round_affine(best, x, w, searched, levels, refits=_REFITS)
    packed = pack_affine(best.fields, levels)
    return packed.reshape(len(rows), -1)


def quantize_signed(rows: Floats, weights: Floats | None) -> Bytes:
    """Return Q6_K of rows, as ``quantize_affine`` does."""
    x, w = _blocks(rows, weights, _SIGNED_SIZE)  # [16, 16, blocks]
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    plain = extreme / np.float32(-_SIGNED_MAX - 1)
    best = _round_signed(None, x, w, plain, refits=0)
    best = _round_signed(best, x, w, _search_signed(x, w, extreme), refits=_REFITS)
    return pack_signed(best.fields).reshape(len(rows), -1)


def _blocks(rows: Floats, weights: Floats | None, size: int) -> tuple[Floats, Floats]:
    """Return weights and what their errors count, both float32 [size, 256 // size, blocks]."""
    shape = (-1, SUPER_BLOCK // size, size)
    x = np.where(np.abs(rows) < _NOTHING, np.float32(0), rows)
    x = np.ascontiguousarray(x.reshape(shape).transpose(2, 1, 0))
    if weights is None:
        return x, np.ones((1, 1, 1), np.float32)
    spread = np.broadcast_to(weights, rows.shape).reshape(shape)
    return x, np.ascontiguousarray(spread.transpose(2, 1, 0))


def _rounded(values: Floats, least: int, most: int) -> Floats:
    return np.rint(values).clip(least, most)


def _divided(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient, 0 where the denominator is 0."""
    sound = denominator != 0
    quotient: Floats = np.where(sound, numerator / np.where(sound, denominator, 1), 0)
    return quotient


def _half(values: Floats) -> Floats:
    """Return float32 rounded to fp16, kept finite."""
    return values.clip(-HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)


def _search_affine(x: Floats, w: Floats, low: Floats, span: Floats, levels: int) -> _Affine:
    """Return the best scale and minimum of each sub-block, not rounded yet: [8, blocks]."""
    best = _Best(np.full(span.shape, np.inf, np.float32), {"scale": span, "minimum": span})
    for stretch in _STRETCHES:
        q = _rounded((x - low) * _divided(np.float32(levels) + stretch, span), 0, levels)
        fit = _fit_affine(x, w, q)
        error = (w * np.square(fit.scale * q - fit.minimum - x)).sum(axis=0)
        best.offer(error, {"scale": fit.scale, "minimum": fit.minimum})
    return _Affine(best.fields["scale"], best.fields["minimum"])  # type: ignore[arg-type]


def _fit_affine(x: Floats, w: Floats, q: Floats) -> _Affine:
    """Return scale and minimum, not negative, by least squares over the first axis."""
    ones = np.ones_like(x) * w
    wq = w * q
    count, sum_x, sum_q = ones.sum(axis=0), (w * x).sum(axis=0), wq.sum(axis=0)
    sum_qq, sum_qx = (wq * q).sum(axis=0), (wq * x).sum(axis=0)
    determinant = count * sum_qq - sum_q * sum_q
    determinant[determinant < _SINGULAR * count * sum_qq] = 0
    scale = _divided(count * sum_qx - sum_x * sum_q, determinant)
    minimum = _divided(sum_q * sum_qx - sum_qq * sum_x, determinant)
    # A minimum below 0 cannot be stored: then the line goes through 0.
    scale = np.where(minimum < 0, _divided(sum_qx, sum_qq), scale)
    return _Affine(scale.clip(0), minimum.clip(0))


def _round_affine(
    best: _Best | None, x: Floats, w: Floats, wanted: _Affine, levels: int, refits: int
) -> _Best:
    """Round scales and minima to what a super-block stores, refit, and offer each outcome."""
    d = _half(wanted.scale.max(axis=0) / _AFFINE_SCALE_MAX)
    dmin = _half(wanted.minimum.max(axis=0) / _AFFINE_SCALE_MAX)
    for refit in range(refits + 1):
        scales = _rounded(_divided(wanted.scale, d), 0, _AFFINE_SCALE_MAX)
        minima = _rounded(_divided(wanted.minimum, dmin), 0, _AFFINE_SCALE_MAX)
        step, minimum = d * scales, dmin * minima
        q = _rounded(_divided(x + minimum, step), 0, levels)
        error = (w * np.square(step * q - minimum - x)).sum(axis=(0, 1))
        fields = {"d": d, "dmin": dmin, "scales": scales, "minima": minima, "q": q}
        if best is None:
            best = _Best(error, dict(fields))
        else:
            best.offer(error, dict(fields))
        if refit < refits:
            wanted = _fit_affine(x, w, q)
            if refit % 2 == 0:
                d, dmin = _fit_halves(x, w, scales * q, minima, d, dmin)
    assert best is not None
    return best


def _fit_halves(
    x: Floats, w: Floats, steps: Floats, minima: Floats, d: Floats, dmin: Floats
) -> tuple[Floats, Floats]:
    """Return d and dmin by least squares of ``d * steps - dmin * minima``, or those given."""
    axes = (0, 1)
    minima = np.broadcast_to(minima, x.shape)
    ss, mm = (w * steps * steps).sum(axes), (w * minima * minima).sum(axes)
    sm, sx = (w * steps * minima).sum(axes), (w * steps * x).sum(axes)
    mx = (w * minima * x).sum(axes)
    determinant = ss * mm - sm * sm
    determinant[determinant < _SINGULAR * ss * mm] = 0
    better_d = _half(_divided(sx * mm - sm * mx, determinant))
    better_dmin = _half(_divided(sx * sm - mx * ss, determinant))
    sound = (better_d > 0) & (better_dmin >= 0)
    return np.where(sound, better_d, d), np.where(sound, better_dmin, dmin)


def pack_affine(fields: dict[str, NDArray[np.generic]], levels: int) -> Bytes:
    """Return the bytes of super-blocks of Q4_K or Q5_K: uint8 [blocks, 144 or 176].

    ``fields``: d and dmin [blocks], scales and minima [8, blocks], q [32, 8, blocks].
    """
    q = fields["q"].astype(np.uint8).transpose(2, 1, 0)  # [blocks, 8, 32]
    scales = fields["scales"].astype(np.uint8).T  # [blocks, 8]
    minima = fields["minima"].astype(np.uint8).T
    # Six bits each: the last four sub-blocks lend their upper two bits to the first eight bytes.
    packed = np.concatenate(
        [
            scales[:, :4] | (scales[:, 4:] >> 4 << 6),
            minima[:, :4] | (minima[:, 4:] >> 4 << 6),
            (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4),
        ],
        axis=1,
    )
    parts = [_half_bytes(fields["d"]), _half_bytes(fields["dmin"]), packed]
    if levels > 15:  # bit s of byte j: the fifth bit of weight j of sub-block s
        bits = np.arange(8, dtype=np.uint8)[:, None]
        parts.append(np.bitwise_or.reduce(q >> 4 << bits, axis=1))
    low = q & 15
    parts.append((low[:, 0::2] | (low[:, 1::2] << 4)).reshape(len(q), -1))
    return np.concatenate(parts, axis=1)


def _search_signed(x: Floats, w: Floats, extreme: Floats) -> Floats:
    """Return the best scale of each sub-block of Q6_K, not rounded yet: [16, blocks]."""
    best = _Best(np.full(extreme.shape, np.inf, np.float32), {"scale": extreme})
    for stretch in _STRETCHES:
        inverse = _divided(-np.float32(_SIGNED_MAX + 1) - stretch, extreme)
        q = _rounded(x * inverse, -_SIGNED_MAX - 1, _SIGNED_MAX)
        scale = _fit_signed(x, w, q)
        error = (w * np.square(scale * q - x)).sum(axis=0)
        best.offer(error, {"scale": scale})
    return best.fields["scale"]  # type: ignore[return-value]


def _fit_signed(x: Floats, w: Floats, q: Floats) -> Floats:
    wq = w * q
    return _divided((wq * x).sum(axis=0), (wq * q).sum(axis=0))


def _round_signed(best: _Best | None, x: Floats, w: Floats, wanted: Floats, refits: int) -> _Best:
    """Round the scales to what a super-block of Q6_K stores, refit, and offer each outcome."""
    extreme = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=0)[None], axis=0)[0]
    d = _half(extreme / np.float32(-_SIGNED_SCALE_MAX - 1))  # the one of more levels is negative
    for refit in range(refits + 1):
        scales = _rounded(_divided(wanted, d), -_SIGNED_SCALE_MAX - 1, _SIGNED_SCALE_MAX)
        step = d * scales
        q = _rounded(_divided(x, step), -_SIGNED_MAX - 1, _SIGNED_MAX)
        error = (w * np.square(step * q - x)).sum(axis=(0, 1))
        fields = {"d": d, "scales": scales, "q": q}
        if best is None:
            best = _Best(error, dict(fields))
        else:
            best.offer(error, dict(fields))
        if refit < refits:
            wanted = _fit_signed(x, w, q)
            if refit % 2 == 0:
                steps = scales * q
                numerator = (w * steps * x).sum(axis=(0, 1))
                better = _half(_divided(numerator, (w * steps * steps).sum(axis=(0, 1))))
                d = np.where(better != 0, better, d)
    assert best is not None
    return best


def pack_signed(fields: dict[str, NDArray[np.generic]]) -> Bytes:
    """Return the bytes of super-blocks of Q6_K: uint8 [blocks, 210].

    ``fields``: d [blocks], scales [16, blocks], q [16, 16, blocks] from -32 to 31.
    """
    q = (fields["q"] + 32).astype(np.uint8).transpose(2, 1, 0)
    quarters = q.reshape(-1, 2, 4, 32)  # [blocks, halves of 128, quarters of 32, weights]
    low, high = quarters & 15, quarters >> 4
    lows = low[:, :, :2] | (low[:, :, 2:] << 4)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    highs = np.bitwise_or.reduce(high << shifts, axis=2)
    scales = fields["scales"].astype(np.int8).view(np.uint8).T
    blocks = len(quarters)
    parts = [lows.reshape(blocks, -1), highs.reshape(blocks, -1), scales]
    return np.concatenate([*parts, _half_bytes(fields["d"])], axis=1)


def _half_bytes(values: NDArray[np.generic]) -> Bytes:
    """Return fp16 numbers as bytes: uint8 [blocks, 2]."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)
