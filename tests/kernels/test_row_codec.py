"""The lossy row codec: NumPy and compiled alike, each row by itself, its error bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from edgellama_kernels import Kernels, row_codec, row_codec_compiled
from edgellama_kernels.row_codec import OUTLIERS, REFERENCE, PackedRows, RowCodec, blocks, outliers
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTHS = [1, 3, 4, 5, 63, 64, 65, 200, 576, 2048]
KINDS = ["gaussian", "any bits", "tiny", "equal", "zeros", "massive"]


def rows_of(kind: str, width: int, rows: int = 3, seed: int = 0) -> NDArray[np.uint16]:
    """Return finite fp16 bits [rows, width]."""
    dice = np.random.default_rng(seed)
    if kind == "gaussian":
        return dice.normal(0, 1, (rows, width)).astype(np.float16).view(np.uint16)
    if kind == "massive":
        halves = dice.normal(0, 1, (rows, width)).astype(np.float16)
        halves[:, dice.integers(0, width, 3)] = 3000
        return halves.view(np.uint16)
    if kind == "equal":
        return np.full((rows, width), 0x7BFF, np.uint16)
    if kind == "zeros":
        return np.full((rows, width), 0x8000, np.uint16)
    halves = dice.integers(0, 1 << 16, (rows, width), dtype=np.uint16)
    if kind == "tiny":
        return halves & np.uint16(0x80FF)
    halves[(halves & 0x7C00) == 0x7C00] ^= 0x4000
    return halves


def numbers(halves: NDArray[np.uint16]) -> NDArray[np.float64]:
    return halves.view(np.float16).astype(np.float64)


def assert_same(got: PackedRows, expected: PackedRows) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


@pytest.fixture
def codec(kernels: Kernels) -> RowCodec:
    return kernels.row_codec


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_give_the_same_bytes(kind: str, width: int, codec: RowCodec) -> None:
    halves = rows_of(kind, width)
    packed = codec.pack(halves)
    assert_same(packed, REFERENCE.pack(halves))
    assert codec.unpack(packed, width).tobytes() == REFERENCE.unpack(packed, width).tobytes()


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.sampled_from(KINDS))
def test_any_rows_in_both_backends(seed: int, width: int, kind: str) -> None:
    pytest.importorskip("numba")
    compiled = row_codec_compiled.COMPILED
    halves = rows_of(kind, width, 2, seed)
    packed = compiled.pack(halves)
    assert_same(packed, REFERENCE.pack(halves))
    assert compiled.unpack(packed, width).tobytes() == REFERENCE.unpack(packed, width).tobytes()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(1, 150))
def test_whatever_a_peer_may_send_is_unpacked_alike_and_finite(seed: int, width: int) -> None:
    pytest.importorskip("numba")
    compiled = row_codec_compiled.COMPILED
    dice = np.random.default_rng(seed)
    count = outliers(width)
    columns = np.sort(dice.permutation(width)[:count])[None].astype(np.uint16)
    packed = PackedRows(
        columns,
        rows_of("any bits", count, 1, seed),
        rows_of("any bits", blocks(width), 1, seed) & np.uint16(0x7FFF),
        dice.integers(-128, 128, (1, 64 * blocks(width)), dtype=np.int8),
    )
    halves = REFERENCE.unpack(packed, width)
    assert np.isfinite(numbers(halves)).all()
    assert compiled.unpack(packed, width).tobytes() == halves.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [5, 200, 576])
def test_a_row_is_packed_by_itself(kind: str, width: int, codec: RowCodec) -> None:
    """So a prompt in one piece and token by token, and a step said again, give the same bytes."""
    halves = rows_of(kind, width, 7)
    together = codec.pack(halves)
    for row in range(7):
        alone = codec.pack(halves[row : row + 1])
        assert_same(alone, PackedRows(*(part[row : row + 1] for part in together)))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_block_is_bounded_by_half_a_level(
    kind: str, width: int, codec: RowCodec
) -> None:
    halves = rows_of(kind, width)
    packed = codec.pack(halves)
    x = numbers(halves)
    error = numbers(codec.unpack(packed, width)) - x
    np.put_along_axis(x, packed.columns.astype(np.int64), 0, axis=1)
    for first in range(0, width, 64):
        rotated = np.abs(row_codec.rotated(_block(x, first))).max(axis=(1, 2))
        # Of each of 64 numbers half a level, and what the scale's rounding makes of 127 levels;
        # scales among the least fp16 numbers are coarse, but then everything is about as small.
        allowed = 8 * (rotated * (0.5 / 127 + 2.0**-11) + 64 * 2.0**-24)
        rounding = np.abs(x[:, first : first + 64]).max(axis=1) * 8 * 2.0**-11
        got = np.sqrt((error[:, first : first + 64] ** 2).sum(axis=1))
        assert (got <= allowed + rounding + 8 * 2.0**-24).all()


def _block(x: NDArray[np.float64], first: int) -> NDArray[np.float32]:
    block = np.zeros((len(x), 64), np.float32)
    block[:, : len(x[0, first : first + 64])] = x[:, first : first + 64]
    return block.reshape(-1, 8, 8)


def test_the_rotation_keeps_lengths_and_undoes_itself() -> None:
    x = np.random.default_rng(0).integers(-1000, 1000, (5, 8, 8)).astype(np.float32)
    turned = row_codec.rotated(x)
    assert np.array_equal(row_codec.rotated(turned), x)
    lengths = [(each.astype(np.float64) ** 2).sum(axis=(1, 2)) for each in (x, turned)]
    assert np.array_equal(*lengths)
    one = np.zeros((1, 8, 8), np.float32)
    one[0, 2, 5] = 8
    assert np.array_equal(np.abs(row_codec.rotated(one)), np.ones((1, 8, 8)))


def test_outliers_are_exact_and_spare_their_neighbours(codec: RowCodec) -> None:
    halves = rows_of("gaussian", 256, 1)
    plain = np.abs(numbers(codec.unpack(codec.pack(halves), 256)) - numbers(halves)).max()
    halves[0, [3, 70, 71]] = np.array([3000, -2000, 60000], np.float16).view(np.uint16)
    packed = codec.pack(halves)
    assert {3, 70, 71} < set(packed.columns[0].tolist())
    again = codec.unpack(packed, 256)
    assert again[0, [3, 70, 71]].tolist() == halves[0, [3, 70, 71]].tolist()
    assert np.abs(numbers(again) - numbers(halves)).max() <= 1.5 * plain


def test_of_equal_numbers_the_first_ones_are_outliers(codec: RowCodec) -> None:
    packed = codec.pack(rows_of("equal", 200, 1))
    assert packed.columns.tolist() == [list(range(OUTLIERS))]


def test_no_rows(codec: RowCodec) -> None:
    packed = codec.pack(np.empty((0, 100), np.uint16))
    assert packed.quants.shape == (0, 128)
    assert codec.unpack(packed, 100).shape == (0, 100)


def test_a_backend_that_packs_otherwise_is_found(codec: RowCodec) -> None:
    assert row_codec.agrees(codec)

    def wrong(halves: NDArray[np.uint16]) -> PackedRows:
        packed = codec.pack(halves)
        return packed._replace(quants=packed.quants ^ np.int8(1))

    assert not row_codec.agrees(codec._replace(pack=wrong))
    assert not row_codec.agrees(codec._replace(unpack=lambda *packed: codec.unpack(*packed) ^ 1))
