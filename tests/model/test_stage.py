"""Stages: sessions and their bounds, and the same bits for any cut, chunk, thread and backend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import edgellama_kernels
import gguf_writing
import numpy as np
import pytest
from edgellama_kernels import HiddenRows
from float64_llama import Float64Llama
from hypothesis import given, settings
from hypothesis import strategies as st
from model_running import (
    SESSION,
    PackedModel,
    Ring,
    SmallShape,
    llama_keys,
    llama_tensors,
    packed_model,
    write_llama,
)

from edgellama.errors import NonFiniteError, WireError
from edgellama.model.hidden import take_rows
from edgellama.model.stage import CHUNK_TOKENS_MAX, Stage
from edgellama.values import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama_kernels import Kernels

TOKENS = np.random.default_rng(5).integers(0, 40, 300).tolist()
TILE = 64  # positions that attention takes at a time


@pytest.fixture(scope="module", params=[("numpy", 1), ("numba", 1), ("numba", 2)], ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    backend, threads = request.param
    try:
        loaded = edgellama_kernels.load(backend, threads)
    except edgellama_kernels.BackendUnavailable as error:
        pytest.skip(str(error))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def numpy_kernels() -> Kernels:
    return edgellama_kernels.load("numpy")


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model with grouped heads whose width is not width / heads, nor a multiple of 32."""
    shape = SmallShape(layers=3)
    assert shape.head_width != shape.width // shape.heads
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    return write_llama(path, llama_keys(shape), llama_tensors(shape))


@pytest.fixture(scope="module")
def small(small_path: Path) -> PackedModel:
    return packed_model(small_path)


@pytest.mark.parametrize("count", [1, TILE, TILE + 1, CHUNK_TOKENS_MAX, 2 * CHUNK_TOKENS_MAX + 44])
def test_every_length_has_the_logits_of_float64(
    small: PackedModel, small_path: Path, kernels: Kernels, count: int
) -> None:
    """Hidden state and cache are fp16: logits of deviation 1.1 are off by 0.0005 on average."""
    logits = Ring(small, kernels, (3,)).prefill(TOKENS[:count], [count])
    error = np.abs(logits - Float64Llama(small_path).logits(TOKENS[:count]))
    assert error.max() < 0.01
    assert error.mean() < 0.001


@pytest.mark.parametrize(
    ("keys", "factors"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, None),
        ({"llama.rope.dimension_count": 8}, None),
        ({"llama.rope.freq_base": 500000.0}, np.linspace(1, 8, 8).astype(np.float32)),
    ],
    ids=["linear", "partial", "factors"],
)
def test_variants_of_rope_have_the_logits_of_float64(
    tmp_path: Path,
    numpy_kernels: Kernels,
    keys: dict[str, str | float],
    factors: np.ndarray | None,
) -> None:
    shape = SmallShape()
    tensors = llama_tensors(shape) | ({} if factors is None else {"rope_freqs.weight": factors})
    path = write_llama(tmp_path / "variant.gguf", llama_keys(shape) | keys, tensors)
    logits = Ring(packed_model(path), numpy_kernels, (2,)).prefill(TOKENS[:200], [200])
    error = np.abs(logits - Float64Llama(path).logits(TOKENS[:200]))
    assert error.max() < 0.01
    plain = write_llama(tmp_path / "plain.gguf", llama_keys(shape), llama_tensors(shape))
    assert np.abs(logits - Float64Llama(plain).logits(TOKENS[:200])).max() > 0.1


@pytest.mark.shared_model
@pytest.mark.parametrize(
    ("kind_name", "error_max", "error_mean"),
    [
        ("F32", 0.05, 0.004),
        ("F16", 0.05, 0.004),
        ("BF16", 0.05, 0.004),
        ("Q8_0", 0.6, 0.08),
        ("Q4_0", 0.6, 0.08),
    ],
)
def test_trained_model_has_the_logits_of_float64(
    shared_model: Path,
    tmp_path: Path,
    kernels: Kernels,
    kind_name: str,
    error_max: float,
    error_mean: float,
) -> None:
    """Logits have a deviation of 7.4. Quantised matrices meet activations of 8 bits as well."""
    path = gguf_writing.quantized_copy(shared_model, tmp_path / "copy.gguf", kind_name)
    tokens = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338]
    logits = Ring(packed_model(path), kernels, (5,)).prefill(tokens, [5, 1])
    error = np.abs(logits - Float64Llama(path).logits(tokens))
    assert error.max() < error_max
    assert error.mean() < error_mean


