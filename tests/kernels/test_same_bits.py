"""Same bits from both backends, at any number of tokens and threads, however a prompt is cut."""

from __future__ import annotations

import numpy as np
import pytest
from edgellama_kernels import (
    CacheKind,
    CacheLayer,
    Kernels,
    PackedMatrix,
    WeightKind,
    allocate_cache_layer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_same_bits, awkward_rows, packed, random_rows, whole_blocks

KINDS = list(WeightKind)


def multiply(kernels: Kernels, matrix, x, residual=None):
    return kernels.matmul(matrix, kernels.prepare(x), residual)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(1, 9),
    rows=st.integers(1, 40),
    columns=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_matmul(compiled, reference, kind, tokens, rows, columns, seed) -> None:
    columns = whole_blocks(kind, columns) if kind.quantized else columns * 17 + 3
    matrix = packed(kind, rows, columns, seed)
    x = random_rows(seed, tokens, columns)
    residual = random_rows(seed + 1, tokens, rows) if seed % 2 else None
    expected = multiply(reference, matrix, x, residual)
    assert_same_bits(multiply(compiled, matrix, x, residual), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 64, 513])
def test_matmul_of_extremes(compiled, reference, kind, tokens) -> None:
    matrix = packed(kind, 43, whole_blocks(kind, 5))
    x = awkward_rows(tokens, tokens, matrix.columns)
    assert_same_bits(multiply(compiled, matrix, x), multiply(reference, matrix, x))


@pytest.mark.parametrize("kind", KINDS)
def test_matmul_of_zeros(compiled, reference, kind) -> None:
    """All weights or all activations are 0: no sum is left out, and none gets another sign."""
    matrix = packed(kind, 11, whole_blocks(kind, 2))
    empty = PackedMatrix.zeros(kind, 11, matrix.columns)
    x = awkward_rows(1, 3, matrix.columns)
    for weights, rows in ((empty, x), (matrix, np.zeros_like(x)), (matrix, -np.zeros_like(x))):
        one, other = multiply(compiled, weights, rows), multiply(reference, weights, rows)
        assert not other.any()
        assert_same_bits(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_does_not_feel_its_batch(kernels, kind) -> None:
    matrix = packed(kind, 20, whole_blocks(kind, 3))
    x = awkward_rows(5, 514, matrix.columns)
    every = multiply(kernels, matrix, x)
    for start, tokens in ((0, 1), (513, 1), (3, 2), (100, 3), (7, 8), (511, 3), (1, 513)):
        part = multiply(kernels, matrix, np.ascontiguousarray(x[start : start + tokens]))
        assert_same_bits(part, every[start : start + tokens])


def test_quantised_blocks(compiled, reference) -> None:
    x = awkward_rows(9, 33, 192)
    for one, other in zip(compiled.quantize(x), reference.quantize(x), strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("width", [1, 8, 31, 32, 75, 2048])
def test_functions_of_rows(compiled, reference, width) -> None:
    x, gate = awkward_rows(1, 7, max(width, 64))[:, :width], random_rows(2, 7, width)
    gate = gate * np.float32(40)
    gate[0, 0] = -0.0
    for k in (compiled, reference):
        assert_same_bits(k.expand(k.shrink(x)), reference.expand(reference.shrink(x)))
    assert_same_bits(compiled.shrink(x).halves, reference.shrink(x).halves)
    assert_same_bits(compiled.shrink(x).exponents, reference.shrink(x).exponents)
    arguments = (np.ascontiguousarray(x), random_rows(3, width), 1e-5)
    assert_same_bits(compiled.rms_norm(*arguments), reference.rms_norm(*arguments))
    assert_same_bits(compiled.silu_multiply(gate, x), reference.silu_multiply(gate, x))
    assert_same_bits(compiled.gelu_multiply(gate, x), reference.gelu_multiply(gate, x))
    for summand in (gate, gate[1]):
        assert_same_bits(compiled.add(x, summand), reference.add(x, summand))


@pytest.mark.parametrize("width", [1, 75])
def test_functions_of_a_long_prompts_rows(crew, reference, width) -> None:
    x, gate = random_rows(1, 513, width), random_rows(2, 513, width) * np.float32(40)
    weight, table = random_rows(3, width), random_rows(4, 513, 2, 4)
    heads = random_rows(5, 513, 3, 8)
    expected = heads.copy()
    reference.rope(expected, table)
    for k in crew:
        assert_same_bits(k.shrink(x).halves, reference.shrink(x).halves)
        assert_same_bits(k.expand(k.shrink(x)), reference.expand(reference.shrink(x)))
        assert_same_bits(k.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
        assert_same_bits(k.silu_multiply(gate, x), reference.silu_multiply(gate, x))
        assert_same_bits(k.gelu_multiply(gate, x), reference.gelu_multiply(gate, x))
        assert_same_bits(k.add(x, gate), reference.add(x, gate))
        rotated = heads.copy()
        k.rope(rotated, table)
        assert_same_bits(rotated, expected)


@pytest.mark.parametrize("width", [8, 24, 40, 128])
def test_a_norm_of_heads_is_the_norm_of_each_head(kernels, width) -> None:
    x, weight = random_rows(1, 5, 3, width), random_rows(2, width)
    every = kernels.rms_norm(x, weight, 1e-6)
    for head in range(3):
        one = kernels.rms_norm(np.ascontiguousarray(x[:, head]), weight, 1e-6)
        assert_same_bits(every[:, head], one)


def test_every_half_and_every_rounding_tie(compiled, reference) -> None:
    finite = np.array([h for h in range(1 << 16) if h & 0x7C00 != 0x7C00], np.uint16)
    hidden = compiled.shrink(np.zeros((1, 1), np.float32))._replace(
        halves=finite.reshape(62, -1), exponents=np.arange(62, dtype=np.uint8)
    )
    assert_same_bits(compiled.expand(hidden), reference.expand(hidden))
    values = finite.view(np.float16).astype(np.float32)
    ties = (values[:-1] + values[1:]) / np.float32(2)
    near = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, values[1:])])
    near = near[np.abs(near) < 65504].reshape(1, -1)
    assert_same_bits(compiled.shrink(near).halves, reference.shrink(near).halves)


