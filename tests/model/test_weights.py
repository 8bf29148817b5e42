"""Packed layers: every value where it belongs, equal files equal buffers, no copies."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any, NamedTuple

import edgellama_kernels
import gguf
import gguf_writing
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_running import SmallShape, llama_keys, llama_tensors, packed_model, write_llama

from edgellama.errors import ModelFileError
from edgellama.model.config import ModelConfig
from edgellama.model.families import FAMILIES, Family
from edgellama.model.gguf import GgufFile
from edgellama.model.rope_settings import Rope
from edgellama.model.weights import (
    SLICE_BYTES_MAX,
    HomeWeights,
    LayerWeights,
    home_bytes,
    kernel_order,
    layer_bytes,
    needed_tensors,
    pack_home,
    pack_layer,
)
from edgellama.values import Span

if TYPE_CHECKING:
    from pathlib import Path

    from edgellama_kernels import PackedMatrix
    from numpy.typing import NDArray

SHAPE = SmallShape(width=64, feed_forward=172)  # 172 is no multiple of 32: ffn_down stays F32
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]
FIELDS = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attention_output": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def small_file(folder: Path, kind_name: str = "F32", tied: bool = False) -> Path:
    shape = SmallShape(width=64, feed_forward=172, tied=tied)
    path = write_llama(folder / "wide.gguf", llama_keys(shape), llama_tensors(shape))
    return gguf_writing.quantized_copy(path, folder / f"{kind_name}-{tied}.gguf", kind_name)


def part_of(weights: LayerWeights, field: str) -> Any:
    return weights.matrices().get(field) or getattr(weights, field)


def values(matrix: PackedMatrix) -> NDArray[np.float32]:
    return matrix.dequantized_rows(np.arange(matrix.rows))


def half_split(rows: NDArray[np.float32], head_width: int) -> NDArray[np.float32]:
    """Even rows of each head first, then the odd ones."""
    heads = rows.reshape(-1, head_width // 2, 2, rows.shape[1])
    return np.concatenate([heads[:, :, 0], heads[:, :, 1]], axis=1).reshape(rows.shape)


@pytest.mark.parametrize("kind_name", KINDS)
def test_every_value_of_the_file_is_in_its_place(tmp_path: Path, kind_name: str) -> None:
    path = small_file(tmp_path, kind_name)
    expected = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }
    model = packed_model(path)
    for layer, weights in enumerate(model.layers):
        for field, name in FIELDS.items():
            wanted = expected[f"blk.{layer}.{name}.weight"]
            if name in ("attn_q", "attn_k"):
                wanted = half_split(wanted, SHAPE.head_width)
            packed = part_of(weights, field)
            got = packed if name.endswith("norm") else values(packed)
            np.testing.assert_array_equal(got, wanted, err_msg=f"{layer} {name}")
    assert model.layers[0].unit.down.kind.value == (
        "F32" if kind_name.startswith("Q") else kind_name
    )
    np.testing.assert_array_equal(values(model.home.embedding), expected["token_embd.weight"])
    np.testing.assert_array_equal(values(model.home.output), expected["output.weight"])
    np.testing.assert_array_equal(model.home.output_norm, expected["output_norm.weight"])


def test_a_tied_head_is_held_once(tmp_path: Path) -> None:
    tied, untied = packed_model(small_file(tmp_path, tied=True)), packed_model(small_file(tmp_path))
    assert tied.home.output is tied.home.embedding
    difference = home_bytes(untied.gguf, untied.config) - home_bytes(tied.gguf, tied.config)
    assert difference == untied.home.output.buffer.nbytes


@pytest.mark.parametrize("kind_name", ["F32", "Q4_0"])
def test_what_was_in_the_buffer_does_not_matter(tmp_path: Path, kind_name: str) -> None:
    file = GgufFile.open(small_file(tmp_path, kind_name))
    config = ModelConfig.from_gguf(file)
    for pack, size in (
        (lambda buffer: pack_layer(file, config, 1, buffer), layer_bytes(file, config, 1)),
        (lambda buffer: pack_home(file, config, buffer), home_bytes(file, config)),
    ):
        buffers = [np.full(size, fill, np.uint8) for fill in (0, 255)]
        for buffer in buffers:
            pack(buffer)
        np.testing.assert_array_equal(buffers[0], buffers[1])
        assert size % 64 == 0


def test_views_over_a_read_only_map_share_its_memory(tmp_path: Path) -> None:
    file = GgufFile.open(small_file(tmp_path, "Q8_0"))
    config = ModelConfig.from_gguf(file)
    path = tmp_path / "layer-0"
    buffer = np.memmap(path, np.uint8, "w+", shape=(layer_bytes(file, config, 0),))
    pack_layer(file, config, 0, buffer)
    buffer.flush()
    mapped = np.memmap(path, np.uint8, "r")
    weights = LayerWeights.over(file, config, 0, mapped)
    for field, name in FIELDS.items():
        part = part_of(weights, field)
        array = part if name.endswith("norm") else part.buffer
        assert np.shares_memory(array, mapped)
        assert not array.flags.writeable
        assert array.ctypes.data % 64 == 0
    home = np.zeros(home_bytes(file, config), np.uint8)
    home.flags.writeable = False
    assert np.shares_memory(HomeWeights.over(file, config, home).output_norm, home)


def test_a_buffer_of_another_size_is_refused(tmp_path: Path) -> None:
    file = GgufFile.open(small_file(tmp_path))
    config = ModelConfig.from_gguf(file)
    size = layer_bytes(file, config, 0)
    for wrong in (np.zeros(size - 64, np.uint8), np.zeros(size // 4, np.float32)):
        with pytest.raises(ModelFileError, match=f"where {size} belong"):
            LayerWeights.over(file, config, 0, wrong)  # type: ignore[arg-type]
        with pytest.raises(ModelFileError, match=f"where {size} belong"):
            pack_layer(file, config, 0, wrong)  # type: ignore[arg-type]


def test_sizes_and_views_need_the_header_alone(tmp_path: Path) -> None:
    path = small_file(tmp_path, "Q4_0")
    whole = GgufFile.open(path)
    header = GgufFile.parse_header(
        path.read_bytes()[: whole.data_offset], "header", path.stat().st_size
    )
    config = ModelConfig.from_gguf(header)
    assert config == ModelConfig.from_gguf(whole)
    buffer = np.zeros(layer_bytes(header, config, 0), np.uint8)
    pack_layer(whole, config, 0, buffer)
    weights = LayerWeights.over(header, config, 0, buffer)
    np.testing.assert_array_equal(
        values(weights.unit.up), values(packed_model(path).layers[0].unit.up)
    )
    with pytest.raises(ModelFileError, match="not here"):
        pack_layer(header, config, 0, buffer)


@pytest.mark.parametrize("kind_name", KINDS)
@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "blk.0.ffn_up.weight"])
def test_infinite_weights_are_refused(tmp_path: Path, kind_name: str, name: str) -> None:
    path = small_file(tmp_path, kind_name)
    file = GgufFile.open(path)
    info = file.tensors[name]
    infinity = {"F32": b"\0\0\x80\x7f", "BF16": b"\x80\x7f"}.get(info.kind_name, b"\0\x7c")
    at = info.offset + (info.rows - 1) * info.row_bytes
    data = bytearray(path.read_bytes())
    data[at : at + len(infinity)] = infinity
    damaged = GgufFile.parse(bytes(data), "damaged.gguf")
    config = ModelConfig.from_gguf(damaged)
    with pytest.raises(ModelFileError, match=f"damaged.gguf: tensor {name} is not finite"):
        pack_layer(damaged, config, 0, np.zeros(layer_bytes(damaged, config, 0), np.uint8))


def test_packing_takes_little_memory_besides_the_buffer(tmp_path: Path) -> None:
    shape = SmallShape(layers=1, width=512, heads=8, head_width=64, feed_forward=2048)
    path = write_llama(tmp_path / "big.gguf", llama_keys(shape), llama_tensors(shape))
    file = GgufFile.open(path)
    config = ModelConfig.from_gguf(file)
    buffer = np.zeros(layer_bytes(file, config, 0), np.uint8)
    assert buffer.nbytes > 10 * SLICE_BYTES_MAX
    tracemalloc.start()
    try:
        pack_layer(file, config, 0, buffer)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * SLICE_BYTES_MAX


class Heads(NamedTuple):
    """As much of a configuration as says in which order rows are packed."""

    family: Family
    head_width: int
    rope: Rope


@pytest.mark.parametrize("family", [FAMILIES["llama"], FAMILIES["qwen2"]], ids=lambda f: f.name)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 8))
def test_the_kernels_order_is_a_permutation_that_keeps_pairs(
    family: Family, heads: int, half: int, still: int
) -> None:
    width, turned = 2 * half, max(1, half - still)
    config = Heads(family, width, Rope(10000.0, 2 * turned, 1.0, (1.0,) * turned))
    source = kernel_order(np.arange(heads * width), config)  # type: ignore[arg-type]
    assert sorted(source.tolist()) == list(range(heads * width))
    for head in range(heads):
        within = (source[head * width : (head + 1) * width] - head * width).tolist()
        pairs = list(zip(within[:turned], within[half : half + turned], strict=True))
        if family.neighbours:
            assert pairs == [(2 * pair, 2 * pair + 1) for pair in range(turned)]
        else:
            assert pairs == [(pair, turned + pair) for pair in range(turned)]


def test_needed_tensors(tmp_path: Path) -> None:
    tensors = llama_tensors(SHAPE) | {"rope_freqs.weight": np.ones(8, np.float32)}
    file = GgufFile.open(write_llama(tmp_path / "f.gguf", llama_keys(SHAPE), tensors))
    config = ModelConfig.from_gguf(file)
    every = needed_tensors(file, config, Span(0, 2), home=True)
    assert every == list(file.tensors)
    middle = needed_tensors(file, config, Span(1, 2), home=False)
    assert {name.split(".")[0] for name in middle} == {"blk", "rope_freqs"}
    assert sum(name.startswith("blk.1.") for name in middle) == len(middle) - 1 == 9


def test_layout_is_the_kernels_own(tmp_path: Path) -> None:
    """Packed bytes are kept on disks and sent to peers: a change needs another LAYOUT_VERSION."""
    assert edgellama_kernels.LAYOUT_VERSION == 1
    file = GgufFile.open(small_file(tmp_path, "Q4_0"))
    config = ModelConfig.from_gguf(file)
    norms, query, key, output = 2 * 256, 3456, 1152, 3456
    gate, down = 176 * 2 * (16 + 2), 64 * 172 * 4
    assert layer_bytes(file, config, 0) == norms + query + 2 * key + output + 2 * gate + down
