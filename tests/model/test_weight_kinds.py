"""Every type of matrix in whole models, alone and mixed as real files mix them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import edgellama_kernels
import gguf
import numpy as np
import pytest
from edgellama_kernels import WeightKind
from edgellama_kernels.kinds import block_fields
from float64_llama import Float64Llama
from model_running import Ring, SmallShape, llama_keys, llama_tensors, packed_model

from edgellama.errors import ModelFileError
from edgellama.model.config import ModelConfig
from edgellama.model.cost import model_facts
from edgellama.model.gguf import GgufFile
from edgellama.model.weights import layer_bytes, pack_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellama_kernels import Kernels

SHAPE = SmallShape(
    layers=2, width=256, heads=4, kv_heads=2, head_width=64, feed_forward=512, context=128
)
TIED = replace(SHAPE, tied=True)
NEW_KINDS = ["Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
TOKENS = [number * 7 % 40 for number in range(70)]  # beyond one tile of attention


def random_blocks(kind_name: str, rows: int, columns: int, seed: int) -> np.ndarray:
    """Return raw rows of random quants and factors whose weights deviate by some 0.06."""
    kind = WeightKind(kind_name)
    size = columns // kind.block_size * kind.block_bytes
    raw = np.random.default_rng(seed).integers(0, 256, (rows, size), dtype=np.uint8)
    fields = block_fields(kind, raw.reshape(rows, -1, kind.block_bytes))
    scales = {"scale": 1.0}
    if "minimum" in fields:  # so that the weights' mean is near 0
        quants = {"Q2_K": 1.5, "Q4_1": -7.5, "Q4_K": 7.5, "Q5_1": -15.5, "Q5_K": 15.5}
        scales["minimum"] = quants[kind_name]
    for _ in range(2):
        for name, scale in scales.items():
            fields[name][:] = np.array([scale], np.float16).view(np.uint8)
        deviation = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind_name]).std()
        scales = {name: scale * 0.06 / deviation for name, scale in scales.items()}
    return raw


def write_model(path: Path, shape: SmallShape, kind_of: Callable[[str], str]) -> Path:
    """Write a random llama whose matrices have the types that their names are given."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in llama_keys(shape).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for seed, (name, wide) in enumerate(llama_tensors(shape).items()):
        kind_name = kind_of(name) if wide.ndim > 1 else "F32"
        if kind_name == "F32":
            writer.add_tensor(name, wide)
        else:
            raw = random_blocks(kind_name, *wide.shape, seed)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind_name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_q4_k_m(name: str) -> str:
    if name == "token_embd.weight" or name.endswith(("attn_v.weight", "ffn_down.weight")):
        return "Q6_K"
    return "Q5_0" if name.endswith("attn_k.weight") else "Q4_K"


@pytest.fixture(params=[("numpy", 1), ("numba", 1), ("numba", 2)], ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    try:
        loaded = edgellama_kernels.load(*request.param)
    except edgellama_kernels.BackendUnavailable as error:
        pytest.skip(str(error))
    yield loaded
    loaded.close()


@pytest.mark.parametrize("kind_name", [*NEW_KINDS, "Q4_K_M"])
def test_backends_cuts_and_chunks_agree_and_are_near_float64(
    tmp_path: Path, kernels: Kernels, kind_name: str
) -> None:
    """Activations of 8 bits err by some hundredths of the logits' own deviation."""
    mixed = kind_name == "Q4_K_M"
    shape = TIED if mixed else SHAPE
    path = write_model(tmp_path / "m.gguf", shape, as_q4_k_m if mixed else lambda _: kind_name)
    model = packed_model(path)
    expected = Ring(model, edgellama_kernels.load("numpy"), (2,)).prefill(TOKENS, [70])
    for counts, sizes in (((2,), (70,)), ((1, 1), (33, 1, 36)), ((1, 1), (60, 1))):
        logits = Ring(model, kernels, counts).prefill(TOKENS, sizes)
        np.testing.assert_array_equal(logits, expected, err_msg=f"{counts} {sizes}")
    wanted = Float64Llama(path).logits(TOKENS)
    error = np.abs(expected - wanted)
    assert error.mean() < 0.03 * wanted.std()
    assert error.max() < 0.2 * wanted.std()


def test_a_mixture_is_packed_and_counted_type_by_type(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", TIED, as_q4_k_m)
    model = packed_model(path)
    oracle = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    embedding = oracle["token_embd.weight"]
    wanted = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    np.testing.assert_array_equal(model.home.embedding.dequantized_rows(range(40)), wanted)
    assert model.home.output is model.home.embedding
    layer = model.layers[0]
    kinds = [layer.key.kind, layer.value.kind, layer.unit.up.kind]
    assert kinds == [WeightKind.Q5_0, WeightKind.Q6_K, WeightKind.Q4_K]
    bits = {"Q5_0": 5.5, "Q6_K": 6.5625, "Q4_K": 4.625}
    wanted_bytes = sum(
        int(np.prod(tensor.shape)) * bits.get(tensor.tensor_type.name, 32) / 8
        for name, tensor in oracle.items()
        if name.startswith("blk.0.")
    )
    assert model_facts(model.gguf, "00", "m").layer_bytes[0] == wanted_bytes


@pytest.mark.parametrize("kind_name", NEW_KINDS)
@pytest.mark.parametrize("field", ["scale", "minimum"])
@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7E00])
def test_scales_that_are_not_finite_are_refused(
    tmp_path: Path, kind_name: str, field: str, half: int
) -> None:
    path = write_model(tmp_path / "m.gguf", SHAPE, lambda _: kind_name)
    data = np.fromfile(path, np.uint8)
    file = GgufFile.open(path)
    info = file.tensors["blk.0.ffn_up.weight"]
    kind = WeightKind(kind_name)
    last = data[info.offset : info.offset + info.bytes][-kind.block_bytes :]
    fields = block_fields(kind, last)
    if field not in fields:
        pytest.skip("this type has no minimums")
    fields[field][:] = np.array([half], np.uint16).view(np.uint8)
    damaged = GgufFile.parse(data.tobytes(), "damaged.gguf")
    config = ModelConfig.from_gguf(damaged)
    buffer = np.zeros(layer_bytes(damaged, config, 0), np.uint8)
    with pytest.raises(ModelFileError, match=r"tensor blk\.0\.ffn_up\.weight is not finite"):
        pack_layer(damaged, config, 0, buffer)
