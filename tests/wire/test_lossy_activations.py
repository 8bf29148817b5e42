"""Hidden state on a q8 link: the row codec's bytes, and a refusal of everything else."""

from __future__ import annotations

import numpy as np
import pytest
from edgellama_kernels import HiddenRows
from edgellama_kernels.row_codec import REFERENCE
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.values import WIRE_F16, WIRE_Q8
from edgellama.wire.activations import (
    CODEC_LZ4,
    CODEC_Q8,
    CODEC_RAW,
    ActivationEncoder,
    decode_hidden,
)
from edgellama.wire.lossy_activations import row_bytes

WIDTH = 200  # three whole blocks and a short one, four outliers


def noise(rows: int, width: int = WIDTH, seed: int = 0) -> HiddenRows:
    random = np.random.default_rng(seed)
    halves = random.normal(0, 1, (rows, width)).astype(np.float16).view(np.uint16)
    return HiddenRows(halves, random.integers(0, 20, rows).astype(np.uint8))


def encoded(hidden: HiddenRows) -> bytes:
    codec, payload = ActivationEncoder(peer_reads_lz4=True, wire=WIRE_Q8).encode(hidden)
    assert codec == CODEC_Q8
    return payload


def decoded(payload: bytes, rows: int = 1, width: int = WIDTH) -> HiddenRows:
    return decode_hidden(CODEC_Q8, rows, width, payload, wire=WIRE_Q8)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 20), width=st.integers(1, 300), seed=st.integers(0, 1000))
def test_there_and_back_is_what_the_row_codec_makes(rows: int, width: int, seed: int) -> None:
    hidden = noise(rows, width, seed)
    payload = encoded(hidden)
    assert len(payload) == rows * row_bytes(width)
    got = decoded(payload, rows, width)
    assert got.exponents.tobytes() == hidden.exponents.tobytes()
    assert got.halves.tobytes() == REFERENCE.unpack(REFERENCE.pack(hidden.halves), width).tobytes()


def test_the_layout() -> None:
    """One row of six: the four largest as they are, and 1 and 0.5 spread over the whole block."""
    row = np.array([[1, -8, 16, 0.5, 4, -2]], np.float16).view(np.uint16)
    payload = encoded(HiddenRows(row, np.array([3], np.uint8)))
    assert payload[0] == 3
    assert np.frombuffer(payload, "<u2", 4, 1).tolist() == [1, 2, 4, 5]
    assert np.frombuffer(payload, "<f2", 4, 9).tolist() == [-8, 16, 4, -2]
    assert np.frombuffer(payload, "<f2", 1, 17).tolist() == [np.float16(1.5 / 8 / 127)]
    quants = np.frombuffer(payload, np.int8, offset=19).reshape(8, 8)
    # 1.5 and 0.5, by the signs of columns 0 and 3; all rows alike, as there is but one.
    assert (quants == quants[:, :1]).all()
    assert quants[:, 0].tolist() == [127, 42, 42, 127, 127, 42, 42, 127]


def test_a_large_row_takes_half_of_its_bytes() -> None:
    assert row_bytes(4096) == 4096 + 2 * 64 + 4 * 4 + 1
    assert row_bytes(4096) / (1 + 2 * 4096) < 0.52


def test_rows_do_not_depend_on_what_travels_with_them() -> None:
    """So a step computed again in other chunks gives the next stage the same numbers."""
    hidden = noise(9)
    together = decoded(encoded(hidden), 9)
    for row in range(9):
        alone = HiddenRows(hidden.halves[row : row + 1], hidden.exponents[row : row + 1])
        assert decoded(encoded(alone)).halves.tobytes() == together.halves[row].tobytes()


@pytest.mark.parametrize(
    ("codec", "wire"), [(CODEC_RAW, WIRE_Q8), (CODEC_LZ4, WIRE_Q8), (CODEC_Q8, WIRE_F16)]
)
def test_what_the_plan_does_not_say_is_refused(codec: int, wire: str) -> None:
    with pytest.raises(WireError, match=f"codec {codec} on a link that carries {wire}"):
        decode_hidden(codec, 1, WIDTH, encoded(noise(1)), wire=wire)


@pytest.mark.parametrize("change", [-1, 1, 100])
def test_a_wrong_size_is_refused(change: int) -> None:
    with pytest.raises(WireError, match=f"where {row_bytes(WIDTH)} belong"):
        decoded(bytes(row_bytes(WIDTH) + change))


COLUMNS, OUTLIERS, SCALES = 1, 9, 17  # where they begin in a row of WIDTH


@pytest.mark.parametrize(
    ("at", "numbers", "words"),
    [
        (COLUMNS, [1, 2, 3, WIDTH], "out of their order"),
        (COLUMNS, [1, 2, 3, 0xFFFF], "out of their order"),
        (COLUMNS, [1, 2, 2, 3], "out of their order"),
        (COLUMNS, [2, 1, 3, 4], "out of their order"),
        (OUTLIERS, [0x7C00], "infinite or no number"),
        (OUTLIERS + 6, [0xFE00], "infinite or no number"),
        (SCALES, [0x7C00], "infinite or no number"),
        (SCALES + 6, [0x7E01], "infinite or no number"),
        (SCALES + 2, [0x8001], "infinite or no number"),
    ],
)
def test_what_no_sender_makes_is_refused(at: int, numbers: list[int], words: str) -> None:
    payload = bytearray(encoded(noise(1)))
    data = np.array(numbers, "<u2").tobytes()
    payload[at : at + len(data)] = data
    with pytest.raises(WireError, match=words):
        decoded(bytes(payload))


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 4), st.integers(1, 150), st.binary(max_size=80), st.integers(0, 2**32 - 1))
def test_any_payload(rows: int, width: int, chance: bytes, seed: int) -> None:
    payload = bytearray(encoded(noise(rows, width, seed)))
    for place, byte in zip(
        np.random.default_rng(seed).permutation(len(payload)), chance, strict=False
    ):
        payload[place] = byte
    try:
        hidden = decoded(bytes(payload), rows, width)
    except WireError:
        return
    assert hidden.halves.shape == (rows, width)
    assert np.isfinite(hidden.halves.view(np.float16)).all()
