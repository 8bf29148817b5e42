"""Write a GGUF model of a given shape with random weights.

It answers whether a shape fits and how fast it is, where no trained model is at hand.

The file is as large as a trained one of the same shape and type, its vocabulary is a valid one of
the SentencePiece kind, and its activations keep a sane size through all layers; its answers mean
nothing. Weights go to the disk as they are made, a few MiB at a time.

    python tools/make_random_model.py --shape tinyllama-1.1b --type Q4_0 model.gguf
    python tools/make_random_model.py --shape tiny --layers 8 --type F32 model.gguf
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
    """The dimensions of a llama; ``tied`` means that the embedding is also the output."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int
    tied: bool = False
    rope_base: float = 10000.0


SHAPES = {
    "tiny": Shape(4, 64, 4, 2, 128, 512, 512),
    "tiny-tied": Shape(4, 64, 4, 2, 128, 512, 512, tied=True),
    "small": Shape(8, 256, 8, 4, 704, 2048, 1024),
    "smollm-135m": Shape(30, 576, 9, 3, 1536, 49152, 2048, tied=True),
    "tinyllama-1.1b": Shape(22, 2048, 32, 4, 5632, 32000, 2048),
    "llama-3.2-1b": Shape(16, 2048, 32, 8, 8192, 128256, 8192, tied=True, rope_base=500000.0),
    "llama-2-7b": Shape(32, 4096, 32, 32, 11008, 32000, 4096),
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


def _scales(random: Generator, blocks: int, scale: float) -> NDArray[np.uint8]:
    # Unlike from block to block, so that a block read with another's scale is noticed.
    scales = (0.75 + 0.5 * random.random(blocks, dtype=np.float32)) * np.float32(scale)
    return scales.astype("<f2").view(np.uint8).reshape(blocks, 2)


KINDS = {
    "F32": Kind(0, 0, 1, 4, _as_f32),
    "F16": Kind(1, 1, 1, 2, _as_f16),
    "Q4_0": Kind(2, 2, 32, 18, _as_q4_0),
    "Q8_0": Kind(8, 7, 32, 34, _as_q8_0),
}


def model_tensors(shape: Shape) -> list[Matrix]:
    """Return the tensors in file order, scaled so that no activation grows or vanishes.

    A matrix of K columns keeps the size of its input with a deviation of 1 / sqrt(K). The two
    that add to the hidden state are smaller by sqrt(2 layers), so that their sum stays near 1.
    """
    kv_width = shape.width // shape.heads * shape.kv_heads
    keeping = 1 / math.sqrt(shape.width)
    adding = 1 / math.sqrt(2 * shape.layers)
    tensors = [Matrix("token_embd.weight", (shape.width, shape.vocabulary), 2 * keeping)]
    for layer in range(shape.layers):
        inner = shape.feed_forward
        tensors += [
            Matrix(f"blk.{layer}.{name}.weight", dimensions, deviation, mean)
            for name, dimensions, deviation, mean in (
                ("attn_norm", (shape.width,), 0.1, 1.0),
                ("attn_q", (shape.width, shape.width), keeping, 0.0),
                ("attn_k", (shape.width, kv_width), keeping, 0.0),
                ("attn_v", (shape.width, kv_width), keeping, 0.0),
                ("attn_output", (shape.width, shape.width), keeping * adding, 0.0),
                ("ffn_norm", (shape.width,), 0.1, 1.0),
                ("ffn_gate", (shape.width, inner), keeping, 0.0),
                ("ffn_up", (shape.width, inner), keeping, 0.0),
                ("ffn_down", (inner, shape.width), adding / math.sqrt(inner), 0.0),
            )
        ]
    tensors.append(Matrix("output_norm.weight", (shape.width,), 0.1, 1.0))
    if not shape.tied:
        tensors.append(Matrix("output.weight", (shape.width, shape.vocabulary), 2 * keeping))
    return tensors


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
    kind = KINDS[kind_name]
    fits = len(tensor.shape) > 1 and tensor.shape[0] % kind.block_size == 0
    return kind if fits else KINDS["F32"]


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
    numbers = {
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.rope.dimension_count": shape.width // shape.heads,
        "llama.vocab_size": shape.vocabulary,
        "general.file_type": KINDS[kind_name].file_type,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    fractions = {
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": shape.rope_base,
    }
    texts = {
        "general.architecture": "llama",
        "general.name": "random",
        "tokenizer.ggml.model": "llama",
    }
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
        if getattr(arguments, field.name) is not None
    }
    shape = dataclasses.replace(SHAPES[arguments.shape], **given)
    if shape.width % shape.heads or shape.heads % shape.kv_heads:
        sys.exit("width must be a multiple of heads, and heads of kv-heads")
    if shape.vocabulary < 260:
        sys.exit("the vocabulary needs at least 260 tokens")
    return shape


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path, help="where to write the model")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--type", choices=KINDS, default="Q4_0", help="of the matrices")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("layers", "width", "heads", "kv_heads", "feed_forward", "vocabulary", "context"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="instead of the shape's")
    parser.add_argument("--rope-base", type=float, help="instead of the shape's")
    parser.add_argument(
        "--tied", action=argparse.BooleanOptionalAction, help="the embedding is also the output"
    )
    arguments = parser.parse_args()
    write_model(arguments.path, _shape_from(arguments), arguments.type, arguments.seed)
    print(f"{arguments.path}: {arguments.path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
