"""Files of every family: sound ones are read, and what is wrong in one is named in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import gguf_writing
import numpy as np
import pytest
from model_running import last_chunk_bytes, packed_model

from edgellama.errors import EdgellamaError, ModelFileError, UnsupportedModelError
from edgellama.model.config import ModelConfig
from edgellama.model.cost import scratch_bytes
from edgellama.model.families import FAMILIES
from edgellama.model.gguf import GgufFile
from edgellama.model.tensor_parts import home_parts, layer_parts, layer_tensor
from edgellama.model.weights import needed_tensors
from edgellama.values import Span

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SHAPES = {
    "llama": "tiny",
    "qwen2": "tiny-qwen2",
    "qwen3": "tiny-qwen3",
    "qwen3moe": "tiny-qwen3moe",
    "gemma3": "tiny-gemma3",
    "phi3": "tiny-phi3-long",
}
KINDS = ["F32", "F16", "Q8_0", "Q4_0", "Q4_K_M"]


def changed_file(
    folder: Path,
    family: str,
    keys: Mapping[str, Any] | None = None,
    without: str = "",
    added: str = "",
) -> GgufFile:
    """Write a family's random model again with other keys (None: left out) or tensors."""
    source = gguf_writing.random_model(folder / "source.gguf", SHAPES[family], "F32")
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(folder / "changed.gguf", family)
    given = {f"{family}.{key}": value for key, value in (keys or {}).items()}
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "general.architecture")) or name in given:
            continue
        item = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], item)
    for name, value in given.items():
        if isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, np.array(tensor.data))
    if added:
        writer.add_tensor(added, np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile.open(folder / "changed.gguf")


def refusal(file: GgufFile) -> EdgellamaError:
    with pytest.raises(EdgellamaError) as caught:
        ModelConfig.from_gguf(file)
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_family_is_tried_here() -> None:
    assert set(SHAPES) == set(FAMILIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", SHAPES)
def test_random_models_of_all_families_are_sound(tmp_path: Path, family: str, kind: str) -> None:
    path = gguf_writing.random_model(tmp_path / "m.gguf", SHAPES[family], kind)
    file = GgufFile.open(path)
    config = ModelConfig.from_gguf(file)
    assert config.family is FAMILIES[family]
    last = list(file.tensors.values())[-1]
    assert last.offset + last.bytes == path.stat().st_size
    every = needed_tensors(file, config, Span(0, config.layers), home=True)
    assert every == list(file.tensors)


@pytest.mark.parametrize("family", SHAPES)
def test_a_missing_tensor_is_named(tmp_path: Path, family: str) -> None:
    whole = ModelConfig.from_gguf(changed_file(tmp_path, family))
    names = {layer_tensor(1, part.name) for part in layer_parts(whole)}
    names |= {part.name for part in home_parts(whole)} - {"output.weight"}
    for name in sorted(names):
        error = refusal(changed_file(tmp_path, family, without=name))
        assert isinstance(error, ModelFileError)
        assert f"tensor {name} is missing" in str(error)


@pytest.mark.parametrize("family", SHAPES)
def test_a_tensor_that_no_family_knows_is_named(tmp_path: Path, family: str) -> None:
    error = refusal(changed_file(tmp_path, family, added="blk.0.attn_sinks.weight"))
    assert isinstance(error, UnsupportedModelError)
    assert "'blk.0.attn_sinks.weight'" in str(error)
    assert family in str(error)


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("qwen3moe", {"expert_count": None}, "qwen3moe.expert_count is missing"),
        ("qwen3moe", {"expert_count": 0}, "expert_count is 0, not within 1 to 1024"),
        ("qwen3moe", {"expert_count": 8}, "blk.0.ffn_gate_inp.weight has shape"),
        ("qwen3moe", {"expert_used_count": None}, "expert_used_count is missing"),
        ("qwen3moe", {"expert_used_count": 17}, "expert_used_count is 17, not within 1 to 16"),
        ("qwen3moe", {"expert_feed_forward_length": None}, "expert_feed_forward_length is missing"),
        ("qwen3moe", {"expert_feed_forward_length": 64}, "ffn_gate_exps.weight has shape"),
        ("qwen3", {"attention.key_length": 16}, "keys of 16 and values of 32"),
        ("gemma3", {"attention.sliding_window": None}, "sliding_window is missing"),
        ("gemma3", {"attention.sliding_window": 0}, "sliding_window is 0"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gemma3", {"rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
        ("phi3", {"attention.sliding_window": "all"}, "sliding_window holds a value of type str"),
        ("phi3", {"rope.scaling.original_context_length": None}, "context_length is missing"),
        ("phi3", {"rope.scaling.attn_factor": 0.0}, "attn_factor is 0.0"),
        ("phi3", {"rope.dimension_count": 32}, "rope_factors_short.weight must hold 16 numbers"),
        ("phi3", {"feed_forward_length": 64}, "ffn_up.weight has shape"),
        ("qwen2", {"expert_count": 4}, "mixture of experts in qwen2"),
    ],
)
def test_a_wrong_key_of_a_family_is_named(
    tmp_path: Path, family: str, keys: dict[str, Any], message: str
) -> None:
    assert message in str(refusal(changed_file(tmp_path, family, keys)))


def test_which_layers_see_a_window(tmp_path: Path) -> None:
    gemma = ModelConfig.from_gguf(changed_file(tmp_path, "gemma3"))
    assert [gemma.window_of(layer) for layer in range(7)] == [48] * 5 + [0, 48]
    assert [gemma.ropes[gemma.rope_of(layer)].base for layer in (0, 5, 6)] == [1e4, 1e4, 1e4]
    assert [gemma.ropes[gemma.rope_of(layer)].scale for layer in (0, 5, 6)] == [1, 8, 1]
    phi = ModelConfig.from_gguf(changed_file(tmp_path, "phi3", {"attention.sliding_window": 9}))
    assert [phi.window_of(layer) for layer in range(4)] == [9] * 4
    assert phi.context_max == 256
    qwen = ModelConfig.from_gguf(changed_file(tmp_path, "qwen3", {"attention.sliding_window": 9}))
    assert [qwen.window_of(layer) for layer in range(4)] == [0] * 4


def test_experts_are_counted_and_packed_one_by_one(tmp_path: Path) -> None:
    path = gguf_writing.random_model(tmp_path / "m.gguf", "tiny-qwen3moe", "Q8_0")
    model = packed_model(path)
    (stored,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "blk.2.ffn_down_exps.weight")
    wide = gguf.quants.dequantize(stored.data, stored.tensor_type)
    down = model.layers[2].unit.down
    assert down.count == len(wide) == 16
    for number in range(down.count):
        matrix = down.expert(number)
        np.testing.assert_array_equal(matrix.dequantized_rows(range(matrix.rows)), wide[number])


def test_parts_of_one_tensor_are_packed_from_their_own_rows(tmp_path: Path) -> None:
    path = gguf_writing.random_model(tmp_path / "m.gguf", "tiny-phi3", "F16")
    layer = packed_model(path).layers[1]
    tensors = {t.name: t.data.astype(np.float32) for t in gguf.GGUFReader(path).tensors}
    fused, both = tensors["blk.1.attn_qkv.weight"], tensors["blk.1.ffn_up.weight"]
    halves = layer.unit.gate, layer.unit.up
    for matrix, rows in (
        *zip((layer.query, layer.key, layer.value), np.split(fused, 3), strict=True),
        *zip(halves, np.split(both, 2), strict=True),
    ):
        np.testing.assert_array_equal(matrix.dequantized_rows(range(matrix.rows)), rows)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("family", SHAPES)
def test_a_step_takes_no_more_scratch_than_stated(tmp_path: Path, family: str, kind: str) -> None:
    model = packed_model(gguf_writing.random_model(tmp_path / "m.gguf", SHAPES[family], kind))
    assert last_chunk_bytes(model) < scratch_bytes(model.config)
