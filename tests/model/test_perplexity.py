"""Perplexity: llama.cpp's chunks, and numbers that an independent float64 model confirms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import edgellama_kernels
import gguf_writing
import numpy as np
import pytest
from model_running import packed_model

from edgellama.errors import MisuseError
from edgellama.model.head import Head
from edgellama.model.perplexity import (
    Perplexity,
    chunk_nll,
    chunks_of,
    negative_log_likelihoods,
)
from edgellama.model.stage import Stage
from edgellama.model.tokenizer import Tokenizer
from edgellama.values import Span

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BOS = 1


@pytest.mark.parametrize(
    ("nothing", "firsts"),
    [([BOS], [BOS, BOS]), ([BOS, 2], [BOS, BOS]), ([], [BOS, 104]), ([2], [BOS, 104])],
)
def test_chunks_are_whole_and_begin_with_bos_where_the_model_does(
    nothing: list[int], firsts: list[int]
) -> None:
    tokens = [BOS, *range(101, 111)]
    whole = [[firsts[0], 101, 102, 103], [firsts[1], 105, 106, 107]]
    assert chunks_of(tokens, nothing, 4, None) == whole
    assert chunks_of(tokens, nothing, 4, 1) == whole[:1]
    assert chunks_of(tokens[:4], nothing, 4, 9) == whole[:1]
    for few in (3, 0):
        with pytest.raises(MisuseError, match=f"the text has {few} tokens, less than one chunk"):
            chunks_of(tokens[:few], nothing, 4, None)


def test_likelihoods_of_known_probabilities() -> None:
    logits = np.log(np.array([[1, 2, 5], [4, 4, 2]], np.float32) / np.float32(8)) + np.float32(700)
    nll = negative_log_likelihoods(logits, [2, 1])
    assert nll.dtype == np.float64
    np.testing.assert_allclose(nll, [-math.log(5 / 8), -math.log(4 / 10)], rtol=1e-4)


def test_huge_logits_neither_overflow_nor_vanish() -> None:
    logits = np.array([[3e38, -3e38, 0], [-1e30, -1e30, -1e30]], np.float32)
    nll = negative_log_likelihoods(logits, [1, 0])
    assert nll[0] == 2 * float(np.float32(3e38))
    assert nll[1] == math.log(3)


def test_summing_up() -> None:
    result = Perplexity.of([np.array([1.0, 2.0]), np.array([3.0, 4.0])], 6)
    assert result.nll == 2.5
    assert result.ppl == math.exp(2.5)
    assert result.nll_chunks == (1.5, 3.5)
    assert result.tokens == 4
    assert Perplexity.of([np.array([1.0])], 4).ppl_error == 0.0


def test_the_second_half_is_scored_as_the_float64_model_scores_it(tmp_path: Path) -> None:
    path = gguf_writing.random_model(tmp_path / "model.gguf", kind_name="F32", seed=4)
    assert_as_float64(path, [1, *range(5, 66)])


@pytest.mark.shared_model
def test_the_trained_model_as_the_float64_model(shared_model: Path) -> None:
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside. " * 9
    tokens = Tokenizer.from_gguf(shared_model).encode(text)[:256]
    nll = assert_as_float64(shared_model, tokens)
    assert nll < 2.0  # a model that knows such stories


def assert_as_float64(path: Path, chunk: list[int]) -> float:
    from float64_llama import Float64Llama

    model = packed_model(path)
    kernels = edgellama_kernels.load("numpy")
    layers = model.config.layers
    stage = Stage(kernels, model.config, Span(0, layers), model.layers, len(chunk), 1)
    found = chunk_nll(stage, Head(kernels, model.config, model.home), chunk)
    kernels.close()
    assert stage.sessions() == ()

    logits = Float64Llama(path).logits(chunk)
    half, last = len(chunk) // 2, len(chunk) - 1
    assert found.shape == (last - half,)
    expected: NDArray[np.float64] = np.array(
        [np.logaddexp.reduce(logits[t]) - logits[t][chunk[t + 1]] for t in range(half, last)]
    )
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert abs(found.mean() - expected.mean()) < 0.002
    return float(found.mean())
