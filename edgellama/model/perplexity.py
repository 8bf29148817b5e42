"""How well a model foretells a text, chunk by chunk as llama.cpp measures it.

The text's tokens are cut into whole chunks of the context and the rest is dropped. Each chunk is
a text of its own: its first token is replaced by BOS where the model puts one. Its second half is
scored, as there each token has much before it: the rows at positions from the middle to the last
but one foretell the tokens after them. So the numbers can be laid beside those of
``llama-perplexity``.

The logits are those of the law, the same bits on every device. What is made of them here is a
measurement and no part of the law: NumPy's exponential and logarithm in float64, whose last bits
may differ between machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.errors import MisuseError
from edgellama.model.hidden import take_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgellama.model.head import Head
    from edgellama.model.stage import Stage

CONTEXT_DEFAULT: Final = 512  # as llama.cpp's, so that the numbers can be compared
CONTEXT_MIN: Final = 4  # below it a chunk has no token to score in its second half
HEAD_ROWS_MAX: Final = 32  # logits of a large vocabulary take 600 KB a row, with their float64
EXPONENT_MAX: Final = 709.0  # the exponential of more is no float64

_SESSION: Final = 1


@dataclass(frozen=True)
class Perplexity:
    """``nll_chunks``: of each chunk the mean negative log-likelihood of a scored token, in nats.

    ``nll`` is the mean over all scored tokens and ``ppl`` its exponential; ``ppl_error`` is one
    standard error of it. ``tokens`` were scored, in chunks of ``context``.
    """

    ppl: float
    ppl_error: float
    nll: float
    nll_chunks: tuple[float, ...]
    tokens: int
    context: int

    @classmethod
    def of(cls, nlls: Sequence[NDArray[np.float64]], context: int) -> Perplexity:
        """Sum up the chunks, each float64 [scored tokens of a chunk]; at least one."""
        every = np.concatenate(nlls)
        nll = float(every.mean())
        error = float(every.std(ddof=1)) / math.sqrt(every.size) if every.size > 1 else 0.0
        ppl = math.exp(nll) if nll < EXPONENT_MAX else math.inf
        chunks = tuple(float(each.mean()) for each in nlls)
        return cls(ppl, ppl * error, nll, chunks, every.size, context)


def chunks_of(
    tokens: Sequence[int], nothing: Sequence[int], context: int, chunks_max: int | None
) -> list[list[int]]:
    """Cut ``tokens`` into whole chunks that begin with BOS where the model puts one.

    ``nothing``: the tokens of an empty text, which show whether it does. At most ``chunks_max``
    chunks. Raises MisuseError where there is none.
    """
    begins = bool(nothing) and list(nothing[:1]) == list(tokens[:1])
    chunks = []
    for first in range(0, len(tokens) - context + 1, context):
        chunk = list(tokens[first : first + context])
        chunks.append([nothing[0], *chunk[1:]] if begins else chunk)
    if not chunks:
        raise MisuseError(
            f"the text has {len(tokens)} tokens, less than one chunk of {context}; "
            "take a longer text or a smaller --context"
        )
    return chunks[:chunks_max]


def negative_log_likelihoods(
    logits: NDArray[np.float32], targets: Sequence[int]
) -> NDArray[np.float64]:
    """Return float64 [T]: minus the logarithm of the probability that row t gives target t.

    ``logits``: float32 [T, vocabulary].
    """
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = wide[np.arange(len(targets)), list(targets)]
    nll: NDArray[np.float64] = np.log(np.exp(wide).sum(axis=1)) - chosen
    return nll


def scored_logits(
    stage: Stage, head: Head, chunk: Sequence[int]
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    """Run one chunk through the whole model; yield logits [T, vocabulary] and what follows each.

    ``stage`` holds all layers. Raises NonFiniteError where a number leaves its range.
    """
    first, past = len(chunk) // 2, len(chunk) - 1
    stage.open(_SESSION)
    try:
        hidden = stage.forward(_SESSION, head.embed(chunk[:past]), 0)
    finally:
        stage.close(_SESSION)
    for begin in range(first, past, HEAD_ROWS_MAX):
        end = min(begin + HEAD_ROWS_MAX, past)
        yield head.logits(take_rows(hidden, begin, end)), list(chunk[begin + 1 : end + 1])


def chunk_nll(stage: Stage, head: Head, chunk: Sequence[int]) -> NDArray[np.float64]:
    """Return the negative log-likelihoods of a chunk's scored tokens, float64 [T]."""
    parts = [
        negative_log_likelihoods(logits, targets)
        for logits, targets in scored_logits(stage, head, chunk)
    ]
    return np.concatenate(parts)