@pytest.mark.parametrize("kind_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_cuts_chunks_threads_and_backends_do_not_change_a_bit(
    tmp_path: Path, kernels: Kernels, numpy_kernels: Kernels, kind_name: str, tied: bool
) -> None:
    # Rows of 96 and 64 are whole blocks, the down matrix of 40 columns is not and stays F32.
    shape = SmallShape(layers=3, width=64, tied=tied)
    path = write_llama(tmp_path / "f32.gguf", llama_keys(shape), llama_tensors(shape))
    model = packed_model(gguf_writing.quantized_copy(path, tmp_path / "q.gguf", kind_name))
    expected = Ring(model, numpy_kernels, (3,), 192).prefill(TOKENS[:150], [150])
    for counts, sizes in (
        ((3,), (150,)),
        ((1, 2), (64,)),
        ((2, 1), (63, 2, 65, 7)),
        ((1, 1, 1), (130, 1)),
    ):
        logits = Ring(model, kernels, counts, 192).prefill(TOKENS[:150], sizes)
        np.testing.assert_array_equal(logits, expected, err_msg=f"{counts} {sizes}")


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.sampled_from([(3,), (1, 2)]))
def test_any_chunks_give_the_same_bits(
    small: PackedModel, numpy_kernels: Kernels, sizes: list[int], counts: tuple[int, ...]
) -> None:
    expected = Ring(small, numpy_kernels, (3,)).prefill(TOKENS[:100], [100])
    logits = Ring(small, numpy_kernels, counts).prefill(TOKENS[:100], [*sizes, 100])
    np.testing.assert_array_equal(logits, expected)


def stage_of(
    model: PackedModel, kernels: Kernels, context: int = 64, sessions_max: int = 2
) -> Stage:
    return Stage(kernels, model.config, Span(1, 3), model.layers[1:], context, sessions_max)


def some_rows(count: int, width: int = 48, seed: int = 0) -> HiddenRows:
    random = np.random.default_rng(seed)
    halves = random.normal(0, 1, (count, width)).astype(np.float16).view(np.uint16)
    return HiddenRows(halves, np.zeros(count, np.uint8))


def assert_rows_equal(got: HiddenRows, expected: HiddenRows) -> None:
    np.testing.assert_array_equal(got.halves, expected.halves)
    np.testing.assert_array_equal(got.exponents, expected.exponents)


def test_truncated_positions_leave_no_trace(small: PackedModel, kernels: Kernels) -> None:
    stage = stage_of(small, kernels)
    stage.open(1)
    stage.open(2)
    rows = some_rows(40)
    expected = stage.forward(1, rows, 0)
    stage.forward(2, take_rows(rows, 0, 10), 0)
    stage.forward(2, some_rows(50, seed=9), 10)  # rejected drafts, or a life before
    assert stage.length(2) == 60
    stage.truncate(2, 10)
    assert stage.length(2) == 10
    rest = stage.forward(2, take_rows(rows, 10, 40), 10)
    assert_rows_equal(rest, take_rows(expected, 10, 40))


def test_sessions_do_not_see_each_other(small: PackedModel, numpy_kernels: Kernels) -> None:
    stage = stage_of(small, numpy_kernels)
    one, other = some_rows(20, seed=1), some_rows(20, seed=2)
    stage.open(1)
    expected = stage.forward(1, one, 0)
    stage.close(1)
    stage.open(1)
    stage.open(2)
    for position in range(20):
        stage.forward(2, take_rows(other, position, position + 1), position)
        got = stage.forward(1, take_rows(one, position, position + 1), position)
        assert_rows_equal(got, take_rows(expected, position, position + 1))


def test_sessions_are_bounded(small: PackedModel, numpy_kernels: Kernels) -> None:
    stage = stage_of(small, numpy_kernels)
    assert stage.sessions() == ()
    stage.open(5)
    stage.open(1 << 63)
    assert stage.sessions() == (5, 1 << 63)
    with pytest.raises(WireError, match="already holds 2 sessions"):
        stage.open(6)
    stage.close(5)
    stage.open(6)
    with pytest.raises(WireError, match="session 6 is already open"):
        stage.open(6)
    for verb in (stage.length, stage.close, lambda session: stage.truncate(session, 0)):
        with pytest.raises(WireError, match="session 5 is not open"):
            verb(5)


