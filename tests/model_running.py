"""Running a model in a test: packed once, cut into any stages, fed in any chunks.

Any test may `import model_running`: pytest puts the folder of `tests/conftest.py` on the path.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import edgellama_kernels
import gguf
import numpy as np

from edgellama.model.config import ModelConfig
from edgellama.model.gguf import GgufFile
from edgellama.model.head import Head
from edgellama.model.hidden import take_rows
from edgellama.model.stage import CHUNK_TOKENS_MAX, Stage
from edgellama.model.weights import (
    HomeWeights,
    LayerWeights,
    home_bytes,
    layer_bytes,
    pack_home,
    pack_layer,
)
from edgellama.values import KV_F16, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgellama_kernels import Kernels
    from numpy.typing import NDArray

SESSION = 7


@dataclass(frozen=True)
class PackedModel:
    """A whole model packed into memory."""

    gguf: GgufFile
    config: ModelConfig
    layers: tuple[LayerWeights, ...]
    home: HomeWeights
    kv_kind: str = KV_F16  # how rings keep keys and values


def packed_model(path: Path) -> PackedModel:
    """Read and pack every layer and home."""
    file = GgufFile.open(path)
    config = ModelConfig.from_gguf(file)
    layers = []
    for layer in range(config.layers):
        buffer = np.zeros(layer_bytes(file, config, layer), np.uint8)
        pack_layer(file, config, layer, buffer)
        layers.append(LayerWeights.over(file, config, layer, buffer))
    buffer = np.zeros(home_bytes(file, config), np.uint8)
    pack_home(file, config, buffer)
    return PackedModel(file, config, tuple(layers), HomeWeights.over(file, config, buffer))


class Ring:
    """Stages of ``counts`` layers each, one after the other in one process, with one session."""

    def __init__(
        self,
        model: PackedModel,
        kernels: Kernels,
        counts: Sequence[int],
        context: int | None = None,
    ) -> None:
        assert sum(counts) == model.config.layers
        self.head = Head(kernels, model.config, model.home)
        self.stages = []
        first = 0
        for count in counts:
            span = Span(first, first + count)
            layers = model.layers[span.first : span.past]
            capacity = context or model.config.context_max
            kept = capacity, 1, model.kv_kind
            self.stages.append(Stage(kernels, model.config, span, layers, *kept))
            first = span.past
        for stage in self.stages:
            stage.open(SESSION)

    def logits(self, token_ids: Sequence[int], position: int, rows: int = 1) -> NDArray[np.float32]:
        """Go once around with ``token_ids``; return the logits of the last ``rows`` tokens."""
        hidden = self.head.embed(token_ids)
        for stage in self.stages:
            hidden = stage.forward(SESSION, hidden, position)
        count = len(token_ids)
        return self.head.logits(take_rows(hidden, count - rows, count))

    def prefill(
        self, token_ids: Sequence[int], chunks: Sequence[int], position: int = 0
    ) -> NDArray[np.float32]:
        """Feed all tokens in chunks of the given sizes in turn; return every row's logits."""
        pieces = []
        for part in parts(token_ids, chunks):
            pieces.append(self.logits(part, position, len(part)))
            position += len(part)
        return np.concatenate(pieces)

    def greedy(self, prompt: Sequence[int], count: int, position: int = 0) -> list[int]:
        """Return ``count`` tokens after ``prompt``, each the likeliest, fed back one by one."""
        out: list[int] = []
        step = list(prompt)
        for _ in range(count):
            out.append(int(self.logits(step, position)[0].argmax()))
            position += len(step)
            step = out[-1:]
        return out


def parts(token_ids: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut into parts of ``sizes``, the last size again and again."""
    first = 0
    index = 0
    while first < len(token_ids):
        size = sizes[min(index, len(sizes) - 1)]
        yield list(token_ids[first : first + size])
        first += size
        index += 1


def compositions(total: int) -> list[tuple[int, ...]]:
    """Return every way of writing ``total`` as an ordered sum of positive counts."""
    if total == 0:
        return [()]
    return [(first, *rest) for first in range(1, total + 1) for rest in compositions(total - first)]


@dataclass(frozen=True)
class SmallShape:
    """A model that a test writes; ``head_width`` need not be ``width / heads``."""

    layers: int = 2
    width: int = 48
    heads: int = 6
    kv_heads: int = 2
    head_width: int = 16
    feed_forward: int = 40
    vocabulary: int = 40
    context: int = 512
    tied: bool = False


def llama_keys(shape: SmallShape) -> dict[str, str | int | float]:
    """Return the metadata of a llama of that shape."""
    return {
        "general.name": "small",
        "llama.block_count": shape.layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head_width,
        "llama.attention.value_length": shape.head_width,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": shape.head_width,
        "llama.vocab_size": shape.vocabulary,
    }


def llama_tensors(shape: SmallShape, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return random weights [rows, columns] under their GGUF names, norms near 1."""
    random = np.random.default_rng(seed)
    inner = shape.heads * shape.head_width
    kv_inner = shape.kv_heads * shape.head_width

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return random.uniform(0.5, 1.5, shape.width).astype(np.float32)

    tensors = {"token_embd.weight": matrix(shape.vocabulary, shape.width) * np.float32(3)}
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        tensors |= {
            prefix + "attn_norm.weight": norm(),
            prefix + "attn_q.weight": matrix(inner, shape.width),
            prefix + "attn_k.weight": matrix(kv_inner, shape.width),
            prefix + "attn_v.weight": matrix(kv_inner, shape.width),
            prefix + "attn_output.weight": matrix(shape.width, inner),
            prefix + "ffn_norm.weight": norm(),
            prefix + "ffn_gate.weight": matrix(shape.feed_forward, shape.width),
            prefix + "ffn_up.weight": matrix(shape.feed_forward, shape.width),
            prefix + "ffn_down.weight": matrix(shape.width, shape.feed_forward),
        }
    tensors["output_norm.weight"] = norm()
    if not shape.tied:
        tensors["output.weight"] = matrix(shape.vocabulary, shape.width)
    return tensors


def write_llama(
    path: Path,
    keys: Mapping[str, str | int | float | bool],
    tensors: Mapping[str, NDArray[np.generic]],
    architecture: str = "llama",
) -> Path:
    """Write a GGUF file of float32 or float16 tensors; return path."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most memory that Python and NumPy had made at one time during some work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def last_chunk_bytes(model: PackedModel) -> int:
    """Return what the last chunk of a full context takes at its peak, on NumPy in one stage."""
    ring = Ring(model, edgellama_kernels.load("numpy"), (model.config.layers,))
    position = model.config.context_max - CHUNK_TOKENS_MAX
    ring.stages[0]._sessions[SESSION].length = position  # as if so much, all zeros, came before
    return peak_bytes(lambda: ring.logits([1] * CHUNK_TOKENS_MAX, position))
