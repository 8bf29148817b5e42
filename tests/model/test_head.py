"""Embedding and output head: which tokens, which rows, tied or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import edgellama_kernels
import numpy as np
import pytest
from edgellama_kernels import HiddenRows, Kernels
from model_running import (
    PackedModel,
    SmallShape,
    llama_keys,
    llama_tensors,
    packed_model,
    write_llama,
)

from edgellama.errors import NonFiniteError, WireError
from edgellama.model.head import Head
from edgellama.model.hidden import join_rows, take_rows

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = SmallShape(layers=1)
TENSORS = llama_tensors(SHAPE)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return edgellama_kernels.load("numpy")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackedModel:
    path: Path = tmp_path_factory.mktemp("head") / "small.gguf"
    return packed_model(write_llama(path, llama_keys(SHAPE), TENSORS))


@pytest.fixture
def head(model: PackedModel, kernels: Kernels) -> Head:
    return Head(kernels, model.config, model.home)


def test_embedding_is_the_tokens_rows_in_fp16(head: Head) -> None:
    hidden = head.embed([3, 0, 39, 3])
    expected = TENSORS["token_embd.weight"][[3, 0, 39, 3]].astype(np.float16)
    np.testing.assert_array_equal(hidden.halves.view(np.float16), expected)
    assert hidden.exponents.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("token_ids", [[], [40], [-1], [0, 1, 1 << 70]])
def test_unknown_tokens_are_refused(head: Head, token_ids: list[int]) -> None:
    with pytest.raises(WireError, match="tokens came that are not all of the 40"):
        head.embed(token_ids)


def test_logits_of_some_rows_are_those_of_all(head: Head) -> None:
    hidden = head.embed(list(range(40)))
    every = head.logits(hidden)
    assert every.shape == (40, 40)
    assert every.dtype == np.float32
    for first, past in ((39, 40), (0, 1), (7, 20)):
        np.testing.assert_array_equal(
            head.logits(take_rows(hidden, first, past)), every[first:past]
        )
    pieces = [take_rows(hidden, 0, 7), take_rows(hidden, 7, 40)]
    np.testing.assert_array_equal(head.logits(join_rows(pieces)), every)


def test_logits_are_the_normed_rows_times_the_output(head: Head) -> None:
    hidden = head.embed([11])
    x = hidden.halves[0].view(np.float16).astype(np.float64)
    x = x / np.sqrt((x * x).mean() + 1e-5) * TENSORS["output_norm.weight"]
    expected = TENSORS["output.weight"].astype(np.float64) @ x
    assert np.abs(head.logits(hidden)[0] - expected).max() < 1e-5


def test_wrong_rows_are_refused(head: Head) -> None:
    hidden = head.embed([1, 2])
    with pytest.raises(WireError, match="rows of 48"):
        head.logits(HiddenRows(hidden.halves[:, :-1], hidden.exponents))
    hidden.halves[1, 5] = 0x7C00
    with pytest.raises(NonFiniteError, match="the output head met a number"):
        head.logits(hidden)