def test_a_step_that_does_not_fit_changes_nothing(
    small: PackedModel, numpy_kernels: Kernels
) -> None:
    stage = stage_of(small, numpy_kernels, context=20)
    with pytest.raises(WireError, match="session 1 is not open"):
        stage.forward(1, some_rows(1), 0)
    stage.open(1)
    expected = stage.forward(1, some_rows(20), 0)
    stage.truncate(1, 8)
    wrong: list[tuple[HiddenRows, int, str]] = [
        (some_rows(1), 7, "stands at position 8, not 7"),
        (some_rows(1), 9, "stands at position 8, not 9"),
        (some_rows(13), 8, "cannot hold 21 positions, its context is 20"),
        (some_rows(1, width=47), 8, "shape .*rows of 48 belong"),
        (some_rows(0), 8, "shape"),
        (HiddenRows(some_rows(2).halves, np.zeros(1, np.uint8)), 8, "with 1 exponents"),
        (HiddenRows(some_rows(1).halves[0], np.zeros(1, np.uint8)), 8, "shape"),
        (HiddenRows(some_rows(1).halves.view(np.int16), np.zeros(1, np.uint8)), 8, "shape"),
    ]
    for rows, position, message in wrong:
        with pytest.raises(WireError, match=message):
            stage.forward(1, rows, position)
    for length in (-1, 9):
        with pytest.raises(WireError, match=f"holds 8 positions, not {length}"):
            stage.truncate(1, length)
    assert stage.length(1) == 8
    got = stage.forward(1, take_rows(some_rows(20), 8, 20), 8)
    assert_rows_equal(got, take_rows(expected, 8, 20))


def test_numbers_that_are_not_finite_are_refused(small: PackedModel, kernels: Kernels) -> None:
    stage = stage_of(small, kernels)
    stage.open(SESSION)
    rows = some_rows(5)
    expected = stage.forward(SESSION, rows, 0)
    stage.truncate(SESSION, 0)
    for half, exponent in ((0x7C00, 0), (0xFC00, 0), (0x7E00, 0), (0x7BFF, 255)):
        halves, exponents = rows.halves.copy(), rows.exponents.copy()
        halves[3, 7] = half
        exponents[3] = exponent
        with pytest.raises(NonFiniteError, match="layers 1 to 2 met a number"):
            stage.forward(SESSION, HiddenRows(halves, exponents), 0)
        assert stage.length(SESSION) == 0
    assert_rows_equal(stage.forward(SESSION, rows, 0), expected)


def test_large_rows_keep_their_size(small: PackedModel, kernels: Kernels) -> None:
    """A row beyond fp16 travels with an exponent; both ways of writing it mean the same."""
    stage = stage_of(small, kernels)
    stage.open(1)
    stage.open(2)
    halves = (np.linspace(-1, 1, 48) * 30000).astype(np.float16)
    plain = HiddenRows(halves.view(np.uint16)[None], np.zeros(1, np.uint8))
    scaled = HiddenRows((halves / 4).view(np.uint16)[None], np.full(1, 2, np.uint8))
    assert_rows_equal(stage.forward(1, plain, 0), stage.forward(2, scaled, 0))


def test_an_open_session_costs_no_memory_until_it_is_used(
    tmp_path: Path, numpy_kernels: Kernels
) -> None:
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        pytest.skip("the system does not tell what memory is resident in /proc/self/statm")
    context = 1 << 20
    shape = SmallShape(context=context)
    model = packed_model(write_llama(tmp_path / "f", llama_keys(shape), llama_tensors(shape)))
    stage = Stage(numpy_kernels, model.config, Span(0, 2), model.layers, context, 1)
    reserved_bytes = 2 * context * 2 * shape.kv_heads * shape.head_width * 2

    def resident_bytes() -> int:
        return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before_bytes = resident_bytes()
    stage.open(SESSION)
    stage.forward(SESSION, some_rows(10), 0)
    assert resident_bytes() - before_bytes < reserved_bytes / 8
