"""Which types are offered and chosen; the choice is held against trying everything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.model.type_choice import (
    RUNNABLE_KINDS,
    Option,
    choose,
    is_matrix,
    kind_for,
    kinds_offered,
    tensor_bytes,
)
from edgellama.model.weight_source import SourceTensor


@pytest.mark.parametrize(
    ("columns", "wanted", "found"),
    [
        (256, "Q4_K", "Q4_K"),
        (288, "Q4_K", "Q8_0"),
        (288, "Q6_K", "Q8_0"),
        (172, "Q5_K", "F16"),
        (172, "Q8_0", "F16"),
        (172, "Q4_0", "F16"),
        (64, "Q4_0", "Q4_0"),
        (172, "BF16", "BF16"),
        (172, "F32", "F32"),
    ],
)
def test_rows_that_are_no_whole_blocks_get_a_wider_type(
    columns: int, wanted: str, found: str
) -> None:
    assert kind_for(SourceTensor("blk.0.ffn_down.weight", "F32", (columns, 8)), wanted) == found


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_norm.weight", (256,)),
        ("blk.0.attn_q.bias", (256,)),
        ("blk.0.ffn_gate_inp.weight", (256, 8)),
        ("rope_freqs.weight", (32,)),
    ],
)
def test_what_stays_wide(name: str, shape: tuple[int, ...]) -> None:
    tensor = SourceTensor(name, "BF16", shape)
    assert not is_matrix(tensor)
    assert kind_for(tensor, "Q4_K") == "F32"


needs_k = pytest.mark.skipif(
    "Q4_K" not in RUNNABLE_KINDS, reason="K-quants can be written but not be run yet"
)


@needs_k
def test_what_is_offered() -> None:
    def offered(kind_name: str, columns: int) -> list[str]:
        return kinds_offered(SourceTensor("output.weight", kind_name, (columns, 4)))

    assert offered("F32", 512) == ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16", "F32"]
    assert offered("BF16", 512) == ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16"]
    assert offered("Q8_0", 512) == ["Q4_K", "Q5_K", "Q6_K", "Q8_0"]
    assert offered("F16", 64) == ["Q4_0", "Q8_0", "F16"]
    assert offered("F16", 172) == ["F16"]
    assert offered("Q4_0", 64) == ["Q4_0"]


def test_bytes() -> None:
    assert tensor_bytes(SourceTensor("x", "F32", (512, 3, 2)), "Q4_K") == 6 * 2 * 144


OPTIONS = st.lists(
    st.builds(Option, st.just("kind"), st.integers(1, 40), st.integers(0, 100).map(float)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(options=st.lists(OPTIONS, min_size=1, max_size=4), budget=st.integers(0, 160))
def test_no_choice_within_the_budget_is_better_by_more_than_one_step(
    options: list[list[Option]], budget: int
) -> None:
    named = {str(number): offered for number, offered in enumerate(options)}
    found = choose(named, budget)
    fitting = [
        each
        for each in itertools.product(*options)
        if sum(option.bytes for option in each) <= budget
    ]
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert sum(option.bytes for option in found.values()) <= budget
    best = min(sum(option.error for option in each) for each in fitting)
    error = sum(option.error for option in found.values())
    # Greedy on convex hulls loses at most what one further step of one tensor would buy.
    step = max(max(o.error for o in offered) - min(o.error for o in offered) for offered in options)
    assert error <= best + step


def test_the_greatest_gain_for_a_byte_is_bought_first() -> None:
    options = {
        "cheap": [Option("a", 10, 10.0), Option("b", 20, 1.0)],
        "dear": [Option("a", 10, 100.0), Option("b", 100, 20.0)],
    }
    chosen = choose(options, 30)
    assert chosen is not None
    assert {name: option.kind_name for name, option in chosen.items()} == {
        "cheap": "b",
        "dear": "a",
    }
    chosen = choose(options, 120)
    assert chosen is not None
    assert {name: option.kind_name for name, option in chosen.items()} == {
        "cheap": "b",
        "dear": "b",
    }
    assert choose(options, 19) is None
