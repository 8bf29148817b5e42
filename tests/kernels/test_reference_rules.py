"""The NumPy backend against the contract's sentences, one number at a time."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from edgellama_kernels import (
    CacheKind,
    Kernels,
    PackedMatrix,
    WeightKind,
    allocate_cache_layer,
    cache_position_bytes,
    exponential,
)
from edgellama_kernels.kinds import FORMATS, block_quants, block_scales, factor_numbers
from edgellama_kernels.reference import rounded_13_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    assert_same_bits,
    awkward_rows,
    packed,
    random_rows,
    raw_matrix,
    whole_blocks,
)

f32 = np.float32
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def rounded(number: Fraction, bits: int) -> Fraction:
    """Round to ``bits`` significant bits, half to even."""
    if number == 0:
        return number
    unit = Fraction(2) ** (math.frexp(float(number))[1] - bits)
    return round(number / unit) * unit


@pytest.mark.parametrize("kind", FORMATS)
def test_rule_1_quantised_block_by_block(kind: WeightKind, reference: Kernels) -> None:
    columns = whole_blocks(kind, 3)
    raw, x = raw_matrix(kind, 5, columns, 3), random_rows(4, 2, columns)
    rows = reference.prepare(x)
    y = reference.matmul(packed(kind, 5, columns, 3), rows)
    quants, scales = rows.blocks.quants.astype(int), rows.blocks.scales
    gguf_blocks = raw.reshape(5, -1, kind.block_bytes)
    weights = block_quants(kind, gguf_blocks).astype(int).reshape(5, -1, 2, 16)
    if kind is WeightKind.Q8_0:
        weights = (weights + 128) % 256 - 128
    weights -= FORMATS[kind].offset
    d, m, factors = block_scales(kind, gguf_blocks)
    if factors is None:
        of_scales = of_minimums = np.ones(weights.shape[:3], int)
    else:
        of_scales, of_minimums = factor_numbers(kind, factors.reshape(5, -1, 2))
    for t, r in itertools.product(range(2), range(5)):
        total = f32(0)
        for b in range(columns // 32):
            halves = quants[b, t].reshape(2, 16)
            integer = sum((weights[r, b] * halves).sum(axis=1) * of_scales[r, b])
            of_gguf = b * 32 // kind.block_size
            scale = f32(d.view(np.float16)[r, of_gguf]) * scales[b, t]
            assert abs(integer) < 1 << 24
            total = total + f32(integer) * scale
            if m is not None:
                minimum = f32(m.view(np.float16)[r, of_gguf]) * scales[b, t]
                total = total + f32(sum(halves.sum(axis=1) * of_minimums[r, b])) * minimum
        assert y[t, r] == total


def test_rule_1_has_integers_that_float32_holds_at_the_worst(reference: Kernels) -> None:
    """Q6_K with every quant -32 and every factor -128, activations all 127 or -127."""
    raw = np.zeros((1, 210), np.uint8)
    raw[:, 192:208] = 0x80
    raw[:, 208:] = np.array([1], np.float16).view(np.uint8)
    matrix = PackedMatrix.zeros(WeightKind.Q6_K, 1, 256)
    matrix.store_rows(0, raw)
    for sign in (1, -1):
        x = np.full((1, 256), sign * 127, f32)
        assert reference.matmul(matrix, reference.prepare(x))[0, 0] == sign * 256 * 4096 * 127


@pytest.mark.parametrize("kind", [WeightKind.F32, WeightKind.F16, WeightKind.BF16])
@pytest.mark.parametrize("columns", [1, 31, 32, 75])
def test_rule_1_unquantised_in_order(kind: WeightKind, columns: int, reference: Kernels) -> None:
    matrix = packed(kind, 3, max(columns, 4), 5)
    columns = matrix.columns
    x, residual = random_rows(6, 2, columns), random_rows(7, 2, 3)
    y = reference.matmul(matrix, reference.prepare(x), residual)
    weights = matrix.dequantized_rows(range(3))
    for t in range(2):
        for r in range(3):
            total = f32(0)
            for start in range(0, columns, 32):
                part = f32(0)
                for k in range(start, min(start + 32, columns)):
                    part = part + weights[r, k] * x[t, k]
                total = total + part
            assert y[t, r] == total + residual[t, r]


def test_rule_2_quantises_blocks_by_their_largest(reference: Kernels) -> None:
    x = awkward_rows(1, 9, 96)
    blocks = reference.quantize(x)
    for t in range(9):
        for b in range(3):
            numbers = x[t, b * 32 :][:32]
            largest = np.abs(numbers).max()
            quants = blocks.quants[b, t]
            halves = [quants[:16].astype(int).sum(), quants.astype(int).sum()]
            assert blocks.sums[b, t].tolist() == halves
            if largest < f32(2.0**-100):
                assert blocks.scales[b, t] == 0
                assert not quants.any()
            else:
                assert blocks.scales[b, t] == largest / f32(127)
                assert quants.tolist() == [round(float(n * (f32(127) / largest))) for n in numbers]
                assert abs(quants.astype(int)).max() == 127


def test_rule_3_norm_in_32_lanes(reference: Kernels) -> None:
    x, weight = random_rows(2, 1, 75), random_rows(3, 75)
    lanes = [f32(0)] * 32
    for i, number in enumerate(x[0]):
        lanes[i % 32] = lanes[i % 32] + number * number
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    root = f32(1) / np.sqrt(lanes[0] / f32(75) + f32(1e-5))
    expected = np.array([[(n * root) * w for n, w in zip(x[0], weight, strict=True)]])
    assert_same_bits(reference.rms_norm(x, weight, 1e-5), expected)


def test_rule_4_exponential_is_accurate_and_ends_well() -> None:
    x = np.linspace(-87, 88, 40_001, dtype=f32)
    exact = np.array([math.exp(float(number)) for number in x])
    assert (np.abs(exponential(x) - exact) / exact).max() < 7.9e-8
    ends = exponential(np.array([-87.1, -1e30, -np.inf, 0, -0.0, 88, 88.5, 1e30], f32))
    assert ends[:5].tolist() == [0, 0, 0, 1, 1]
    assert ends[5] == ends[6] == ends[7]


def test_rule_5_silu(reference: Kernels) -> None:
    gate, up = random_rows(1, 2, 33) * f32(30), random_rows(2, 2, 33)
    y = reference.silu_multiply(gate, up)
    exact = gate.astype(float) / (1 + np.exp(-gate.astype(float))) * up
    assert np.abs(y - exact).max() < 1e-5
    assert reference.silu_multiply(f32([[0, -1e30]]), f32([[5, 5]]))[0, 0] == 0


def test_rule_5_gelu(reference: Kernels) -> None:
    gate, up = np.float32(5) * random_rows(1, 4, 300), random_rows(2, 4, 300)
    y = reference.gelu_multiply(gate, up)
    g = gate.astype(np.float64)
    tanh = np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))
    np.testing.assert_allclose(y, 0.5 * g * (1 + tanh) * up, rtol=3e-6, atol=1e-7)
    far = reference.gelu_multiply(f32([[0, -1e30, 1e30]]), f32([[5, 5, 5]]))
    assert far[0].tolist() == [0, far[0, 1], f32(1e30) * f32(5)]
    assert abs(far[0, 1]) < 1e-7


def test_rule_6_rotates_halves(reference: Kernels) -> None:
    x, table = random_rows(1, 2, 3, 10), random_rows(2, 2, 2, 5)
    y = x.copy()
    reference.rope(y, table)
    for t, h, i in ((0, 0, 0), (1, 2, 4)):
        a, b, cosine, sine = x[t, h, i], x[t, h, i + 5], table[t, 0, i], table[t, 1, i]
        assert y[t, h, i] == a * cosine - b * sine
        assert y[t, h, i + 5] == a * sine + b * cosine


@settings(deadline=None)
@given(finite)
def test_rule_7_rounds_to_13_bits(number: float) -> None:
    got = rounded_13_bits(np.array([number], f32))[0]
    if abs(number) < 2.0**-64:
        assert got == 0
        assert not np.signbit(got)
    else:
        expected = rounded(Fraction(number), 13)
        assert np.isinf(got) if abs(expected) >= 2**128 else Fraction(float(got)) == expected


@pytest.mark.parametrize(("window", "scale"), [(0, None), (20, None), (64, 0.2), (1, 0.2)])
def test_rule_7_attention_is_softmax_of_what_is_visible(
    reference: Kernels, window: int, scale: float | None
) -> None:
    queries, keys, values = (random_rows(n, 90, heads, 12) for n, heads in ((1, 4), (2, 2), (3, 2)))
    cache = allocate_cache_layer(2, 12, 90)
    reference.store(cache, keys, values, 0)
    y = reference.attention(queries, cache, 0, window, scale)
    quantized = allocate_cache_layer(2, 12, 90, CacheKind.Q8)
    reference.store(quantized, keys, values, 0)
    z = reference.attention(queries, quantized, 0, window, scale)
    keys, values = (x.astype(np.float16).astype(float) for x in (keys, values))
    for t, head in ((0, 0), (15, 1), (63, 2), (64, 3), (89, 1)):
        seen = slice(max(0, t + 1 - window) if window else 0, t + 1)
        scores = keys[seen, head // 2] @ queries[t, head] * (scale or 1 / math.sqrt(12))
        weights = np.exp(scores - scores.max())
        exact = weights @ values[seen, head // 2] / weights.sum()
        assert np.abs(y[t, head * 12 :][:12] - exact).max() < 2e-3
        assert np.abs(z[t, head * 12 :][:12] - exact).max() < 4e-2  # int8: steps of 1/127
    assert_same_bits(y[0, :12], values[0, 0].astype(f32))


def test_rule_7_keeps_int8_as_rule_2_says(reference: Kernels) -> None:
    keys, values = random_rows(1, 90, 2, 10), random_rows(2, 90, 2, 10)
    keys[3] = values[4] = 0
    cache = allocate_cache_layer(2, 10, 90, CacheKind.Q8)
    reference.store(cache, keys, values, 0)
    assert cache.scales is not None
    assert cache_position_bytes(2, 10, CacheKind.Q8) * cache.capacity == sum(
        array.nbytes for array in cache if array is not None
    )
    for position, head, d in ((0, 0, 0), (3, 1, 4), (4, 0, 2), (89, 1, 9), (63, 0, 7)):
        for number, (given_, scales) in enumerate(zip((keys, values), cache.scales, strict=True)):
            largest = np.abs(given_[position, head]).max()
            expected = f32(0) if largest == 0 else largest / f32(127)
            assert scales[head, position] == expected
            inverse = f32(0) if largest == 0 else f32(127) / largest
            quant = np.rint(given_[position, head, d] * inverse)
            kept = (
                cache.keys[head, position // 8, d // 4, position % 8, d % 4],
                cache.values[head, position, d],
            )[number]
            assert kept == quant


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=6))
def test_rule_8_takes_the_smallest_exponent(numbers: list[float]) -> None:
    from edgellama_kernels import NonFinite, load

    reference = load("numpy")
    hidden = reference.shrink(np.array([numbers], f32))
    e = int(hidden.exponents[0])
    largest = max(abs(float(f32(number))) for number in numbers)
    assert largest * 2.0**-e < 65504
    assert e == 0 or largest * 2.0 ** (1 - e) >= 65504
    for half, number in zip(hidden.halves[0].view(np.float16), numbers, strict=True):
        assert half == np.float16(float(f32(number)) * 2.0**-e)
    if largest < 2.0**127:
        again = reference.shrink(reference.expand(hidden))
        assert (again.halves.view(np.float16) == hidden.halves.view(np.float16)).all() or e
    elif abs(float(np.abs(hidden.halves.view(np.float16)).max())) * 2.0**e >= 2.0**128:
        with pytest.raises(NonFinite):
            reference.expand(hidden)
