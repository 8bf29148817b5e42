"""Infinity, NaN and shapes that do not fit are refused, by both backends alike."""

from __future__ import annotations

import numpy as np
import pytest
from edgellama_kernels import (
    CacheKind,
    HiddenRows,
    NonFinite,
    PackedExperts,
    WeightKind,
    allocate_cache_layer,
    load,
)
from kernel_cases import packed, random_rows

NOT_FINITE = [np.nan, -np.nan, np.inf, -np.inf]


def spoiled(value: float, place: int, width: int = 75) -> np.ndarray:
    x = random_rows(1, 3, width)
    x[1, place] = value
    return x


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("place", [0, 33, 74])
def test_rows_that_are_not_finite(kernels, value, place) -> None:
    with pytest.raises(NonFinite):
        kernels.shrink(spoiled(value, place))
    with pytest.raises(NonFinite):
        kernels.rms_norm(spoiled(value, place), np.ones(75, np.float32), 1e-5)


@pytest.mark.parametrize("kind", WeightKind)
@pytest.mark.parametrize("place", [0, 33, 255])
def test_activations_that_are_not_finite(kernels, kind, place) -> None:
    """Weights that are no blocks let them through, and the hidden state is then refused."""
    matrix = packed(kind, 9, 256)
    experts = PackedExperts(kind, 1, 9, 256, matrix.buffer)
    routing = kernels.route(np.zeros((3, 1), np.float32), 1)
    for value in NOT_FINITE:
        rows = kernels.prepare(spoiled(value, place, 256))
        with pytest.raises(NonFinite):
            kernels.shrink(kernels.matmul(matrix, rows))
        with pytest.raises(NonFinite):
            kernels.shrink(kernels.expert_matmul(experts, rows, routing)[:, 0])
        if kind.quantized:
            with pytest.raises(NonFinite):
                kernels.matmul(matrix, rows)
            with pytest.raises(NonFinite):
                kernels.expert_matmul(experts, rows, routing)


@pytest.mark.parametrize("cache_kind", CacheKind)
@pytest.mark.parametrize("value", [*NOT_FINITE, 1e30, 65520, -65520])
@pytest.mark.parametrize("place", [0, 11])
def test_keys_and_values_that_do_not_fit(kernels, value, place, cache_kind) -> None:
    cache = allocate_cache_layer(1, 12, 64, cache_kind)
    bad = spoiled(value, place, 12).reshape(3, 1, 12)
    good = np.ones((3, 1, 12), np.float32)
    for keys, values in ((bad, good), (good, bad)):
        with pytest.raises(NonFinite):
            kernels.store(cache, keys, values, 0)
        assert not cache.keys.any()
        assert not cache.values.any()
    kernels.store(cache, good * np.float32(65519.99), good, 0)
    assert cache.keys.max() == {CacheKind.F16: 0x7BFF, CacheKind.Q8: 127}[cache_kind]


def test_heads_too_wide_for_exact_sums_of_int8() -> None:
    allocate_cache_layer(1, 1024, 64, CacheKind.Q8)
    with pytest.raises(ValueError, match="too wide"):
        allocate_cache_layer(1, 1025, 64, CacheKind.Q8)


@pytest.mark.parametrize("cache_kind", CacheKind)
@pytest.mark.parametrize("value", [*NOT_FINITE, 2.0**103])
@pytest.mark.parametrize("place", [0, 11])
def test_queries_whose_scores_could_overflow(kernels, value, place, cache_kind) -> None:
    cache = allocate_cache_layer(1, 12, 64, cache_kind)
    with pytest.raises(NonFinite):
        kernels.attention(spoiled(value, place, 12).reshape(3, 1, 12), cache, 0)


@pytest.mark.parametrize("place", [0, 9])
@pytest.mark.parametrize(
    ("half", "exponent"), [(0x7C00, 0), (0xFC00, 0), (0x7E00, 5), (0x7BFF, 113), (0, 114), (0, 255)]
)
def test_hidden_rows_from_outside(kernels, half, exponent, place) -> None:
    halves = np.zeros((2, 10), np.uint16)
    halves[1, place] = half
    exponents = np.array([0, exponent], np.uint8)
    with pytest.raises(NonFinite):
        kernels.expand(HiddenRows(halves, exponents))


