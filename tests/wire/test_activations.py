"""Hidden state on the wire: exact, compressed only where that saves, refused where unsound."""

from __future__ import annotations

import numpy as np
import pytest
from edgellama_kernels import HiddenRows
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import WireError
from edgellama.wire import activations
from edgellama.wire.activations import (
    CODEC_LZ4,
    CODEC_RAW,
    ROWS_MAX,
    WIDTH_MAX,
    ActivationEncoder,
    decode_hidden,
)

needs_lz4 = pytest.mark.skipif(not activations.lz4_available(), reason="lz4 is not installed")
WIDTH = 512


def noise(rows: int, width: int = WIDTH, seed: int = 0) -> HiddenRows:
    """Return rows as ordinary activations are: lz4 finds nothing in them."""
    random = np.random.default_rng(seed)
    halves = random.normal(0, 1, (rows, width)).astype(np.float16).view(np.uint16)
    return HiddenRows(halves, random.integers(0, 20, rows).astype(np.uint8))


def zeros(rows: int, width: int = WIDTH) -> HiddenRows:
    return HiddenRows(np.zeros((rows, width), np.uint16), np.zeros(rows, np.uint8))


def assert_same(got: HiddenRows, expected: HiddenRows) -> None:
    assert got.halves.dtype == np.uint16
    assert got.exponents.dtype == np.uint8
    assert got.halves.shape == expected.halves.shape
    assert got.halves.tobytes() == expected.halves.tobytes()
    assert got.exponents.tobytes() == expected.exponents.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 40),
    width=st.integers(1, 300),
    seed=st.integers(0, 1000),
    repeated=st.booleans(),
    reads_lz4=st.booleans(),
)
def test_there_and_back(rows: int, width: int, seed: int, repeated: bool, reads_lz4: bool) -> None:
    hidden = noise(rows, width, seed)
    if repeated and rows:
        hidden = HiddenRows(hidden.halves[[0] * rows], hidden.exponents)
    codec, payload = ActivationEncoder(peer_reads_lz4=reads_lz4).encode(hidden)
    assert_same(decode_hidden(codec, rows, width, payload), hidden)


def test_the_layout_is_exponents_and_then_halves() -> None:
    hidden = HiddenRows(
        np.array([[0x3C00, 0x0001], [0x8000, 0x7BFF]], np.uint16), np.array([3, 255], np.uint8)
    )
    assert ActivationEncoder(peer_reads_lz4=False).encode(hidden) == (
        CODEC_RAW,
        bytes.fromhex("03ff 003c 0100 0080 ff7b"),
    )


@needs_lz4
def test_lz4_is_used_where_it_saves_a_packet() -> None:
    codec, payload = ActivationEncoder(peer_reads_lz4=True).encode(zeros(4))
    assert codec == CODEC_LZ4
    assert len(payload) < 100
    assert_same(decode_hidden(codec, 4, WIDTH, payload), zeros(4))


@needs_lz4
@pytest.mark.parametrize(
    ("hidden", "reads_lz4"),
    [(noise(8), True), (zeros(1), True), (zeros(8), False)],
    ids=["nothing to find", "less than a packet", "the peer cannot read it"],
)
def test_rows_go_raw(hidden: HiddenRows, reads_lz4: bool) -> None:
    codec, payload = ActivationEncoder(peer_reads_lz4=reads_lz4).encode(hidden)
    assert codec == CODEC_RAW
    assert len(payload) == hidden.exponents.nbytes + hidden.halves.nbytes


def test_less_than_a_sixteenth_is_not_worth_it() -> None:
    """One row of zeros in twenty saves a packet, but under 1/16 of the bytes."""
    hidden = noise(40, 2048)
    hidden.halves[7] = hidden.halves[8] = 0
    assert ActivationEncoder(peer_reads_lz4=True).encode(hidden)[0] == CODEC_RAW


