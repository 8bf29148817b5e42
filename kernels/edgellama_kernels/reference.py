"""The NumPy backend, which is the specification: each function states one rule of the contract.

Only ``+ - * /`` and ``sqrt`` on float32, each rounded once to nearest even; integers; bit
operations; compares; conversions that are exact or, float32 to fp16, nearest even. Nothing from a
libm, and no BLAS, ``sum`` or ``dot`` on numbers that round: their order differs between machines.
A sum starts at +0 and runs upwards in index unless a tree is named. The rules are numbered as in
``README.md``. Numbers that overflow are found and refused, so NumPy's own warnings are off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgellama_kernels import row_codec
from edgellama_kernels.checked import CheckedKernels, square_root
from edgellama_kernels.exact_dots import BlockDots
from edgellama_kernels.interface import (
    GROUP_POSITIONS,
    LANE_POSITIONS,
    QUAD_NUMBERS,
    TILE_POSITIONS,
    CacheLayer,
    Float32,
    HiddenRows,
    NonFinite,
    QuantizedBlocks,
    Routing,
    quads_of,
)
from edgellama_kernels.kinds import BLOCK_COLUMNS, HALF_COLUMNS
from edgellama_kernels.layout import GROUP_ROWS, PackedMatrix, widened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellama_kernels.expert_layout import PackedExperts

f32 = np.float32
ONE, ZERO = f32(1), f32(0)
NORM_LANES = 32
HALF_LIMIT = f32(65504)  # rule 8 scales rows down from the largest finite fp16 on
HALF_ROUNDS_TO_INFINITY = f32(65520)
BLOCK_MAX_TINY = f32(2.0**-100)  # rule 2: 127 divided by anything smaller could overflow
QUERY_LIMIT = f32(2.0**100)  # rule 7: below it no score of at most 4096 dimensions overflows
EXP_LOWEST, EXP_HIGHEST = f32(-87), f32(88)
LOG2_E = f32(1.44269504)
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
EXP_FIRST = f32(1.9875691500e-4)
EXP_COEFFICIENTS = tuple(
    f32(c)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)
# 1 + tanh(t) is 2 / (1 + exp(-2 t)): 2 sqrt(2 / pi), and that times 0.044715.
GELU_LINEAR, GELU_CUBIC = f32(1.5957691216), f32(0.0713548162726)
TILE_NUMBERS_MAX = 1 << 18  # intermediate float32 of a matmul or attention tile: 1 MiB


def tree(lanes: Float32) -> Float32:
    """Rule 0: add up the last axis of 2^n lanes, halves first: ``v[:h] + v[h:]`` to one lane."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exponential(x: Float32) -> Float32:
    """Rule 4: exp of float32, at most 7.9e-8 off relatively; 0 below -87, constant above 88."""
    with np.errstate(all="ignore"):
        z = np.minimum(np.maximum(x, EXP_LOWEST), EXP_HIGHEST)
        k = np.rint(z * LOG2_E)
        r = (z - k * LN2_HIGH) - k * LN2_LOW
        p: NDArray[Any] = np.full_like(z, EXP_FIRST)
        for coefficient in EXP_COEFFICIENTS:
            p = p * r + coefficient
        y = (r + p * (r * r)) + ONE
        y = y * ((k.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
        return np.where(x < EXP_LOWEST, ZERO, y)


def rounded_13_bits(x: Float32) -> Float32:
    """Rule 7: round to 13 significant bits, nearest even; +0 below 2^-64."""
    bits = np.ascontiguousarray(x).view(np.int32)
    odd = (bits >> np.int32(11)) & np.int32(1)
    rounded = (bits + np.int32(0x3FF) + odd) & np.int32(~0x7FF)
    tiny = (bits & np.int32(0x7FFFFFFF)) < np.int32(63 << 23)
    return np.where(tiny, np.int32(0), rounded).view(np.float32)


def _power_of_two(exponents: NDArray[Any]) -> Float32:
    """Return 2^exponent exactly, for exponents of normal float32."""
    return ((exponents.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)


class ReferenceKernels(CheckedKernels):
    """Every kernel in plain NumPy, in the caller's thread."""

    name = "numpy"
    threads = 1
    row_codec = row_codec.REFERENCE

    def close(self) -> None:
        """Nothing to end: there are no threads."""

    def _expand(self, halves: NDArray[np.uint16], exponents: NDArray[np.uint8]) -> Float32:
        """Rule 8, backwards: fp16 to float32 is exact, and so is the power of two."""
        with np.errstate(all="ignore"):
            x = halves.view(np.float16).astype(np.float32) * _power_of_two(exponents)[:, None]
        if not np.isfinite(x).all():
            raise NonFinite("a hidden row holds infinity or NaN")
        return x

    def _shrink(self, x: Float32) -> HiddenRows:
        """Rule 8: fp16, nearest even, after the smallest 2^-e that brings a row below 65504."""
        if not np.isfinite(x).all():
            raise NonFinite("the hidden state became infinite or NaN")
        largest = np.abs(x).max(axis=1, initial=ZERO)
        exponents = np.zeros(len(x), np.uint8)
        while (
            too_large := largest * _power_of_two(-exponents.astype(np.int32)) >= HALF_LIMIT
        ).any():
            exponents += too_large
        scaled = x * _power_of_two(-exponents.astype(np.int32))[:, None]
        return HiddenRows(scaled.astype(np.float16).view(np.uint16), exponents)

    def _rms_norm(self, x: Float32, weight: Float32, epsilon: np.float32) -> Float32:
        """Rule 3: 32 lanes of squares, lane = index mod 32, a tree, then ``(x * r) * w``."""
        tokens, width = x.shape
        steps = -(-width // NORM_LANES)
        padded = np.zeros((tokens, steps * NORM_LANES), np.float32)
        padded[:, :width] = x
        lanes = np.zeros((tokens, NORM_LANES), np.float32)
        with np.errstate(all="ignore"):
            for step in padded.reshape(tokens, steps, NORM_LANES).transpose(1, 0, 2):
                lanes = lanes + step * step
            r = ONE / square_root(tree(lanes) / f32(width) + epsilon)
            y: Float32 = (x * r[:, None]) * weight
        if not (np.isfinite(r).all() and (r > 0).all()):
            raise NonFinite("a norm met infinity, NaN or a sum of squares without a root")
        return y

    def _quantize(self, x: Float32) -> QuantizedBlocks:
        """Rule 2: ``q = rint(x * (127 / m))`` with ``m`` the block's largest magnitude."""
        tokens, columns = x.shape
        blocks = x.reshape(tokens, columns // BLOCK_COLUMNS, BLOCK_COLUMNS)
        blocks = np.ascontiguousarray(blocks.transpose(1, 0, 2))
        if not np.isfinite(x).all():
            raise NonFinite("the input of a matmul is infinite or NaN")
        quants, scales = quantized(blocks)
        first = quants[..., :HALF_COLUMNS].sum(axis=2, dtype=np.int16)
        whole = quants.sum(axis=2, dtype=np.int16)
        return QuantizedBlocks(quants, scales, np.stack([first, whole], axis=2))

    def _matmul_blocks(
        self, matrix: PackedMatrix, blocks: QuantizedBlocks, residual: Float32 | None
    ) -> Float32:
        """Rule 1: ``acc = acc + f * (d * xs)``, then the same with a minimum where there is one.

        The integers of a block stay below 2^24, so float32 BLAS is exact in any order.
        """
        count, tokens, _ = blocks.quants.shape
        dots = BlockDots(matrix, blocks)
        y = np.empty((tokens, matrix.rows), np.float32)
        for groups, rows in _row_tiles(matrix, count * max(tokens, BLOCK_COLUMNS)):
            with np.errstate(all="ignore"):  # a damaged file's scales may be infinite
                products = []
                for integers, scales in dots.terms(groups):
                    product = scales[:, :, None] * blocks.scales[:, None, :]
                    product *= integers
                    products.append(product)
                accumulated = _added_upwards(*products)
            y[:, rows] = accumulated.T[:, : rows.stop - rows.start]
        return _with_residual(y, residual)

    def _matmul_float(self, matrix: PackedMatrix, x: Float32, residual: Float32 | None) -> Float32:
        """Rule 1, unquantised: ``t`` adds a block's rounded products in order; ``acc = acc + t``.

        Zeros that fill up the last block change nothing: a sum that starts at +0 is never -0.
        """
        tokens, columns = x.shape
        count = -(-columns // BLOCK_COLUMNS)
        filled = np.zeros((count * BLOCK_COLUMNS, tokens), np.float32)
        filled[:columns] = x.T
        inputs = filled.reshape(count, BLOCK_COLUMNS, 1, tokens)
        y = np.empty((tokens, matrix.rows), np.float32)
        for groups, rows in _row_tiles(matrix, count * max(tokens, BLOCK_COLUMNS)):
            elements = widened(matrix.kind, matrix.elements[groups].transpose(1, 0, 2))
            weights = np.zeros((count * BLOCK_COLUMNS, elements.shape[1] * GROUP_ROWS), np.float32)
            weights[:columns] = elements.reshape(columns, -1)
            weights = weights.reshape(count, BLOCK_COLUMNS, -1, 1)
            partial = np.zeros((count, weights.shape[2], tokens), np.float32)
            with np.errstate(all="ignore"):
                for k in range(BLOCK_COLUMNS):
                    partial += weights[:, k] * inputs[:, k]
                accumulated = _added_upwards(partial)
            y[:, rows] = accumulated.T[:, : rows.stop - rows.start]
        return _with_residual(y, residual)

    def _route(self, logits: Float32, used: int) -> Routing:
        """Rule 11: the greatest logits, of equals the first; shares of the chosen ones' sum."""
        if not np.isfinite(logits).all():
            raise NonFinite("the router of a mixture of experts met infinity or NaN")
        greatest = np.argsort(-logits, axis=1, kind="stable")[:, :used]
        chosen = np.sort(greatest, axis=1).astype(np.int32)
        picked = np.take_along_axis(logits, chosen, axis=1)
        with np.errstate(all="ignore"):  # two finite logits may lie infinitely far apart
            numbers = exponential(picked - picked.max(axis=1, keepdims=True))
        shares = numbers / _added_upwards(numbers.T)[:, None]
        order = np.argsort(chosen, axis=None, kind="stable").astype(np.int32)
        return Routing(chosen, shares, order)

    def _expert_matmul(
        self, experts: PackedExperts, x: Float32, blocks: QuantizedBlocks | None, routing: Routing
    ) -> Float32:
        """Rule 1 for the tokens of each expert that any token chose."""
        tokens, used = routing.chosen.shape
        slots = 1 if x.ndim == 3 else used
        rows = x.reshape(-1, experts.columns)
        y = np.empty((tokens * used, experts.rows), np.float32)
        flat = routing.chosen.reshape(-1)
        for expert in np.unique(flat).tolist():
            pairs = np.flatnonzero(flat == expert)
            own = pairs // slots
            matrix = experts.expert(expert)
            if blocks is None:
                y[pairs] = self._matmul_float(matrix, rows[own], None)
            else:
                quants, scales, sums = blocks
                parts = QuantizedBlocks(quants[:, own], scales[:, own], sums[:, own])
                y[pairs] = self._matmul_blocks(matrix, parts, None)
        return y.reshape(tokens, used, experts.rows)

    def _mix(self, outputs: Float32, shares: Float32, residual: Float32) -> Float32:
        """Rule 11's sum: a token's experts upwards from +0, each product rounded."""
        with np.errstate(all="ignore"):
            products = outputs * shares[..., None]
            return _added_upwards(products.transpose(1, 0, 2)) + residual

    def _rope(self, x: Float32, table: Float32) -> None:
        """Rule 6: ``a' = a c - b s``, ``b' = a s + b c``, each product rounded."""
        half = x.shape[2] // 2
        cosine, sine = table[:, None, 0], table[:, None, 1]
        first, second = x[..., :half].copy(), x[..., half:].copy()
        with np.errstate(all="ignore"):
            x[..., :half] = first * cosine - second * sine
            x[..., half:] = first * sine + second * cosine

    def _silu_multiply(self, gate: Float32, up: Float32) -> Float32:
        """Rule 5: ``(g / (1 + exp(0 - g))) * u``."""
        with np.errstate(all="ignore"):
            return (gate / (ONE + exponential(ZERO - gate))) * up

    def _gelu_multiply(self, gate: Float32, up: Float32) -> Float32:
        """Rule 5's GELU: ``z = g * (a + b * (g * g))``, ``(g / (1 + exp(0 - z))) * u``."""
        with np.errstate(all="ignore"):
            z = gate * (GELU_LINEAR + GELU_CUBIC * (gate * gate))
            return (gate / (ONE + exponential(ZERO - z))) * up

    def _add(self, x: Float32, summand: Float32) -> Float32:
        """Rule 1's bias or residual: one more addition."""
        with np.errstate(all="ignore"):
            return x + summand

    def _store(self, cache: CacheLayer, keys: Float32, values: Float32, position: int) -> None:
        """Rule 7's cache: fp16, nearest even, or int8 by rule 2, a whole head being the block."""
        for numbers in (keys, values):
            if not (np.abs(numbers) < HALF_ROUNDS_TO_INFINITY).all():
                raise NonFinite("a key or value is too large for the cache, infinite or NaN")
        positions = np.arange(position, position + len(keys))
        if cache.scales is not None:
            groups, rows = positions // GROUP_POSITIONS, positions % GROUP_POSITIONS
            quants, scales = quantized(keys)
            cache.keys[:, groups, :, rows] = _in_quads(quants)
            cache.scales[0][:, positions] = scales.T
            quants, scales = quantized(values)
            cache.values[:, positions] = quants.transpose(1, 0, 2)
            cache.scales[1][:, positions] = scales.T
            return
        chunks, lanes = positions // LANE_POSITIONS, positions % LANE_POSITIONS
        cache.keys[:, chunks, :, lanes] = keys.astype(np.float16).view(np.uint16)
        cache.values[:, positions] = values.astype(np.float16).view(np.uint16).transpose(1, 0, 2)

    def _attention(
        self,
        queries: Float32,
        cache: CacheLayer,
        position: int,
        window: int,
        scale: np.float32,
    ) -> Float32:
        """Rule 7, all queries that share a key head at once, in chunks that bound the memory."""
        tokens, heads, width = queries.shape
        with np.errstate(all="ignore"):
            scaled = queries * scale
            if cache.scales is None:
                scaled = rounded_13_bits(scaled)
        if not (np.abs(scaled) < QUERY_LIMIT).all():
            raise NonFinite("a query is too large, infinite or NaN")
        shared = heads // cache.kv_heads
        out = np.empty((tokens, cache.kv_heads, shared, width), np.float32)
        grouped = scaled.reshape(tokens, cache.kv_heads, shared, width)
        step = max(1, TILE_NUMBERS_MAX // (shared * (position + tokens)))
        for start in range(0, tokens, step):
            chunk = slice(start, min(start + step, tokens))
            limits = np.repeat(np.arange(position + chunk.start, position + chunk.stop) + 1, shared)
            for head in range(cache.kv_heads):
                rows = grouped[chunk, head].reshape(-1, width)
                attended = _attend(rows, limits, window, cache, head)
                out[chunk, head] = attended.reshape(-1, shared, width)
        return out


def _row_tiles(matrix: PackedMatrix, row_numbers: int) -> list[tuple[slice, slice]]:
    """Cut a matrix into (groups, rows) whose intermediates of ``row_numbers`` a row stay small."""
    step = max(1, TILE_NUMBERS_MAX // (row_numbers * GROUP_ROWS))
    return [
        (
            slice(group, min(group + step, matrix.groups)),
            slice(group * GROUP_ROWS, min((group + step) * GROUP_ROWS, matrix.rows)),
        )
        for group in range(0, matrix.groups, step)
    ]


def _added_upwards(*terms: Float32) -> Float32:
    """Return the sum over the first axis, from +0 upwards, of each term in turn."""
    accumulated = np.zeros(terms[0].shape[1:], np.float32)
    for blocks in zip(*terms, strict=True):
        for block in blocks:
            accumulated += block
    return accumulated


def _with_residual(y: Float32, residual: Float32 | None) -> Float32:
    if residual is None:
        return y
    with np.errstate(all="ignore"):
        return y + residual


def quantized(blocks: Float32) -> tuple[NDArray[np.int8], Float32]:
    """Rule 2: int8 [..., n] and float32 scales [...] of finite blocks, the last axis."""
    largest = np.abs(blocks).max(axis=-1)
    tiny = largest < BLOCK_MAX_TINY
    divisor = np.where(tiny, ONE, largest)
    scales = np.where(tiny, ZERO, divisor / f32(127))
    inverse = np.where(tiny, ZERO, f32(127) / divisor)
    return np.rint(blocks * inverse[..., None]).astype(np.int8), scales


def _in_quads(quants: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return [..., D] as [..., quads, 4], filled up with zeros."""
    width = quants.shape[-1]
    quads = quads_of(width)
    filled = np.zeros((*quants.shape[:-1], quads * QUAD_NUMBERS), np.int8)
    filled[..., :width] = quants
    return filled.reshape(*quants.shape[:-1], quads, QUAD_NUMBERS)


def _attend(
    queries: Float32, limits: NDArray[np.int64], window: int, cache: CacheLayer, head: int
) -> Float32:
    """Rule 7 (b) to (g) for scaled queries [R, D] that see ``limits`` [R] positions of a head.

    Of them the last ``window``, 0: all. Tiles that no query sees are left out.
    """
    rows, width = queries.shape
    unseen = np.maximum(limits - window, 0) if window else np.zeros_like(limits)
    first = int(unseen.min()) // TILE_POSITIONS * TILE_POSITIONS
    tiles = -(-(int(limits.max()) - first) // TILE_POSITIONS)
    positions = tiles * TILE_POSITIONS
    seen = slice(first, first + positions)
    values = cache.values[head, seen]
    if cache.scales is None:
        scores = _scores(queries, cache.keys[head], seen)
        values = values.view(np.float16)
    else:
        scores = _integer_scores(queries, cache.keys[head], cache.scales[0, head], seen)
    places = np.arange(first, seen.stop)
    scores[(places >= limits[:, None]) | (places < unseen[:, None])] = -np.inf
    with np.errstate(all="ignore"):
        weights = rounded_13_bits(exponential(scores - scores.max(axis=1, keepdims=True)))
    lanes = np.zeros((rows, LANE_POSITIONS), np.float32)
    for step in weights.reshape(rows, -1, LANE_POSITIONS).transpose(1, 0, 2):
        lanes = lanes + step
    if cache.scales is not None:
        weights = rounded_13_bits(weights * cache.scales[1, head, seen])
    tiled = weights.reshape(rows, tiles, TILE_POSITIONS, 1)
    value = values.astype(np.float32).reshape(tiles, TILE_POSITIONS, width)
    sums = np.zeros((rows, tiles, width), np.float32)
    for j in range(TILE_POSITIONS):
        sums += tiled[:, :, j] * value[None, :, j]
    return _added_upwards(sums.transpose(1, 0, 2)) * (ONE / tree(lanes))[:, None]


def _scores(queries: Float32, keys: NDArray[np.uint16], seen: slice) -> Float32:
    """Rule 7 (b), fp16: the sum of ``q'[d] k[j][d]``, d upwards."""
    width = queries.shape[1]
    chunks = slice(seen.start // LANE_POSITIONS, seen.stop // LANE_POSITIONS)
    key = keys[chunks].transpose(1, 0, 2).reshape(width, -1)
    key = key.view(np.float16).astype(np.float32)
    scores = np.zeros((len(queries), key.shape[1]), np.float32)
    for d in range(width):
        scores += queries[:, d, None] * key[d]
    return scores


def _integer_scores(
    queries: Float32, keys: NDArray[np.int8], scales: Float32, seen: slice
) -> Float32:
    """Rule 7 (b), int8: exact sums of products, below 2^24 so that any order will do."""
    quants, query_scales = quantized(queries)
    groups = slice(seen.start // GROUP_POSITIONS, seen.stop // GROUP_POSITIONS)
    key = keys[groups].transpose(1, 3, 0, 2).reshape(-1, seen.stop - seen.start)
    products: Float32 = np.matmul(
        quants.astype(np.float32), key[: quants.shape[1]].astype(np.float32)
    )
    factors: Float32 = query_scales[:, None] * scales[seen]
    return products * factors
