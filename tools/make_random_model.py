"""Write a GGUF model of a given shape with random weights.

It answers whether a shape fits and how fast it is, where no trained model is at hand.

There are shapes of every family. The file is as large as a trained one of the same shape and type,
its vocabulary is a valid one of the SentencePiece kind, and its activations keep a sane size
through all layers; its answers mean nothing. Weights go to the disk as they are made, a few MiB at
a time.

    python tools/make_random_model.py --shape tinyllama-1.1b --type Q4_0 model.gguf
    python tools/make_random_model.py --shape tiny --layers 8 --type F32 model.gguf
    python tools/make_random_model.py --shape qwen3-30b-a3b --layers 4 --type Q4_K_M model.gguf
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

Generator = np.random.Generator

ALIGNMENT = 32
PIECE_WEIGHTS = 1 << 22  # weights made at a time: 16 MiB as float32
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
SPACE = "▁"


@dataclasses.dataclass(frozen=True)
class Shape:
    """The dimensions of a model; ``tied`` means that the embedding is also the output.

    ``head_width`` 0 is width / heads, ``rope_dimensions`` 0 the whole head. ``feed_forward`` is
    that of one expert where there are ``experts``, ``used`` of which a token meets. ``window`` is
    what some layers' attention sees, 0 everything. ``rope_factors`` divide RoPE's frequencies, as
    Llama 3.1's do; ``original_context`` brings Phi 3's two sets of them.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int
    tied: bool = False
    rope_base: float = 10000.0
    architecture: str = "llama"
    head_width: int = 0
    experts: int = 0
    used: int = 0
    window: int = 0
    rope_dimensions: int = 0
    rope_scale: float = 0.0
    rope_factors: bool = False
    original_context: int = 0

    @property
    def head(self) -> int:
        """Numbers in a head."""
        return self.head_width or self.width // self.heads

    @property
    def turned(self) -> int:
        """Numbers of a head that RoPE turns."""
        return self.rope_dimensions or self.head


TINY = Shape(4, 64, 4, 2, 128, 512, 512)
SHAPES = {
    "tiny": TINY,
    "tiny-tied": dataclasses.replace(TINY, tied=True),
    "tiny-llama-3.1": dataclasses.replace(TINY, rope_base=500000.0, rope_factors=True),
    "tiny-qwen2": dataclasses.replace(TINY, architecture="qwen2", tied=True),
    "tiny-qwen3": dataclasses.replace(TINY, architecture="qwen3", head_width=32),
    "tiny-qwen3moe": dataclasses.replace(
        TINY, architecture="qwen3moe", head_width=32, feed_forward=32, experts=16, used=4
    ),
    "tiny-gemma3": dataclasses.replace(
        TINY, architecture="gemma3", layers=7, head_width=32, window=48, rope_scale=8.0, tied=True
    ),
    "tiny-phi3": dataclasses.replace(TINY, architecture="phi3", kv_heads=4, window=47),
    "tiny-phi3-long": dataclasses.replace(
        TINY, architecture="phi3", head_width=32, rope_dimensions=24, original_context=256
    ),
    "small": Shape(8, 256, 8, 4, 704, 2048, 1024),
    "small-qwen3moe": Shape(
        *(6, 256, 8, 2, 256, 2048, 1024, False, 1e6, "qwen3moe", 64), experts=32, used=4
    ),
    "smollm-135m": Shape(30, 576, 9, 3, 1536, 49152, 2048, tied=True),
    "tinyllama-1.1b": Shape(22, 2048, 32, 4, 5632, 32000, 2048),
    "llama-2-7b": Shape(32, 4096, 32, 32, 11008, 32000, 4096),
    "llama-3.2-1b": Shape(
        16, 2048, 32, 8, 8192, 128256, 131072, tied=True, rope_base=500000.0, rope_factors=True
    ),
    "mistral-7b": Shape(32, 4096, 32, 8, 14336, 32768, 32768, rope_base=1e6),
    "qwen2.5-0.5b": Shape(
        24, 896, 14, 2, 4864, 151936, 32768, tied=True, rope_base=1e6, architecture="qwen2"
    ),
    "qwen3-0.6b": Shape(
        *(28, 1024, 16, 8, 3072, 151936, 40960, True, 1e6), architecture="qwen3", head_width=128
    ),
    "qwen3-30b-a3b": Shape(
        *(48, 2048, 32, 4, 768, 151936, 40960, False, 1e6, "qwen3moe", 128), experts=128, used=8
    ),
    "gemma-3-1b": Shape(
        *(26, 1152, 4, 1, 6912, 262144, 32768, True, 1e6, "gemma3", 256), window=512
    ),
    "phi-3-mini": Shape(32, 3072, 32, 32, 8192, 32064, 4096, architecture="phi3", window=2047),
    "phi-4-mini": Shape(
        *(32, 3072, 24, 8, 8192, 200064, 131072, True, 10000.0, "phi3", 128),
        rope_dimensions=96,
        original_context=4096,
    ),
}


