"""Sampling: each filter by itself, their order, and the same draw from the same numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import MisuseError, NonFiniteError
from edgellama.model.sampling import draw_bits, sample, validate
from edgellama.values import SamplingSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

WARM = SamplingSettings(temperature=1.0)


def logits_of(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def drawn(
    logits: NDArray[np.float32], chosen: SamplingSettings, recent: tuple[int, ...] = ()
) -> set[int]:
    """Return every token that 300 positions draw."""
    return {sample(logits, chosen, position, recent) for position in range(300)}


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = logits_of(-1, 3, 2, 3, 3)
    assert drawn(logits, SamplingSettings()) == {1}
    assert sample(logits_of(-0.0, 0.0), SamplingSettings(), 0, ()) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        sample(logits_of(1, bad, 2), SamplingSettings(temperature=temperature), 0, ())


def test_a_quotient_beyond_float32_is_refused_and_a_wide_difference_is_not() -> None:
    with pytest.raises(NonFiniteError):
        sample(logits_of(1e37, 0), SamplingSettings(temperature=0.01), 0, ())
    assert sample(logits_of(3e38, -3e38), WARM, 0, ()) == 0


def test_frequencies_follow_the_weights() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    draws = [sample(logits, WARM, position, ()) for position in range(4000)]
    shares = np.bincount(draws, minlength=4) / 4000
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.025


def test_temperature_sharpens_and_flattens() -> None:
    logits = logits_of(0, 1, 2)
    cold = [sample(logits, replace(WARM, temperature=0.2), p, ()) for p in range(500)]
    hot = [sample(logits, replace(WARM, temperature=50.0), p, ()) for p in range(500)]
    assert cold.count(2) > 480
    assert min(hot.count(token) for token in range(3)) > 120


def test_top_k_keeps_the_lowest_ids_among_equals() -> None:
    assert drawn(logits_of(1, 2, 1, 2, 1), replace(WARM, top_k=3)) == {0, 1, 3}
    assert drawn(logits_of(1, 2, 1), replace(WARM, top_k=1)) == {1}
    assert drawn(logits_of(1, 2, 1), replace(WARM, top_k=0)) == {0, 1, 2}


def test_top_p_keeps_the_shortest_beginning_that_reaches_it() -> None:
    equal = logits_of(0, 0, 0, 0)
    for top_p, kept in ((0.25, {0}), (0.26, {0, 1}), (0.5, {0, 1}), (0.75, {0, 1, 2})):
        assert drawn(equal, replace(WARM, top_p=top_p)) == kept
    assert drawn(equal, replace(WARM, top_p=1e-9)) == {0}
    # Of what top-k left: two equal tokens have half each.
    assert drawn(equal, replace(WARM, top_p=0.5, top_k=2)) == {0}


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = logits_of(0, math.log(2), math.log(4) + 1e-6)
    assert drawn(logits, replace(WARM, min_p=0.4)) == {1, 2}
    assert drawn(logits, replace(WARM, min_p=1.0)) == {2}
    assert drawn(logits_of(1, 1), replace(WARM, min_p=1.0)) == {0, 1}


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    greedy = SamplingSettings(repeat_penalty=2.0, repeat_window=3)
    logits = logits_of(3, 2, -1, -1.5)
    assert sample(logits, greedy, 0, ()) == 0
    assert sample(logits, greedy, 0, (0, 0, 0)) == 1
    assert sample(logits, greedy, 0, (0, 1, 0, 1)) == 0
    assert sample(logits, greedy, 0, (0, 3, 3, 3)) == 0  # out of the window
    assert sample(logits_of(-1, -1.5), greedy, 0, (0,)) == 1
    np.testing.assert_array_equal(logits, logits_of(3, 2, -1, -1.5))
    assert sample(logits, replace(greedy, repeat_window=0), 0, (0,)) == 0


def test_draws_are_pinned() -> None:
    """Any node must continue any session: these bits are part of the contract."""
    assert draw_bits(0, 0) == 40373321697442534
    assert draw_bits(1, 0) == 11890909563206175375
    assert draw_bits(0, 1) == 11931100910501351869
    assert draw_bits(2**64 - 1, 4095) == 12727002073366289204


def test_a_run_is_pinned() -> None:
    logits = (np.arange(200) * 7919 % 211 / 32).astype(np.float32)
    chosen = SamplingSettings(
        temperature=0.9, top_k=50, top_p=0.95, min_p=0.02, repeat_penalty=1.1, seed=7
    )
    text: list[int] = []
    for position in range(20):
        text.append(sample(logits, chosen, position, text))
    assert text == [
        32,
        26,
        94,
        32,
        177,
        194,
        43,
        143,
        77,
        15,
        64,
        109,
        143,
        128,
        175,
        128,
        47,
        141,
        11,
        58,
    ]


def exact_model(
    logits: NDArray[np.float32], chosen: SamplingSettings, position: int, recent: list[int]
) -> int:
    """The same choice by the docstring, one token at a time, in Python's own integers."""
    from edgellama_kernels import exponential

    values = list(logits)
    if chosen.repeat_penalty != 1:
        for token in set(recent[len(recent) - min(chosen.repeat_window, len(recent)) :]):
            penalty = np.float32(chosen.repeat_penalty)
            values[token] = (
                values[token] / penalty if values[token] > 0 else values[token] * penalty
            )
    scaled = [value / np.float32(chosen.temperature) for value in values]
    high = max(scaled)
    weights = [
        math.floor(float(exponential(np.array([value - high], np.float32))[0]) * 2**32)
        for value in scaled
    ]
    order = sorted(
        (token for token in range(len(values)) if weights[token]), key=lambda t: (-weights[t], t)
    )
    order = order[: chosen.top_k or None]
    total = sum(weights[token] for token in order)
    beginning: list[int] = []
    for token in order:
        beginning.append(token)
        if sum(weights[t] for t in beginning) >= Fraction(chosen.top_p) * total:
            break
    kept = [t for t in beginning if weights[t] >= Fraction(chosen.min_p) * weights[order[0]]]
    point = draw_bits(chosen.seed, position) * sum(weights[t] for t in kept) // 2**64
    for token in kept:
        point -= weights[token]
        if point < 0:
            return token
    raise AssertionError