@needs_lz4
def test_after_eight_failures_it_is_tried_once_in_64(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0
    compress = activations.lz4_block.compress

    def counted(raw: bytes, store_size: bool) -> bytes:
        nonlocal tries
        tries += 1
        return compress(raw, store_size=store_size)  # type: ignore[no-any-return]

    monkeypatch.setattr(activations.lz4_block, "compress", counted)
    encoder = ActivationEncoder(peer_reads_lz4=True)
    for _ in range(8):
        encoder.encode(noise(4))
    assert tries == 8
    for _ in range(64 * 3):
        encoder.encode(noise(4))
    assert tries == 8 + 3
    codecs = [encoder.encode(zeros(4))[0] for _ in range(64)]
    assert codecs.count(CODEC_LZ4) == 1  # tried again, it saved: from now on always
    assert [encoder.encode(zeros(4))[0] for _ in range(3)] == [CODEC_LZ4] * 3


def test_without_lz4_rows_go_raw_and_lz4_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "lz4_block", None)
    assert not activations.lz4_available()
    codec, payload = ActivationEncoder(peer_reads_lz4=True).encode(zeros(4))
    assert codec == CODEC_RAW
    assert_same(decode_hidden(codec, 4, WIDTH, payload), zeros(4))
    with pytest.raises(WireError, match="without lz4"):
        decode_hidden(CODEC_LZ4, 4, WIDTH, b"anything")


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF], ids=hex)
@pytest.mark.parametrize("place", [0, -1])
def test_infinity_and_nan_are_refused(bits: int, place: int) -> None:
    hidden = noise(3, 16)
    hidden.halves.reshape(-1)[place] = bits
    codec, payload = ActivationEncoder(peer_reads_lz4=False).encode(hidden)
    with pytest.raises(WireError, match="infinity or NaN"):
        decode_hidden(codec, 3, 16, payload)


@pytest.mark.parametrize("bits", [0x7BFF, 0xFBFF, 0x0001, 0x8000, 0x0000], ids=hex)
def test_every_finite_number_is_taken(bits: int) -> None:
    hidden = HiddenRows(np.full((1, 4), bits, np.uint16), np.zeros(1, np.uint8))
    codec, payload = ActivationEncoder(peer_reads_lz4=False).encode(hidden)
    assert_same(decode_hidden(codec, 1, 4, payload), hidden)


@pytest.mark.parametrize("size", [0, 1, 32, 34, 66])
def test_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"of {size} bytes where 33 belong"):
        decode_hidden(CODEC_RAW, 1, 16, bytes(size))


@needs_lz4
@pytest.mark.parametrize("rows", [3, 5])
def test_a_wrong_size_under_lz4_is_refused(rows: int) -> None:
    codec, payload = ActivationEncoder(peer_reads_lz4=True).encode(zeros(4))
    with pytest.raises(WireError):
        decode_hidden(codec, rows, WIDTH, payload)


@pytest.mark.parametrize(
    ("codec", "rows", "width"),
    [(2, 1, 16), (255, 1, 16), (0, -1, 16), (0, ROWS_MAX + 1, 1), (0, 1, 0), (0, 1, WIDTH_MAX + 1)],
)
def test_what_is_outside_the_limits_is_refused(codec: int, rows: int, width: int) -> None:
    with pytest.raises(WireError):
        decode_hidden(codec, rows, width, bytes(33))


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 3), st.integers(0, 20), st.integers(1, 40), st.binary(max_size=300), st.data()
)
def test_any_payload(codec: int, rows: int, width: int, chance: bytes, data: st.DataObject) -> None:
    valid = ActivationEncoder(peer_reads_lz4=True).encode(zeros(rows, width))[1]
    payload = data.draw(st.sampled_from([chance, valid, valid[:-1], valid + b"\0"]))
    try:
        hidden = decode_hidden(codec, rows, width, memoryview(payload))
    except WireError:
        return
    assert hidden.halves.shape == (rows, width)
    assert np.isfinite(hidden.halves.view(np.float16)).all()
