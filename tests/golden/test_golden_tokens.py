"""The law of the house on a trained model: no cut, chunk, thread or backend changes a bit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from golden_answers import GREEDY_IDS, LOGITS_SHA256, PROMPT, PROMPT_IDS, SAMPLED_IDS, TEXT_F32
from model_running import PackedModel, Ring, compositions

from edgellama.model.sampling import sample, validate
from edgellama.model.tokenizer import Tokenizer
from edgellama.values import SamplingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from edgellama_kernels import Kernels
    from numpy.typing import NDArray

pytestmark = pytest.mark.shared_model

CONTEXT = 128
CUTS = compositions(5)
EXTREME_CUTS = ((5,), (1, 1, 1, 1, 1))
SAMPLED = SamplingSettings(
    temperature=1.1, top_k=60, top_p=0.97, min_p=0.01, repeat_penalty=1.1, seed=2024
)


def check_all_rows(rows: NDArray[np.float32], kind_name: str) -> None:
    """Compare the logits of prompt and answer, [104, vocabulary], with the pinned ones."""
    chosen = rows[len(PROMPT_IDS) - 1 :].argmax(axis=1)
    assert tuple(chosen.tolist()) == GREEDY_IDS[kind_name]
    assert hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest() == LOGITS_SHA256[kind_name]


def test_five_layers_have_sixteen_cuts() -> None:
    assert len(set(CUTS)) == 16
    assert {sum(cut) for cut in CUTS} == {5}


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_every_cut_gives_the_same_answer(
    model: PackedModel, kind_name: str, kernels: Kernels, cut: tuple[int, ...]
) -> None:
    """Feed prompt and pinned answer; each logit row must choose the pinned next token.

    By induction that is what a greedy run would do. The compiled backend on one thread takes the
    99 answers one by one for every cut. So do the others, which need a second each, for the
    extreme cuts; for the rest they take the last 16 one by one and all before as one chunk.
    """
    text = [*PROMPT_IDS, *GREEDY_IDS[kind_name]][:-1]
    fast = kernels.name == "numba" and kernels.threads == 1
    single_steps = 99 if fast or cut in EXTREME_CUTS else 16
    first = len(text) - single_steps
    ring = Ring(model, kernels, cut, CONTEXT)
    check_all_rows(ring.prefill(text, [first, 1]), kind_name)


@pytest.mark.parametrize("sizes", [(2,), (3, 5, 7), (16,), (64,), (63, 1, 40), (104,)], ids=str)
@pytest.mark.parametrize("cut", [(5,), (2, 3)], ids=str)
def test_every_chunking_gives_the_same_answer(
    model: PackedModel,
    kind_name: str,
    kernels: Kernels,
    cut: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    text = [*PROMPT_IDS, *GREEDY_IDS[kind_name]][:-1]
    check_all_rows(Ring(model, kernels, cut, CONTEXT).prefill(text, sizes), kind_name)


def test_pinned_ids_are_the_text(model: PackedModel, kind_name: str) -> None:
    tokenizer = Tokenizer.from_gguf(model.gguf)
    assert tuple(tokenizer.encode(PROMPT)) == PROMPT_IDS
    assert tokenizer.size == model.config.vocabulary
    text = tokenizer.decode([*PROMPT_IDS, *GREEDY_IDS[kind_name]])
    assert text.startswith(PROMPT + ", there was a little girl named Lily.")
    if kind_name == "F32":
        assert text == PROMPT + TEXT_F32


def test_greedy_run_feeds_its_own_tokens(
    model: PackedModel, kind_name: str, kernels: Kernels
) -> None:
    count = 100 if kernels.name == "numba" else 30
    answer = Ring(model, kernels, (1, 3, 1), CONTEXT).greedy(PROMPT_IDS, count)
    assert tuple(answer) == GREEDY_IDS[kind_name][:count]


def sampled_run(ring: Ring, text: Sequence[int], count: int) -> list[int]:
    """Continue ``text`` by drawing ``count`` tokens, each at its own position."""
    text = list(text)
    step = text
    for _ in range(count):
        logits = ring.logits(step, len(text) - len(step))[0]
        text.append(sample(logits, SAMPLED, len(text), text))
        step = text[-1:]
    return text[-count:]


@pytest.mark.parametrize("cut", [(5,), (1, 4), (2, 2, 1), (1, 1, 1, 1, 1)], ids=str)
def test_sampled_answer_is_the_same_for_every_cut(
    model: PackedModel, kind_name: str, kernels: Kernels, cut: tuple[int, ...]
) -> None:
    validate(SAMPLED)
    expected = SAMPLED_IDS[kind_name]
    count = len(expected) if kernels.name == "numba" or cut == (5,) else 10
    assert (
        tuple(sampled_run(Ring(model, kernels, cut, CONTEXT), PROMPT_IDS, count))
        == (expected[:count])
    )


def test_another_ring_continues_a_sampled_answer(
    model: PackedModel, kind_name: str, kernels: Kernels
) -> None:
    """After a loss the text so far is fed to a new ring; the draws go on as if nothing was."""
    expected = SAMPLED_IDS[kind_name]
    kept = 20
    text = [*PROMPT_IDS, *expected[:kept]]
    rest = sampled_run(Ring(model, kernels, (3, 2), CONTEXT), text, 10)
    assert tuple(rest) == expected[kept : kept + 10]