def test_a_norm_without_a_root(kernels) -> None:
    weight = np.ones(40, np.float32)
    with pytest.raises(NonFinite):
        kernels.rms_norm(np.zeros((1, 40), np.float32), weight, 0.0)
    with pytest.raises(NonFinite):
        kernels.rms_norm(np.full((1, 40), 1e30, np.float32), weight, 1e-5)


def test_damaged_weights_end_in_a_refusal(kernels) -> None:
    matrix = packed(WeightKind.Q8_0, 8, 32)
    matrix.scales[0, 0, 3] = 0x7C00
    y = kernels.matmul(matrix, kernels.prepare(random_rows(1, 1, 32)))
    with pytest.raises(NonFinite):
        kernels.shrink(y)


def test_shapes_that_do_not_fit(kernels) -> None:
    x = np.zeros((2, 64), np.float32)
    matrix = packed(WeightKind.Q8_0, 8, 32)
    cache = allocate_cache_layer(2, 8, 64)
    quantized = allocate_cache_layer(2, 8, 64, CacheKind.Q8)
    heads = np.zeros((2, 4, 8), np.float32)
    refused = [
        lambda: kernels.shrink(x.astype(np.float64)),
        lambda: kernels.shrink(x[0]),
        lambda: kernels.rms_norm(x, np.zeros(63, np.float32), 1e-5),
        lambda: kernels.matmul(matrix, kernels.prepare(x)),
        lambda: kernels.matmul(
            matrix, kernels.prepare(x[:, :32]), residual=np.zeros((2, 9), np.float32)
        ),
        lambda: kernels.silu_multiply(x, x[:, 1:]),
        lambda: kernels.gelu_multiply(x, x[:, 1:]),
        lambda: kernels.gelu_multiply(x[None, None], x[None, None]),
        lambda: kernels.rms_norm(heads, np.zeros(4, np.float32), 1e-5),
        lambda: kernels.rms_norm(heads[None], np.zeros(8, np.float32), 1e-5),
        lambda: kernels.rms_norm(x[0], np.zeros(64, np.float32), 1e-5),
        lambda: kernels.add(x, x[:, 1:]),
        lambda: kernels.add(x, x[:1]),
        lambda: kernels.add(x, x[0, 1:]),
        lambda: kernels.add(x, x[0].astype(np.float64)),
        lambda: kernels.add(x, np.float32(1)),
        lambda: kernels.rope(heads, np.zeros((2, 2, 3), np.float32)),
        lambda: kernels.rope(heads[:, :, :7], np.zeros((2, 2, 3), np.float32)),
        lambda: kernels.rope(np.zeros((2, 4, 7), np.float32), np.zeros((2, 2, 3), np.float32)),
        lambda: kernels.store(cache, heads, heads, 0),
        lambda: kernels.store(cache, heads[:, :2], heads[:, :2], 63),
        lambda: kernels.store(cache, heads[:, :2], heads[:, :2], -1),
        lambda: kernels.attention(heads[:, :3], cache, 0),
        lambda: kernels.attention(heads[:, :0], cache, 0),
        lambda: kernels.attention(heads, cache, 63),
        lambda: kernels.attention(heads, cache, 0, -1),
        lambda: kernels.attention(heads, cache._replace(keys=cache.keys[:, :2]), 0),
        lambda: kernels.attention(heads, quantized._replace(scales=None), 0),
        lambda: kernels.attention(heads, quantized._replace(scales=quantized.scales[:1]), 0),
        lambda: kernels.attention(heads, cache._replace(scales=quantized.scales), 0),
        lambda: kernels.expand(HiddenRows(np.zeros((2, 3), np.uint16), np.zeros(1, np.uint8))),
        lambda: kernels.expand(HiddenRows(np.zeros((2, 3), np.int16), np.zeros(2, np.uint8))),
        lambda: kernels.quantize(x[:, :33]),
    ]
    for call in refused:
        with pytest.raises(ValueError):
            call()
    with pytest.raises(IndexError):
        kernels.embed(matrix, np.array([8]))


def test_unknown_backends_and_crews_are_refused() -> None:
    with pytest.raises(ValueError, match="choose auto"):
        load("cuda")
    for threads in (0, -1, 65):
        with pytest.raises(ValueError, match="threads"):
            load("numpy", threads)
