"""The planner's numbers: what is counted is what is used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import gguf_writing
import numpy as np
import pytest
from edgellama_kernels import CacheKind, allocate_cache_layer
from model_running import (
    SmallShape,
    last_chunk_bytes,
    llama_keys,
    llama_tensors,
    packed_model,
    peak_bytes,
    write_llama,
)

from edgellama.model.cost import SAMPLER_TOKEN_BYTES, model_facts, scratch_bytes
from edgellama.model.gguf import GgufFile
from edgellama.model.sampling import sample
from edgellama.values import SamplingSettings

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = SmallShape(layers=3, width=64)


def small_file(folder: Path, kind_name: str, name: str = "small") -> Path:
    keys = llama_keys(SHAPE) | {"general.name": name}
    path = write_llama(folder / "f32.gguf", keys, llama_tensors(SHAPE))
    return gguf_writing.quantized_copy(path, folder / f"{kind_name}.gguf", kind_name)


@pytest.mark.parametrize("kind_name", ["F32", "Q4_0"])
def test_facts_are_the_sizes_of_what_is_allocated(tmp_path: Path, kind_name: str) -> None:
    path = small_file(tmp_path, kind_name)
    model = packed_model(path)
    facts = model_facts(model.gguf, "ab" * 32, "given")
    assert (facts.root, facts.name) == ("ab" * 32, "small")
    assert facts.file_bytes == path.stat().st_size
    assert (facts.layers, facts.width, facts.context_max) == (3, 64, 512)
    for layer, weights in enumerate(model.layers):
        norms = weights.attention_norm.base
        assert norms is not None
        assert facts.layer_bytes[layer] == norms.nbytes
    cache = allocate_cache_layer(model.config.kv_heads, model.config.head_width, 128)
    assert facts.kv_bytes_per_token * 128 == cache.keys.nbytes + cache.values.nbytes
    quantized = allocate_cache_layer(
        model.config.kv_heads, model.config.head_width, 128, CacheKind.Q8
    )
    assert facts.kv_q8_bytes_per_token * 128 == sum(x.nbytes for x in quantized if x is not None)
    assert facts.home_bytes >= model.home.embedding.buffer.nbytes + model.home.output.buffer.nbytes


def test_facts_need_the_header_alone(tmp_path: Path) -> None:
    path = small_file(tmp_path, "Q8_0")
    whole = GgufFile.open(path)
    header = GgufFile.parse_header(path.read_bytes()[: whole.data_offset], "h", whole.file_bytes)
    assert model_facts(header, "00", "x") == model_facts(whole, "00", "x")


def test_a_model_without_a_name_gets_the_given_one(tmp_path: Path) -> None:
    for stated, name in (
        ("", "given"),
        ("a\n\x1b[2Jb", "a[2Jb"),
        ("\n", "given"),
        ("n" * 99, "n" * 80),
    ):
        file = GgufFile.open(small_file(tmp_path, "F32", stated))
        assert model_facts(file, "00", "given").name == name


@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        SmallShape(width=256, heads=8, kv_heads=2, head_width=32, feed_forward=704),
        SmallShape(width=64, heads=2, kv_heads=1, head_width=32, feed_forward=64, context=4096),
        SmallShape(width=64, heads=4, kv_heads=4, head_width=128, feed_forward=64, vocabulary=4000),
    ],
    ids=["small", "wide", "long", "large heads"],
)
@pytest.mark.parametrize("kind_name", ["F32", "Q8_0", "Q4_0", "Q5_1"])
def test_a_step_takes_no_more_scratch_than_stated(
    tmp_path: Path, shape: SmallShape, kind_name: str
) -> None:
    shape = replace(shape, layers=1)
    path = write_llama(tmp_path / "f32.gguf", llama_keys(shape), llama_tensors(shape))
    model = packed_model(gguf_writing.quantized_copy(path, tmp_path / "q.gguf", kind_name))
    stated_bytes = scratch_bytes(model.config)
    assert stated_bytes / 3 < last_chunk_bytes(model) < stated_bytes


def test_a_draw_takes_no_more_scratch_than_stated() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 1 << 17).astype(np.float32)
    chosen = SamplingSettings(temperature=1.0, top_p=0.95, min_p=0.01, repeat_penalty=1.1)
    peak = peak_bytes(lambda: sample(logits, chosen, 5, [1, 2, 3]))
    assert peak < SAMPLER_TOKEN_BYTES * len(logits)