@pytest.mark.parametrize("width", [2, 8, 24, 64, 100])
def test_rope(compiled, reference, width) -> None:
    table = random_rows(1, 5, 2, width // 2)
    one = random_rows(2, 5, 3, width)
    other = one.copy()
    compiled.rope(one, table)
    reference.rope(other, table)
    assert_same_bits(one, other)


def assert_same_caches(one: CacheLayer, other: CacheLayer) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize("cache_kind", CacheKind)
@pytest.mark.parametrize("width", [4, 8, 12, 40, 42, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (8, 1)])
def test_cache_and_attention(compiled, reference, width, heads, kv_heads, cache_kind) -> None:
    caches = [allocate_cache_layer(kv_heads, width, 200, cache_kind) for _ in range(2)]
    keys, values = random_rows(1, 150, kv_heads, width), random_rows(2, 150, kv_heads, width)
    keys[5] *= np.float32(1e-6)  # subnormal in fp16
    keys[6] = values[7] = 0
    values[8] *= np.float32(1e-33)  # too small for a scale
    queries = random_rows(3, 40, heads, width)
    queries[0] *= np.float32(100)  # weights far below 2^-64
    queries[1] = 0
    for kernels, cache in zip((compiled, reference), caches, strict=True):
        kernels.store(cache, keys, values, 3)
    assert_same_caches(*caches)
    for tokens, position in ((1, 0), (1, 63), (1, 64), (2, 152), (40, 50)):
        one = compiled.attention(queries[:tokens], caches[0], position)
        assert_same_bits(one, reference.attention(queries[:tokens], caches[1], position))
        for window in (1, 15, 64, 100, 1000):
            seen = position, window, 0.125
            one = compiled.attention(queries[:tokens], caches[0], *seen)
            assert_same_bits(one, reference.attention(queries[:tokens], caches[1], *seen))


@pytest.mark.parametrize("window", [0, 1, 5, 64, 70])
@pytest.mark.parametrize("cache_kind", CacheKind)
def test_a_prompt_may_be_cut_anywhere(kernels, cache_kind, window) -> None:
    keys, values = random_rows(1, 150, 2, 16), random_rows(2, 150, 2, 16)
    queries = random_rows(3, 150, 6, 16)
    whole = None
    for chunk in (150, 64, 7, 1):
        cache = allocate_cache_layer(2, 16, 150, cache_kind)
        parts = []
        for start in range(0, 150, chunk):
            part = slice(start, start + chunk)
            kernels.store(cache, keys[part], values[part], start)
            parts.append(kernels.attention(queries[part], cache, start, window))
        whole = np.concatenate(parts) if whole is None else whole
        assert_same_bits(np.concatenate(parts), whole)


@pytest.mark.parametrize("cache_kind", CacheKind)
def test_what_stands_before_the_window_does_not_matter(kernels, cache_kind) -> None:
    cache = allocate_cache_layer(2, 8, 256, cache_kind)
    kernels.store(cache, random_rows(1, 200, 2, 8), random_rows(2, 200, 2, 8), 0)
    queries = random_rows(3, 5, 6, 8)
    for window in (1, 3, 64, 130):
        before = kernels.attention(queries, cache, 190, window)
        seen = 190 - window + 1
        other = np.full((seen, 2, 8), 6e4, np.float32)
        changed = allocate_cache_layer(2, 8, 256, cache_kind)
        kernels.store(changed, random_rows(1, 200, 2, 8), random_rows(2, 200, 2, 8), 0)
        kernels.store(changed, other, -other, 0)
        assert_same_bits(kernels.attention(queries, changed, 190, window), before)
    whole = kernels.attention(queries, cache, 190)
    for window in (195, 256, 100_000):
        assert_same_bits(kernels.attention(queries, cache, 190, window), whole)


@pytest.mark.parametrize("cache_kind", CacheKind)
def test_what_stood_later_in_the_cache_does_not_matter(kernels, cache_kind) -> None:
    cache = allocate_cache_layer(1, 8, 128, cache_kind)
    kernels.store(cache, random_rows(1, 128, 1, 8), random_rows(2, 128, 1, 8), 0)
    queries = random_rows(3, 5, 4, 8)
    before = kernels.attention(queries, cache, 60)
    later = np.full((63, 1, 8), 6e4, np.float32)
    kernels.store(cache, later, -later, 65)
    assert_same_bits(kernels.attention(queries, cache, 60), before)


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("cache_kind", CacheKind)
def test_attention_of_a_long_prompt(crew, reference, cache_kind, window) -> None:
    keys, values = random_rows(1, 520, 2, 12), random_rows(2, 520, 2, 12)
    queries = random_rows(3, 513, 6, 12)
    caches = [allocate_cache_layer(2, 12, 520, cache_kind) for _ in range(1 + len(crew))]
    for kernels, cache in zip((reference, *crew), caches, strict=True):
        kernels.store(cache, keys[:7], values[:7], 0)
        kernels.store(cache, keys[7:], values[7:], 7)
    expected = reference.attention(queries, caches[0], 7, window)
    for kernels, cache in zip(crew, caches[1:], strict=True):
        assert_same_caches(cache, caches[0])
        assert_same_bits(kernels.attention(queries, cache, 7, window), expected)


def test_any_number_of_threads(crew, compiled) -> None:
    x = awkward_rows(1, 11, 96)
    keys, values = random_rows(2, 70, 3, 16), random_rows(3, 70, 3, 16)
    queries, table = random_rows(4, 11, 6, 16), random_rows(5, 11, 2, 8)
    caches = [allocate_cache_layer(3, 16, 70, cache_kind) for cache_kind in CacheKind]
    for cache in caches:
        compiled.store(cache, keys, values, 0)
    for kernels in crew:
        for kind in KINDS:
            for rows in (1, 8, 43):
                matrix = packed(kind, rows, whole_blocks(kind, 3))
                for tokens in (1, 11):
                    wide = awkward_rows(1, 11, matrix.columns)[:tokens]
                    expected = multiply(compiled, matrix, wide)
                    assert_same_bits(multiply(kernels, matrix, wide), expected)
        weight = random_rows(6, 96)
        assert_same_bits(kernels.rms_norm(x, weight, 1e-6), compiled.rms_norm(x, weight, 1e-6))
        assert_same_bits(kernels.silu_multiply(x, x), compiled.silu_multiply(x, x))
        assert_same_bits(kernels.gelu_multiply(x, x), compiled.gelu_multiply(x, x))
        assert_same_bits(kernels.add(x, x), compiled.add(x, x))
        assert_same_bits(kernels.add(x, weight), compiled.add(x, weight))
        assert_same_bits(kernels.expand(kernels.shrink(x)), compiled.expand(compiled.shrink(x)))
        one, other = queries.copy(), queries.copy()
        kernels.rope(one, table)
        compiled.rope(other, table)
        assert_same_bits(one, other)
        for cache in caches:
            expected = compiled.attention(queries, cache, 50)
            assert_same_bits(kernels.attention(queries, cache, 50), expected)


def test_no_tokens_are_no_trouble(kernels) -> None:
    nothing = np.zeros((0, 64), np.float32)
    for kind in KINDS:
        matrix = packed(kind, 9, whole_blocks(kind, 2))
        none = np.zeros((0, matrix.columns), np.float32)
        assert multiply(kernels, matrix, none).shape == (0, 9)
    assert kernels.expand(kernels.shrink(nothing)).shape == (0, 64)
    assert kernels.rms_norm(nothing, np.ones(64, np.float32), 1e-5).shape == (0, 64)
    assert kernels.silu_multiply(nothing, nothing).shape == (0, 64)
    assert kernels.gelu_multiply(nothing, nothing).shape == (0, 64)
    assert kernels.add(nothing, nothing).shape == (0, 64)
    assert kernels.add(nothing, np.ones(64, np.float32)).shape == (0, 64)
    heads = np.zeros((0, 2, 16), np.float32)
    kernels.rope(heads, np.zeros((0, 2, 8), np.float32))
    for cache_kind in CacheKind:
        cache = allocate_cache_layer(2, 16, 64, cache_kind)
        kernels.store(cache, heads, heads, 64)
        assert kernels.attention(heads, cache, 64).shape == (0, 32)
