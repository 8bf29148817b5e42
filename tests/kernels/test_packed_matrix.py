from __future__ import annotations

import gguf
import numpy as np
import pytest
from edgellama_kernels import PackedMatrix, WeightKind, packed_bytes
from edgellama_kernels.kinds import block_quants
from edgellama_kernels.layout import row_bytes
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_same_bits, packed, raw_matrix, whole_blocks

KINDS = list(WeightKind)


def gguf_values(kind: WeightKind, raw: np.ndarray, columns: int) -> np.ndarray:
    """What the gguf package makes of the same bytes."""
    if kind is WeightKind.F32:
        return raw.view(np.float32)
    if kind is WeightKind.F16:
        return raw.view(np.float16).astype(np.float32)
    kind_of_gguf = gguf.GGMLQuantizationType[kind.value]
    return quants.dequantize(raw, kind_of_gguf).reshape(len(raw), columns)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 30), blocks=st.integers(1, 4), seed=st.integers(0, 99))
def test_rows_come_back_as_gguf_reads_them(
    kind: WeightKind, rows: int, blocks: int, seed: int
) -> None:
    columns = whole_blocks(kind, blocks) if kind.quantized else blocks * 32 + seed % 32
    raw = raw_matrix(kind, rows, columns, seed)
    matrix = packed(kind, rows, columns, seed)
    assert_same_bits(matrix.dequantized_rows(range(rows)), gguf_values(kind, raw, columns))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_stored_piecewise_are_the_same(kind: WeightKind, monkeypatch) -> None:
    columns = whole_blocks(kind, 2)
    raw = raw_matrix(kind, 21, columns)
    matrix = PackedMatrix.zeros(kind, 21, columns)
    matrix.store_rows(16, raw[16:])
    matrix.store_rows(0, raw[:8])
    matrix.store_rows(8, raw[8:16])
    assert_same_bits(matrix.buffer, packed(kind, 21, columns).buffer)
    monkeypatch.setattr("edgellama_kernels.layout.WEIGHTS_AT_ONCE", 1)  # a group at a time
    assert_same_bits(matrix.buffer, packed(kind, 21, columns).buffer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_buffer_serves_and_sections_are_aligned(kind: WeightKind) -> None:
    columns = whole_blocks(kind, 3)
    matrix = packed(kind, 13, columns)
    frozen = np.frombuffer(bytearray(matrix.buffer.tobytes()), np.uint8)
    frozen.flags.writeable = False
    again = PackedMatrix(kind, 13, columns, frozen)
    assert_same_bits(again.dequantized_rows([12, 0]), matrix.dequantized_rows([12, 0]))
    assert matrix.buffer.size == packed_bytes(kind, 13, columns)
    assert matrix.buffer.size % 64 == 0
    assert (matrix.scales_address - matrix.address) % 64 == 0
    assert matrix.address % 64 == 0


def test_the_layout_is_the_one_drawn() -> None:
    matrix = packed(WeightKind.Q4_0, 16, 64)
    raw = raw_matrix(WeightKind.Q4_0, 16, 64).reshape(16, 2, 18)
    for row, block, byte in ((0, 0, 0), (9, 1, 7), (15, 0, 15)):
        group, lane = divmod(row, 8)
        at = ((group * 2 + block) * 4 + byte // 4) * 32 + lane * 4 + byte % 4
        assert matrix.buffer[at] == raw[row, block, 2 + byte]
    assert matrix.scales[1, 1, 3] == raw[11, 1, :2].view(np.uint16)[0]


BITS_PER_WEIGHT = {
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "Q8_0": 8.5,
    "Q4_0": 4.5,
    "Q4_1": 5,
    "Q5_0": 5.5,
    "Q5_1": 6,
    "Q2_K": 2.625,
    "Q3_K": 3.5625,
    "Q4_K": 4.625,
    "Q5_K": 5.625,
    "Q6_K": 6.5625,
}


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_weight_and_gguf_blocks_are_as_stated(kind: WeightKind) -> None:
    assert packed_bytes(kind, 64, 2048) * 8 == BITS_PER_WEIGHT[kind.value] * 64 * 2048
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.value]]
    assert (kind.block_size, kind.block_bytes) == sizes


@pytest.mark.parametrize(("bits", "kind"), [(6, WeightKind.Q6_K), (5, WeightKind.Q5_K)])
def test_planes_of_bits_are_the_ones_drawn(bits: int, kind: WeightKind) -> None:
    matrix, raw = packed(kind, 9, 512), raw_matrix(kind, 9, 512)
    quants = block_quants(kind, raw.reshape(9, 2, -1)).reshape(9, 512)
    for row, column in ((0, 0), (8, 511), (3, 300), (8, 17)):
        (group, lane), (block, place) = divmod(row, 8), divmod(column, 32)
        vector, byte = divmod(place, 4)
        low = matrix.quants[group, block, vector % 4, lane, byte] >> vector // 4 * 4 & 15
        width = bits - 4
        high = matrix.quants[group, block, 4 + vector % width, lane, byte]
        high = high >> vector // width * width & (1 << width) - 1
        assert low | high << 4 == quants[row, column]


def test_what_does_not_fit_is_refused() -> None:
    kind = WeightKind.Q8_0
    with pytest.raises(ValueError, match="32 columns"):
        packed_bytes(kind, 8, 33)
    with pytest.raises(ValueError, match="256 columns"):
        packed_bytes(WeightKind.Q6_K, 8, 288)
    for rows, columns in ((0, 32), (8, 0), (-1, 32), (1 << 40, 32)):
        with pytest.raises(ValueError, match="cannot be packed"):
            packed_bytes(kind, rows, columns)
    with pytest.raises(ValueError, match="size of the packed matrix"):
        PackedMatrix(kind, 8, 32, np.zeros(packed_bytes(kind, 8, 32) - 1, np.uint8))
    odd = np.zeros(packed_bytes(kind, 8, 32) + 4, np.uint8)
    start = 1 - odd.ctypes.data % 4
    with pytest.raises(ValueError, match="multiple of 4"):
        PackedMatrix(kind, 8, 32, odd[start % 4 :][: odd.size - 4])
    matrix = PackedMatrix.zeros(kind, 20, 32)
    raw = np.zeros((8, row_bytes(kind, 32)), np.uint8)
    for first, rows in ((4, raw), (-8, raw), (16, raw), (0, raw[:4]), (0, raw[:, 1:])):
        with pytest.raises(ValueError):
            matrix.store_rows(first, rows)
    for ids in ([20], [-1]):
        with pytest.raises(IndexError):
            matrix.dequantized_rows(ids)
