"""Every family against transformers, from a folder of its own kind by way of `quantize`.

The golden files are what `tools/oracle_logits.py` wrote; docs/measurements/families.md has the
differences that were measured.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import edgellama_kernels
import family_models
import numpy as np
import pytest

from edgellama.model.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellama_kernels import Kernels
    from model_running import PackedModel

CASES = list(family_models.oracle.CASES)


class Tolerance(NamedTuple):
    """Of the logits' difference over their deviation; twice what was measured, or a bit more."""

    mean: float
    greatest: float


# Between layers and in the cache numbers are fp16; quantized matrices also take int8 activations.
TOLERANCES = {
    "F32": Tolerance(0.003, 0.02),
    "F16": Tolerance(0.003, 0.02),
    "Q8_0": Tolerance(0.07, 0.5),
}
# A row of logits may change much where int8 activations let a router choose another expert.
OTHER_EXPERT = Tolerance(0.09, 3.0)


@pytest.fixture(scope="module")
def kernels() -> Iterator[Kernels]:
    loaded = edgellama_kernels.load("auto", 2)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("kind", family_models.oracle.KINDS)
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(
    tmp_path: Path, kernels: Kernels, name: str, kind: str
) -> None:
    found = family_models.difference(
        family_models.model_of(tmp_path, name, kind), kernels, name, kind
    )
    mixture = name == "qwen3_moe" and kind == "Q8_0"
    tolerance = OTHER_EXPERT if mixture else TOLERANCES[kind]
    assert found.mean < tolerance.mean, found
    assert found.greatest < tolerance.greatest, found
    assert found.same_first >= 0.9, found


def of_config(**changed: Any) -> Callable[[PackedModel], PackedModel]:
    return lambda model: replace(model, config=replace(model.config, **changed))


def of_rope(**changed: Any) -> Callable[[PackedModel], PackedModel]:
    return lambda model: of_config(rope=replace(model.config.rope, **changed))(model)


def of_family(**changed: Any) -> Callable[[PackedModel], PackedModel]:
    return lambda model: of_config(family=replace(model.config.family, **changed))(model)


def without(*fields: str) -> Callable[[PackedModel], PackedModel]:
    """Leave out what only some families have."""

    def changed(model: PackedModel) -> PackedModel:
        layers = (replace(layer, **dict.fromkeys(fields)) for layer in model.layers)
        return replace(model, layers=tuple(layers))

    return changed


MISTAKES: list[tuple[str, str, Callable[[PackedModel], PackedModel]]] = [
    ("llama_2", "RoPE of another base", of_rope(base=11000.0)),
    ("llama_3", "no factors of RoPE", of_rope(factors=(1.0,) * 8)),
    ("llama_linear", "no scaling of RoPE", of_rope(scale=1.0)),
    ("llama_2", "another epsilon", of_config(epsilon=1e-2)),
    ("qwen2", "no bias of the values", without("value_bias")),
    ("qwen2", "no bias of the keys", without("key_bias")),
    ("qwen3", "no norm of the queries", without("query_norm")),
    ("qwen3_moe", "three experts", of_config(experts_used=3)),
    ("gemma3", "SiLU", of_family(gelu=False)),
    ("gemma3", "embeddings as they are", of_family(scaled_embedding=False)),
    ("gemma3", "no norm after attention", without("attention_post_norm")),
    ("gemma3", "no norm after the unit", without("feed_forward_post_norm")),
    ("gemma3", "a window in each layer", of_family(window_every=1)),
    ("gemma3", "a wider window", of_config(window=49)),
    ("gemma3", "one RoPE for all layers", of_family(local_rope_base=1e6)),
    ("gemma3_linear", "no scaling of RoPE", of_rope(scale=1.0)),
    ("phi3", "no window", of_config(window=0)),
    ("phi3", "a narrower window", of_config(window=46)),
    ("phi3_long", "no magnitude", of_rope(magnitude=1.0)),
    ("phi3_long", "no factors of RoPE", of_rope(factors=(1.0,) * 12)),
]


@pytest.mark.parametrize(
    ("name", "mistake"),
    [pytest.param(name, made, id=f"{name}: {what}") for name, what, made in MISTAKES],
)
def test_a_mistake_would_be_seen(
    tmp_path: Path,
    kernels: Kernels,
    name: str,
    mistake: Callable[[PackedModel], PackedModel],
) -> None:
    """What differs when a family is misunderstood is far beyond the tolerance."""
    model = mistake(family_models.model_of(tmp_path, name, "F32"))
    found = family_models.difference(model, kernels, name, "F32")
    tolerance = TOLERANCES["F32"]
    assert found.mean > tolerance.mean or found.greatest > 2 * tolerance.greatest, found


def test_every_family_has_a_golden_file() -> None:
    oracle = family_models.oracle
    assert {path.stem for path in oracle.GOLDEN.glob("*.npz")} == set(CASES)
    families = {case["model_type"] for case in oracle.CASES.values()}
    names = {"mistral": "llama", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
    assert {names.get(family, family) for family in families} == set(FAMILIES)


def test_golden_files_are_small_and_whole() -> None:
    oracle = family_models.oracle
    keys = {f"{kind} {length}" for kind in oracle.KINDS for length in oracle.LENGTHS}
    for name in CASES:
        path = oracle.GOLDEN / f"{name}.npz"
        assert path.stat().st_size < 300_000
        with np.load(path) as golden:
            assert set(golden.files) == keys
            for length in oracle.LENGTHS:
                rows = golden[f"F32 {length}"]
                assert len(rows) == len(oracle.rows_kept(length)) >= min(length, 8)
                assert np.isfinite(rows).all()
