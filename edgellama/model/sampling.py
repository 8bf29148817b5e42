"""The next token from the logits: the same choice on every machine, from integers.

Steps, in this order (temperature 0 stops after the second):

1. Repeat penalty: the logit of every token among the last ``repeat_window`` is divided by
   ``repeat_penalty`` where positive and multiplied by it elsewhere, once, in float32.
2. Temperature 0: the highest logit, the lowest id among equals.
3. Weights: ``floor(exp(logit / temperature - maximum) * 2^32)`` with the kernels' own ``exp``;
   the likeliest token has weight 2^32, a weight of 0 is never drawn.
4. Order: weight descending, then id ascending.
5. ``top_k``: the first k remain.
6. ``top_p``: the shortest beginning remains whose weights reach ``top_p`` of what step 5 left.
7. ``min_p``: weights of at least ``min_p`` times the highest remain.
8. Draw: ``u`` is 64 bits of BLAKE2b over (seed, position), personalised ``edgellama draw``, both
   numbers as 8 little-endian bytes; the first token whose cumulative weight exceeds
   ``floor(u * total / 2^64)`` is the answer.

Steps 1 to 3 round each float32 operation once; 4 to 8 are exact (fractions and integers).
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from edgellama_kernels import exponential

from edgellama.errors import MisuseError, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellama.values import SamplingSettings

WEIGHT_ONE = 1 << 32
TEMPERATURE_MIN = 0.001  # below it the quotient leaves float32; 0 is meant
TEMPERATURE_MAX = 100.0
TOP_K_MAX = 1 << 22  # no vocabulary is larger
REPEAT_PENALTY_MIN = 0.1
REPEAT_PENALTY_MAX = 10.0
REPEAT_WINDOW_MAX = 1 << 16
SEED_PAST = 1 << 64


def validate(settings: SamplingSettings) -> None:
    """Raise MisuseError, naming the setting and its bounds, unless every setting is in bounds."""
    if settings.temperature != 0:
        _check("temperature", settings.temperature, TEMPERATURE_MIN, TEMPERATURE_MAX, "0 or ")
    _check("top-k", settings.top_k, 0, TOP_K_MAX)
    if not 0 < settings.top_p <= 1:
        raise MisuseError(f"top-p is {settings.top_p}; it must be above 0 and up to 1")
    _check("min-p", settings.min_p, 0, 1)
    _check("repeat penalty", settings.repeat_penalty, REPEAT_PENALTY_MIN, REPEAT_PENALTY_MAX)
    _check("repeat window", settings.repeat_window, 0, REPEAT_WINDOW_MAX)
    _check("seed", settings.seed, 0, SEED_PAST - 1)


def _check(name: str, value: float, minimum: float, maximum: float, besides: str = "") -> None:
    if not minimum <= value <= maximum:  # not a number fails every comparison
        raise MisuseError(f"{name} is {value}; it must be {besides}from {minimum} to {maximum}")


def sample(
    logits: NDArray[np.float32],
    settings: SamplingSettings,
    position: int,
    recent: Sequence[int],
) -> int:
    """Return the id of the token that will stand at ``position``.

    ``logits``: float32 [vocabulary], not changed. ``recent``: the ids of the tokens before
    ``position``, the latest last; only the last ``repeat_window`` matter. ``settings`` have passed
    ``validate``. Raises NonFiniteError where a logit is not finite.
    """
    with np.errstate(over="ignore"):
        penalised = _penalise(logits, settings, recent)
        scaled = penalised / np.float32(settings.temperature or 1.0)
    if not np.isfinite(scaled).all():
        raise NonFiniteError("the model's output is not finite: the weights are damaged")
    if settings.temperature == 0:
        return int(np.argmax(penalised))  # the first, so the lowest id, among equals
    ids, weights = _ordered_weights(scaled)
    kept = _kept(weights, settings)
    cumulative = np.cumsum(weights[:kept], dtype=np.uint64)
    total = int(cumulative[-1])
    point = (draw_bits(settings.seed, position) * total) >> 64
    return int(ids[np.searchsorted(cumulative, np.uint64(point), side="right")])


def draw_bits(seed: int, position: int) -> int:
    """Return the 64 uniform bits that (seed, position) stand for."""
    message = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    digest = hashlib.blake2b(message, digest_size=8, person=b"edgellama draw").digest()
    return int.from_bytes(digest, "little")


def _penalise(
    logits: NDArray[np.float32], settings: SamplingSettings, recent: Sequence[int]
) -> NDArray[np.float32]:
    window = min(settings.repeat_window, len(recent))
    if settings.repeat_penalty == 1 or window == 0:
        return logits
    ids = np.unique(np.asarray(recent[len(recent) - window :], np.int64))
    penalty = np.float32(settings.repeat_penalty)
    chosen = logits[ids]
    penalised = logits.copy()
    penalised[ids] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    return penalised


def _ordered_weights(
    scaled: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return ids and weights of every token that can be drawn, the likeliest first."""
    # The difference of two finite float32 may leave the range; exp of it is 0 either way.
    with np.errstate(over="ignore"):
        distance = np.maximum(scaled - scaled.max(), np.float32(-100))
    weights = np.floor(exponential(distance) * np.float32(WEIGHT_ONE)).astype(np.uint64)
    ids = np.flatnonzero(weights)
    order = np.argsort(WEIGHT_ONE - weights[ids], kind="stable")
    return ids[order], weights[ids[order]]


def _kept(weights: NDArray[np.uint64], settings: SamplingSettings) -> int:
    """Return how many of the ordered tokens top-k, top-p and min-p leave; at least one."""
    kept = len(weights)
    if settings.top_k:
        kept = min(kept, settings.top_k)
    if settings.top_p < 1:
        cumulative = np.cumsum(weights[:kept], dtype=np.uint64)
        target = math.ceil(Fraction(settings.top_p) * int(cumulative[-1]))
        kept = int(np.searchsorted(cumulative, np.uint64(target), side="left")) + 1
    if settings.min_p > 0:
        threshold = math.ceil(Fraction(settings.min_p) * int(weights[0]))
        kept = int(np.count_nonzero(weights[:kept] >= np.uint64(threshold)))
    return kept