class Matrix(NamedTuple):
    """A tensor to be written; ``deviation`` is the standard deviation of its weights."""

    name: str
    shape: tuple[int, ...]  # columns first
    deviation: float
    mean: float = 0.0

    @property
    def weights(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


class Kind(NamedTuple):
    """A tensor type and how ``count`` random weights of a given deviation are encoded in it."""

    number: int
    file_type: int
    block_size: int
    block_bytes: int
    encode: Callable[[Generator, int, float, float], NDArray[np.uint8]]


def _float32(random: Generator, count: int, deviation: float, mean: float) -> NDArray[np.float32]:
    weights = random.standard_normal(count, dtype=np.float32)
    return weights * np.float32(deviation) + np.float32(mean)


def _as_f32(random: Generator, count: int, deviation: float, mean: float) -> NDArray[np.uint8]:
    return _float32(random, count, deviation, mean).astype("<f4").view(np.uint8)


def _as_f16(random: Generator, count: int, deviation: float, mean: float) -> NDArray[np.uint8]:
    return _float32(random, count, deviation, mean).astype("<f2").view(np.uint8)


def _as_q8_0(random: Generator, count: int, deviation: float, mean: float) -> NDArray[np.uint8]:
    # Bytes are spread evenly over -127..127, whose standard deviation is 73.6.
    assert mean == 0
    blocks = np.empty((count // 32, 34), dtype=np.uint8)
    quants = random.integers(0, 256, (count // 32, 32), dtype=np.uint8)
    quants[quants == 128] = 0  # -128 would shift the mean, and no quantizer writes it
    blocks[:, 2:] = quants
    blocks[:, :2] = _scales(random, count // 32, deviation / 73.6)
    return blocks.reshape(-1)


def _as_q4_0(random: Generator, count: int, deviation: float, mean: float) -> NDArray[np.uint8]:
    # A byte is two weights of 0..15 less 8; 0 becomes 8, so that the mean is 0; deviation 4.18.
    assert mean == 0
    nibbles = np.where(np.arange(16) == 0, 8, np.arange(16)).astype(np.uint8)
    pairs = (nibbles[:, None] << 4 | nibbles[None, :]).reshape(-1)
    blocks = np.empty((count // 32, 18), dtype=np.uint8)
    blocks[:, 2:] = pairs[random.integers(0, 256, (count // 32, 16), dtype=np.uint8)]
    blocks[:, :2] = _scales(random, count // 32, deviation / 4.18)
    return blocks.reshape(-1)


def _as_q4_k(random: Generator, count: int, deviation: float, mean: float) -> NDArray[np.uint8]:
    # d * scale * (nibble - 7.5); scales of 24..39 have a root mean square of 31.8, nibbles 4.61.
    assert mean == 0
    blocks = np.empty((count // 256, 144), dtype=np.uint8)
    scales = random.integers(24, 40, (count // 256, 8), dtype=np.uint8)
    first, later = scales[:, :4], scales[:, 4:]
    blocks[:, 4:8] = blocks[:, 8:12] = first | later >> 4 << 6
    blocks[:, 12:16] = (later & 15) * np.uint8(17)
    blocks[:, 16:] = random.integers(0, 256, (count // 256, 128), dtype=np.uint8)
    blocks[:, :2] = _scales(random, count // 256, deviation / (31.8 * 4.61))
    halves = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    blocks[:, 2:4] = (halves * np.float32(7.5)).astype("<f2").view(np.uint8)
    return blocks.reshape(-1)


def _as_q6_k(random: Generator, count: int, deviation: float, mean: float) -> NDArray[np.uint8]:
    # d * scale * (0..63 - 32), deviation 18.5; scales of 48..79 (64.2) with either sign.
    assert mean == 0
    blocks = np.empty((count // 256, 210), dtype=np.uint8)
    blocks[:, :192] = random.integers(0, 256, (count // 256, 192), dtype=np.uint8)
    scales = random.integers(48, 80, (count // 256, 16), dtype=np.int8)
    signs = random.integers(0, 2, scales.shape, dtype=np.int8) * np.int8(2) - np.int8(1)
    blocks[:, 192:208] = (scales * signs).view(np.uint8)
    blocks[:, 208:] = _scales(random, count // 256, deviation / (64.2 * 18.5))
    return blocks.reshape(-1)


def _scales(random: Generator, blocks: int, scale: float) -> NDArray[np.uint8]:
    # Unlike from block to block, so that a block read with another's scale is noticed.
    scales = (0.75 + 0.5 * random.random(blocks, dtype=np.float32)) * np.float32(scale)
    return scales.astype("<f2").view(np.uint8).reshape(blocks, 2)


KINDS = {
    "F32": Kind(0, 0, 1, 4, _as_f32),
    "F16": Kind(1, 1, 1, 2, _as_f16),
    "Q4_0": Kind(2, 2, 32, 18, _as_q4_0),
    "Q8_0": Kind(8, 7, 32, 34, _as_q8_0),
    "Q4_K": Kind(12, 14, 256, 144, _as_q4_k),
    "Q6_K": Kind(14, 18, 256, 210, _as_q6_k),
}
MIXTURE = "Q4_K_M"  # as real files mix: embedding, output, values and ffn_down in Q6_K
MIXTURE_FILE_TYPE = 15
WIDER = ("token_embd", "output", "attn_v", "ffn_down", "ffn_down_exps")


def model_tensors(shape: Shape) -> list[Matrix]:
    """Return the tensors in file order, scaled so that no activation grows or vanishes.

    A matrix of K columns keeps the size of its input with a deviation of 1 / sqrt(K). The two
    parts of a layer that add to the hidden state are smaller by sqrt(2 layers), so that their sum
    stays near 1.
    """
    # Gemma multiplies what it embeds by sqrt(width), and so it comes out as large as the others'.
    keeping = 1 / math.sqrt(shape.width)
    embedded = keeping if shape.architecture == "gemma3" else 2 * keeping
    tensors = [Matrix("token_embd.weight", (shape.width, shape.vocabulary), embedded)]
    for layer in range(shape.layers):
        parts = (*_attention(shape), *_feed_forward(shape))
        tensors += [part._replace(name=f"blk.{layer}.{part.name}") for part in parts]
    tensors.append(_norm("output_norm.weight", shape.width))
    if not shape.tied:
        tensors.append(Matrix("output.weight", (shape.width, shape.vocabulary), 2 * keeping))
    pairs = (shape.turned // 2,)
    if shape.rope_factors:
        tensors.append(Matrix("rope_freqs.weight", pairs, 0.5, 4.0))
    if shape.original_context:
        tensors.append(Matrix("rope_factors_long.weight", pairs, 0.5, 8.0))
        tensors.append(Matrix("rope_factors_short.weight", pairs, 0.05, 1.1))
    return tensors


def _norm(name: str, width: int, mean: float = 1.0) -> Matrix:
    return Matrix(name, (width,), mean / 10, mean)


def _attention(shape: Shape) -> Iterator[Matrix]:
    family, width = shape.architecture, shape.width
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    keeping, adding = 1 / math.sqrt(width), 1 / math.sqrt(2 * shape.layers)
    yield _norm("attn_norm.weight", width)
    if family == "phi3":
        yield Matrix("attn_qkv.weight", (width, queries + 2 * keys), keeping)
    else:
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield Matrix(f"attn_{name}.weight", (width, rows), keeping)
            if family == "qwen2":
                yield Matrix(f"attn_{name}.bias", (rows,), 0.2)
    if family in ("qwen3", "qwen3moe", "gemma3"):
        yield _norm("attn_q_norm.weight", shape.head)
        yield _norm("attn_k_norm.weight", shape.head)
    yield Matrix("attn_output.weight", (queries, width), adding / math.sqrt(queries))
    if family == "gemma3":
        yield _norm("post_attention_norm.weight", width, adding)


def _feed_forward(shape: Shape) -> Iterator[Matrix]:
    family, width, inner = shape.architecture, shape.width, shape.feed_forward
    keeping, adding = 1 / math.sqrt(width), 1 / math.sqrt(2 * shape.layers)
    yield _norm("ffn_norm.weight", width)
    if shape.experts:
        # So wide that the experts' shares differ, as a trained router's do.
        yield Matrix("ffn_gate_inp.weight", (width, shape.experts), 2 * keeping)
        yield Matrix("ffn_gate_exps.weight", (width, inner, shape.experts), keeping)
        yield Matrix("ffn_up_exps.weight", (width, inner, shape.experts), keeping)
        yield Matrix(
            "ffn_down_exps.weight", (inner, width, shape.experts), adding / math.sqrt(inner)
        )
    elif family == "phi3":
        yield Matrix("ffn_up.weight", (width, 2 * inner), keeping)
        yield Matrix("ffn_down.weight", (inner, width), adding / math.sqrt(inner))
    else:
        yield Matrix("ffn_gate.weight", (width, inner), keeping)
        yield Matrix("ffn_up.weight", (width, inner), keeping)
        yield Matrix("ffn_down.weight", (inner, width), adding / math.sqrt(inner))
    if family == "gemma3":
        yield _norm("post_ffw_norm.weight", width, adding)


def vocabulary_pieces(size: int) -> Iterator[tuple[str, float, int]]:
    """Yield (piece, score, type) of a vocabulary in which every piece can be reached by merges."""
    assert size >= 3 + 256 + 1, "a vocabulary needs its special tokens, all bytes and a letter"
    special = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    special += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    characters = [SPACE, *LETTERS]
    single = characters + [chr(code) for code in range(33, 127) if chr(code) not in characters]
    # Every beginning of a piece is a piece with a better score, so merges from the left reach it.
    longer = (
        "".join(letters)
        for length in itertools.count(2)
        for letters in itertools.product(characters, *[LETTERS] * (length - 1))
    )
    yield from special
    pieces = itertools.islice(itertools.chain(single, longer), size - len(special))
    for rank, piece in enumerate(pieces):
        yield piece, -float(rank), 1


def write_model(path: Path, shape: Shape, kind_name: str, seed: int = 0) -> None:
    """Write the model; the same arguments always give the same bytes."""
    random = np.random.Generator(np.random.PCG64(seed))
    tensors = [(tensor, _kind_of(tensor, kind_name)) for tensor in model_tensors(shape)]
    with path.open("wb") as file:
        file.write(_header(shape, kind_name, tensors))
        for tensor, kind in tensors:
            _pad(file)
            _write_tensor(file, random, tensor, kind)


def _kind_of(tensor: Matrix, kind_name: str) -> Kind:
    """Return the type of a tensor: rows of no whole blocks get a wider one, vectors F32."""
    if len(tensor.shape) == 1 or "ffn_gate_inp." in tensor.name:
        return KINDS["F32"]
    if kind_name == MIXTURE:
        kind_name = "Q6_K" if tensor.name.split(".")[-2] in WIDER else "Q4_K"
    for name in (kind_name, "Q8_0"):
        if tensor.shape[0] % KINDS[name].block_size == 0:
            return KINDS[name]
    return KINDS["F32"]


def _write_tensor(file: BinaryIO, random: Generator, tensor: Matrix, kind: Kind) -> None:
    for first in range(0, tensor.weights, PIECE_WEIGHTS):
        count = min(PIECE_WEIGHTS, tensor.weights - first)
        file.write(kind.encode(random, count, tensor.deviation, tensor.mean).data)


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % ALIGNMENT))


def _header(shape: Shape, kind_name: str, tensors: list[tuple[Matrix, Kind]]) -> bytes:
    keys = _metadata(shape, kind_name)
    table = b""
    offset = 0
    for tensor, kind in tensors:
        table += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        table += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        table += struct.pack("<IQ", kind.number, offset)
        tensor_bytes = tensor.weights // kind.block_size * kind.block_bytes
        offset += -(-tensor_bytes // ALIGNMENT) * ALIGNMENT
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    return start + b"".join(keys) + table


def _metadata(shape: Shape, kind_name: str) -> list[bytes]:
    name = shape.architecture
    file_type = MIXTURE_FILE_TYPE if kind_name == MIXTURE else KINDS[kind_name].file_type
    numbers = {
        f"{name}.context_length": shape.context,
        f"{name}.embedding_length": shape.width,
        f"{name}.block_count": shape.layers,
        f"{name}.feed_forward_length": shape.feed_forward * (shape.used or 1),
        f"{name}.attention.head_count": shape.heads,
        f"{name}.attention.head_count_kv": shape.kv_heads,
        f"{name}.attention.key_length": shape.head,
        f"{name}.attention.value_length": shape.head,
        f"{name}.rope.dimension_count": shape.turned,
        f"{name}.vocab_size": shape.vocabulary,
        "general.file_type": file_type,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    fractions = {
        f"{name}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{name}.rope.freq_base": shape.rope_base,
    }
    texts = {
        "general.architecture": name,
        "general.name": "random",
        "tokenizer.ggml.model": "llama",
    }
    if shape.experts:
        numbers |= {
            f"{name}.expert_count": shape.experts,
            f"{name}.expert_used_count": shape.used,
            f"{name}.expert_feed_forward_length": shape.feed_forward,
        }
    if shape.window:
        numbers[f"{name}.attention.sliding_window"] = shape.window
    if shape.rope_scale:
        texts[f"{name}.rope.scaling.type"] = "linear"
        fractions[f"{name}.rope.scaling.factor"] = shape.rope_scale
    if shape.original_context:
        longer = math.log(shape.context / shape.original_context)
        numbers[f"{name}.rope.scaling.original_context_length"] = shape.original_context
        fractions[f"{name}.rope.scaling.attn_factor"] = math.sqrt(
            1 + longer / math.log(shape.original_context)
        )
    pieces, scores, types = zip(*vocabulary_pieces(shape.vocabulary), strict=True)
    arrays = {
        "tokenizer.ggml.tokens": (8, b"".join(map(_string, pieces))),
        "tokenizer.ggml.scores": (6, struct.pack(f"<{len(scores)}f", *scores)),
        "tokenizer.ggml.token_type": (5, struct.pack(f"<{len(types)}i", *types)),
    }
    keys = [_string(key) + struct.pack("<I", 8) + _string(text) for key, text in texts.items()]
    keys += [_string(key) + struct.pack("<II", 4, number) for key, number in numbers.items()]
    keys += [_string(key) + struct.pack("<If", 6, number) for key, number in fractions.items()]
    keys += [
        _string(key) + struct.pack("<IIQ", 9, item_type, shape.vocabulary) + items
        for key, (item_type, items) in arrays.items()
    ]
    return keys


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _shape_from(arguments: argparse.Namespace) -> Shape:
    given = {
        field.name: getattr(arguments, field.name)
        for field in dataclasses.fields(Shape)
        if getattr(arguments, field.name, None) is not None
    }
    shape = dataclasses.replace(SHAPES[arguments.shape], **given)
    if (shape.width % shape.heads and not shape.head_width) or shape.heads % shape.kv_heads:
        sys.exit("width must be a multiple of heads, and heads of kv-heads")
    if not 0 <= shape.used <= shape.experts:
        sys.exit("no more experts can be used than there are")
    if shape.vocabulary < 260:
        sys.exit("the vocabulary needs at least 260 tokens")
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, help="where to write the model")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    kinds = [*KINDS, MIXTURE]
    parser.add_argument("--type", choices=kinds, default="Q4_0", help="of the matrices")
    parser.add_argument("--seed", type=int, default=0)
    for field in dataclasses.fields(Shape):
        if field.type == "int":
            option = f"--{field.name.replace('_', '-')}"
            parser.add_argument(option, type=int, help="instead of the shape's")
    parser.add_argument("--rope-base", type=float, help="instead of the shape's")
    parser.add_argument(
        "--tied", action=argparse.BooleanOptionalAction, help="the embedding is also the output"
    )
    arguments = parser.parse_args()
    write_model(arguments.path, _shape_from(arguments), arguments.type, arguments.seed)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
