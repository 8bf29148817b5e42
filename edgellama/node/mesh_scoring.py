"""Perplexity over a mesh: home makes the tokens, and each chunk goes round the ring as it is."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import numpy as np

from edgellama.errors import MisuseError, NoMeshError
from edgellama.model.perplexity import CONTEXT_DEFAULT, Perplexity, chunks_of
from edgellama.values import SamplingSettings
from edgellama.wire.messages import PROMPT_BYTES_MAX, Ask, Finished, Notice

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.node.asking import Asker


def perplexity_of_mesh(
    asker: Asker,
    text: str,
    context: int | None,
    chunks_max: int | None,
    progress: Callable[[int, int], None],
    tell: Callable[[str], None],
) -> Perplexity:
    """Measure how well the mesh's model foretells ``text``; see ``scoring.perplexity_of``.

    ``context`` None is 512, or what the mesh keeps where that is less. Raises MisuseError for a
    text that is too long for a message or has not one whole chunk.
    """
    if len(text.encode()) > PROMPT_BYTES_MAX:
        raise MisuseError(
            f"the text is longer than {PROMPT_BYTES_MAX >> 20} MiB, which is the most that a mesh "
            "takes: measure on one device, with --model"
        )
    tokens, nothing = (_asked(asker, each, (), 0, tell).prompt_tokens for each in (text, ""))
    if context is None:
        context = min(CONTEXT_DEFAULT, asker.status().context)
    chunks = chunks_of(tokens, nothing, context, chunks_max)
    nlls = []
    for done, chunk in enumerate(chunks):
        progress(done, len(chunks))
        end = _asked(asker, "", tuple(chunk), context // 2, tell)
        nlls.append(np.array(end.nlls, np.float64))
    return Perplexity.of(nlls, context)


def _asked(
    asker: Asker,
    text: str,
    chunk: tuple[int, ...],
    scored_from: int,
    tell: Callable[[str], None],
) -> Finished:
    """Return what the mesh says of a text's tokens, or of a chunk's likelihood."""
    ask = Ask(
        *(secrets.randbits(64), SamplingSettings(), 0, True, True, chunk, "", 0),
        *((), scored_from, 0, 0, text),
    )
    for message in asker.answer(ask):
        if isinstance(message, Finished):
            return message
        if isinstance(message, Notice):
            tell(message.text)
    raise NoMeshError("the mesh ended the measurement")
