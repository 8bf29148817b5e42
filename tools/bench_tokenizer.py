"""Measure how long a vocabulary takes to load and how fast it encodes.

    python tools/bench_tokenizer.py [--tokens 150000] [--model FILE]

Without --model a byte-level vocabulary of that size is made up: random words of 2 to 12 bytes,
each with the merges that spell it. Prints the best of five loads, from opening the file on, and
the speed of encoding a text of ten thousand words twice: anew, and with its words known.
"""

from __future__ import annotations

import argparse
import random
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgellama.model.byte_level_bpe import spelled
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

LOADS = 5
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
STRING, ARRAY, INT32 = 8, 9, 5


def string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def strings(texts: list[str]) -> bytes:
    return struct.pack("<IIQ", ARRAY, STRING, len(texts)) + b"".join(map(string, texts))


def write_vocabulary(path: Path, size: int, seed: int) -> None:
    """Write a file without tensors that holds ``size`` tokens and a merge for nearly each."""
    drawn = random.Random(seed)
    pieces = dict.fromkeys(spelled(bytes([byte])) for byte in range(256))
    merges: list[str] = []
    while len(pieces) < size:
        word = "\u0120" + "".join(drawn.choices(LETTERS, range(26, 0, -1), k=drawn.randint(1, 11)))
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces and len(pieces) < size:
                pieces[word[:end]] = None
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    keys = {
        "general.architecture": struct.pack("<I", STRING) + string("llama"),
        "tokenizer.ggml.model": struct.pack("<I", STRING) + string("gpt2"),
        "tokenizer.ggml.pre": struct.pack("<I", STRING) + string("llama-bpe"),
        "tokenizer.ggml.tokens": strings(list(pieces)),
        "tokenizer.ggml.token_type": struct.pack("<IIQ", ARRAY, INT32, size)
        + struct.pack(f"<{size}i", *[1] * size),
        "tokenizer.ggml.merges": strings(merges),
    }
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys))
    header += b"".join(string(name) + value for name, value in keys.items())
    path.write_bytes(header + b"\0" * (-len(header) % 32))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model
        if path is None:
            path = Path(folder) / "vocabulary.gguf"
            write_vocabulary(path, arguments.tokens, arguments.seed)
        load_s = min(timed(lambda: Tokenizer.from_gguf(path)) for _ in range(LOADS))
        tokenizer = Tokenizer.from_gguf(path)
    drawn = random.Random(arguments.seed + 1)
    words = ["".join(drawn.choices(LETTERS, k=drawn.randint(2, 9))) for _ in range(10_000)]
    text = " ".join(words)
    tokenizer.encode("a")  # the tables of characters are made on first use
    first_s = timed(lambda: tokenizer.encode(text))
    again_s = timed(lambda: tokenizer.encode(text))
    count = len(tokenizer.encode(text))
    print(f"{tokenizer.size} tokens load in {load_s:.2f} s")
    print(f"{len(text)} characters become {count} tokens in {first_s * 1e3:.0f} ms")
    print(f"and in {again_s * 1e3:.0f} ms when their words are known")


if __name__ == "__main__":
    main()