some_settings = st.builds(
    SamplingSettings,
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repeat_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    repeat_window=st.integers(0, 5),
    seed=st.integers(0, 2**64 - 1),
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from([-9.0, -1.0, 0.0, 0.5, 0.75, 2.0, 2.5]), min_size=1, max_size=12),
    some_settings,
    st.integers(0, 2**40),
    st.data(),
)
def test_arrays_choose_as_the_definition_does(
    values: list[float], chosen: SamplingSettings, position: int, data: Any
) -> None:
    recent = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=8))
    logits = np.array(values, np.float32)
    validate(chosen)
    assert sample(logits, chosen, position, recent) == exact_model(logits, chosen, position, recent)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or from 0.001 to 100.0"),
        ({"temperature": 1e-9}, "temperature"),
        ({"temperature": 101.0}, "temperature"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0; it must be above 0 and up to 1"),
        ({"top_p": 1.5}, "top-p"),
        ({"top_p": math.nan}, "top-p"),
        ({"min_p": -0.1}, "min-p"),
        ({"min_p": 1.1}, "min-p"),
        ({"repeat_penalty": 0.0}, "repeat penalty is 0.0; it must be from 0.1 to 10.0"),
        ({"repeat_penalty": math.inf}, "repeat penalty"),
        ({"repeat_window": -1}, "repeat window"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_settings_out_of_bounds_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message) as caught:
        validate(replace(SamplingSettings(), **changed))
    assert "\n" not in str(caught.value)


def test_settings_at_their_bounds_pass() -> None:
    validate(SamplingSettings())
    validate(SamplingSettings(0.001, 1 << 22, 1.0, 1.0, 0.1, 0, 2**64 - 1))
    validate(SamplingSettings(100.0, 0, 1e-9, 0.0, 10.0, 1 << 16, 0))
