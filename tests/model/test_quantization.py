"""Quantizing, with the gguf package as the judge of every byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgellama.model.k_quants import pack_affine, pack_signed
from edgellama.model.quantization import OUTPUT_KINDS, quantize_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

K_KINDS = ("Q4_K", "Q5_K", "Q6_K")
LEVELS = {"Q4_K": 15, "Q5_K": 31}


def dequantized(kind_name: str, raw: NDArray[np.uint8]) -> Floats:
    values: Floats = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind_name])
    return values


def half(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)


def simple_reference(kind_name: str, rows: Floats) -> Floats:
    """Quantize from the least to the greatest weight of a sub-block, nearest everywhere."""
    if kind_name == "Q6_K":
        x = rows.reshape(-1, 16, 16)
        extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
        scale = extreme / np.float32(-32)
        widest = np.take_along_axis(scale, np.abs(scale).argmax(1)[:, None], 1)
        d = half(widest / np.float32(-128))
        step = d * np.rint(np.divide(scale, d, out=np.zeros_like(scale), where=d != 0)).clip(
            -128, 127
        )
        q = np.rint(np.divide(x, step, out=np.zeros_like(x), where=step != 0)).clip(-32, 31)
        return (step * q).reshape(rows.shape)
    levels = LEVELS[kind_name]
    x = rows.reshape(-1, 8, 32)
    low = np.minimum(x.min(-1, keepdims=True), 0)
    scale = (np.maximum(x.max(-1, keepdims=True), 0) - low) / np.float32(levels)
    d, dmin = half(scale.max(1, keepdims=True) / 63), half(-low.min(1, keepdims=True) / 63)
    step = d * np.rint(np.divide(scale, d, out=np.zeros_like(scale), where=d != 0)).clip(0, 63)
    minimum = dmin * np.rint(np.divide(-low, dmin, out=np.zeros_like(low), where=dmin != 0)).clip(
        0, 63
    )
    q = np.rint(np.divide(x + minimum, step, out=np.zeros_like(x), where=step != 0)).clip(0, levels)
    return (step * q - minimum).reshape(rows.shape)


def squared_error(values: Floats, rows: Floats) -> NDArray[np.float64]:
    """Return float64 [rows, blocks of 256]."""
    difference = values.astype(np.float64) - rows.astype(np.float64)
    return np.square(difference).reshape(len(rows), -1, 256).sum(-1)


ROWS_OF_BLOCKS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([256, 512])),
    elements=st.floats(-4, 4, width=32).map(lambda value: value if abs(value) > 1e-25 else 0.0)
    | st.sampled_from([0.0, -0.0, 1.0, -1.0, 60000.0, 2.0**-100, 2.0**-24, 2.0**-26]),
)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("kind_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@settings(deadline=None, max_examples=20)
@given(rows=ROWS_OF_BLOCKS)
def test_bytes_equal_the_oracles(kind_name: str, rows: Floats) -> None:
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind_name]).view(np.uint8)
    found = quantize_rows(kind_name, rows)
    assert found.dtype == np.uint8
    assert found.tobytes() == expected.tobytes()
    assert found.shape == (len(rows), OUTPUT_KINDS[kind_name].row_bytes(rows.shape[1]))


@pytest.mark.parametrize("kind_name", ["Q8_0", "Q4_0", "BF16"])
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_many_random_blocks_equal_the_oracles(kind_name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    scale = np.exp2(random.integers(-20, 10, (64, 1)))
    rows = (random.standard_normal((64, 256)) * scale).astype(np.float32)
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind_name])
    assert quantize_rows(kind_name, rows).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind_name", K_KINDS)
@settings(deadline=None, max_examples=15)
@given(rows=ROWS_OF_BLOCKS)
def test_no_block_errs_more_than_the_simple_reference(kind_name: str, rows: Floats) -> None:
    found = dequantized(kind_name, quantize_rows(kind_name, rows))
    error = squared_error(found, rows)
    simple = squared_error(simple_reference(kind_name, rows), rows)
    # Errors are compared in float32 there and in float64 here.
    assert (error <= simple * (1 + 1e-5)).all(), (error, simple)


@pytest.mark.parametrize(
    ("kind_name", "share"), [("Q4_K", 0.0720), ("Q5_K", 0.0360), ("Q6_K", 0.0181)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_error_on_normal_weights(kind_name: str, share: float, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((64, 1024)).astype(np.float32)
    rows *= np.float32(0.02)
    values = dequantized(kind_name, quantize_rows(kind_name, rows))
    error = float(np.sqrt(squared_error(values, rows).sum() / rows.size) / rows.std())
    simple = float(
        np.sqrt(squared_error(simple_reference(kind_name, rows), rows).sum() / rows.size)
        / rows.std()
    )
    assert error < share
    assert error < 0.97 * simple


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, levels=st.sampled_from([15, 31]))
def test_layout_of_q4_k_and_q5_k(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    d, dmin = half(random.uniform(1e-4, 10, (2, 6)).astype(np.float32))
    scales, minima = random.integers(0, 64, (2, 8, 6)).astype(np.float32)
    q = random.integers(0, levels + 1, (32, 8, 6)).astype(np.float32)
    fields = {"d": d, "dmin": dmin, "scales": scales, "minima": minima, "q": q}
    values = dequantized({15: "Q4_K", 31: "Q5_K"}[levels], pack_affine(fields, levels))
    expected = d * scales * q - dmin * minima
    assert (values == expected.transpose(2, 1, 0).reshape(6, 256)).all()


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_layout_of_q6_k(seed: int) -> None:
    random = np.random.default_rng(seed)
    d = half(random.uniform(-10, 10, 6).astype(np.float32))
    scales = random.integers(-128, 128, (16, 6)).astype(np.float32)
    q = random.integers(-32, 32, (16, 16, 6)).astype(np.float32)
    values = dequantized("Q6_K", pack_signed({"d": d, "scales": scales, "q": q}))
    assert (values == (d * scales * q).transpose(2, 1, 0).reshape(6, 256)).all()


@pytest.mark.parametrize("kind_name", K_KINDS)
def test_where_columns_count_more_they_err_less(kind_name: str) -> None:
    random = np.random.default_rng(9)
    rows = random.standard_normal((32, 512)).astype(np.float32)
    weights = np.where(np.arange(512) % 4 == 0, 50, 1).astype(np.float32)
    plain = dequantized(kind_name, quantize_rows(kind_name, rows))
    weighted = dequantized(kind_name, quantize_rows(kind_name, rows, weights))
    plain_error = (weights * np.square(plain - rows)).sum()
    weighted_error = (weights * np.square(weighted - rows)).sum()
    assert weighted_error < 0.9 * plain_error


@pytest.mark.parametrize("kind_name", OUTPUT_KINDS)
def test_zeros_stay_zeros(kind_name: str) -> None:
    rows = np.zeros((2, 256), np.float32)
    values = dequantized(kind_name, quantize_rows(kind_name, rows))
    assert not values.any()


@pytest.mark.parametrize("kind_name", OUTPUT_KINDS)
@pytest.mark.parametrize("number", [1e-45, -1e-38])
def test_the_least_numbers_raise_no_warning(kind_name: str, number: float) -> None:
    rows = np.zeros((1, 256), np.float32)
    rows[0, ::3] = number
    values = dequantized(kind_name, quantize_rows(kind_name, rows))
    assert np.abs(values).max() <= 1.01 * abs(number)


@pytest.mark.parametrize("kind_name", OUTPUT_KINDS)
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3e38])
def test_what_cannot_be_held_is_refused(kind_name: str, number: float) -> None:
    rows = np.full((1, 256), number, np.float32)
    if number == np.float32(3e38) and kind_name in ("F32", "BF16"):
        quantize_rows(kind_name, rows)
        return
    with pytest.raises(ValueError, match="holds a number"):
        quantize_rows(kind_name, rows)


@pytest.mark.parametrize("kind_name", OUTPUT_KINDS)
def test_rows_do_not_depend_on_their_neighbours(kind_name: str) -> None:
    rows = np.random.default_rng(3).standard_normal((5, 512)).astype(np.float32)
    together = quantize_rows(kind_name, rows)
    apart = np.concatenate([quantize_rows(kind_name, row[None]) for row in rows])
    assert (together == apart).all()


@pytest.mark.parametrize("kind_name", OUTPUT_KINDS)
def test_numbers_of_the_kinds(kind_name: str) -> None:
    kind = OUTPUT_KINDS[kind_name]
    oracle = gguf.GGMLQuantizationType[kind_name]
    assert kind == (oracle.value, *gguf.GGML_QUANT_SIZES[oracle])
