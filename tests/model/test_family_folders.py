"""Folders of Gemma 3 and Phi 3 as GGUF: their own names, norms, RoPE and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import family_models
import gguf
import numpy as np
import pytest
from hugging_face_folders import write_folder

from edgellama.errors import EdgellamaError
from edgellama.model.hugging_face_source import HuggingFaceSource
from edgellama.node.quantizing import stored_kinds, write_quantized

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CASES: dict[str, dict[str, Any]] = family_models.oracle.CASES


def converted(folder: Path, case: Mapping[str, Any]) -> gguf.GGUFReader:
    weights = family_models.oracle.weights(case)
    source = HuggingFaceSource(write_folder(folder / "source", case, weights))
    target = folder / "out.gguf"
    write_quantized(source, stored_kinds(source), target, {}, 1, lambda _done, _all: None)
    return gguf.GGUFReader(target)


def number(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def test_norms_of_gemma_are_stored_with_the_one_that_is_added(tmp_path: Path) -> None:
    case = CASES["gemma3_linear"]
    reader = converted(tmp_path, case)
    weights = family_models.oracle.weights(case)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, stored in (
        ("output_norm", "model.norm"),
        ("blk.1.attn_norm", "model.layers.1.input_layernorm"),
        ("blk.1.post_attention_norm", "model.layers.1.post_attention_layernorm"),
        ("blk.1.ffn_norm", "model.layers.1.pre_feedforward_layernorm"),
        ("blk.1.post_ffw_norm", "model.layers.1.post_feedforward_layernorm"),
        ("blk.1.attn_k_norm", "model.layers.1.self_attn.k_norm"),
    ):
        expected = weights[f"{stored}.weight"] + np.float32(1)
        np.testing.assert_array_equal(tensors[f"{name}.weight"].data, expected, err_msg=name)
    assert number(reader, "gemma3.attention.sliding_window") == 48
    assert number(reader, "gemma3.rope.scaling.factor") == 8
    assert number(reader, "gemma3.context_length") == 512  # not bounded by the window


def test_both_ways_of_writing_gemmas_rope_say_the_same(tmp_path: Path) -> None:
    older = dict(CASES["gemma3_linear"])
    newer = {key: value for key, value in older.items() if not key.startswith("rope")}
    newer["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    keys = []
    for folder, case in ((tmp_path / "older", older), (tmp_path / "newer", newer)):
        folder.mkdir()
        reader = converted(folder, case)
        keys.append({key: number(reader, key) for key in reader.fields if ".rope." in key})
    assert keys[0] == keys[1]


def test_phis_two_sets_of_factors(tmp_path: Path) -> None:
    case = CASES["phi3_long"]
    reader = converted(tmp_path, case)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    scaling = case["rope_scaling"]
    for kind in ("short", "long"):
        expected = np.array(scaling[f"{kind}_factor"], np.float32)
        np.testing.assert_array_equal(tensors[f"rope_factors_{kind}.weight"], expected)
    assert number(reader, "phi3.rope.dimension_count") == 24
    assert number(reader, "phi3.rope.scaling.original_context_length") == 256
    assert number(reader, "phi3.rope.scaling.attn_factor") == pytest.approx(1.5**0.5)
    assert "phi3.attention.sliding_window" not in reader.fields


@pytest.mark.parametrize(
    ("name", "changed", "fault"),
    [
        ("gemma3", {"hidden_activation": "silu"}, "'hidden_activation'"),
        ("gemma3", {"query_pre_attn_scalar": 64}, "'query_pre_attn_scalar' other than 32"),
        ("gemma3", {"sliding_window_pattern": 4}, "windows in other than 5 of 6 layers"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "windows in other than 5 of 6"),
        ("gemma3", {"sliding_window": None}, "'sliding_window' is missing"),
        ("gemma3", {"rope_local_base_freq": 5000.0}, "of base 5000 is not supported in windows"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "'final_logit_softcapping'"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ("phi3_long", {"partial_rotary_factor": 0.01}, "turns 0 of 32"),
        ("phi3_long", {"partial_rotary_factor": 0.5}, "no list of 8 factors"),
        ("phi3_long", {"original_max_position_embeddings": 1}, "not within 2 to the 4096"),
        ("phi3_long", {"rope_scaling": {"type": "longrope"}}, "no list of 12 factors"),
        ("llama_2", {"rope_scaling": {"type": "longrope"}}, "'longrope' is not supported"),
    ],
)
def test_what_no_key_could_say_is_refused(
    tmp_path: Path, name: str, changed: dict[str, Any], fault: str
) -> None:
    case = {**CASES[name], **changed}
    weights = family_models.oracle.weights(CASES[name])
    with pytest.raises(EdgellamaError, match=fault) as caught:
        HuggingFaceSource(write_folder(tmp_path / "source", case, weights))
    assert "\n" not in str(caught.value)
