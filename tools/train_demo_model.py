"""How is the demo model made? By this script, from nothing but a seed.

    pip install -e ".[training]"
    python tools/train_demo_model.py --bfloat16 --out edgellama/demo/little-stories.gguf

It tells itself a corpus of little stories (``demo_corpus``), learns a byte-pair vocabulary from
it, trains a small Llama, and writes a GGUF with Q8_0 matrices. The same seed and steps give the
same file on the same machine; what came of it stands in ``docs/measurements/demo-model.md``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import torch
from demo_corpus import tell_stories
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

UNKNOWN, BEGIN, END = 0, 1, 2
FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + 256
PADDING = -100
BATCHES_SORTED = 32  # so many batches share a sort by length: little padding, enough chance
MARKER = "\u2581"  # stands for a space, as in SentencePiece
UNITS = re.compile(rf"\n|{MARKER}?[A-Za-z]+|{MARKER}?[^A-Za-z\n{MARKER}]+|{MARKER}")
"""No piece of the vocabulary reaches over the border of two units, so units encode apart."""

FIXED_PROMPTS = (
    "Once upon a time", "One day a little fox", "The dog was", "Tom and his friend",
    "Tell me a story about a cat", "Hello", "In the kitchen", "A robot",
    "What is the capital of France?", "Snow",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The widths of the model; every row of a matrix is a multiple of 256 values."""

    vocabulary: int = 1024
    width: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_width: int = 32
    feed_forward: int = 512
    context: int = 512
    epsilon: float = 1e-5
    rope_base: float = 10000.0


class Vocabulary:
    """A byte-pair vocabulary as GGUF's tokenizer model "llama" has it; a score is minus a rank."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self.ids = {piece: FIRST_PIECE + rank for rank, piece in enumerate(pieces)}
        self.known: dict[str, list[int]] = {}

    @classmethod
    def learn(cls, stories: list[str], size: int) -> Vocabulary:
        """Merge the most frequent pair of neighbours until there are ``size`` tokens."""
        told = Counter(unit for story in stories for unit in units(story) if unit != "\n")
        # A root lets names become one piece each, so that the model has less to repeat.
        counts = {unit: math.isqrt(count) for unit, count in told.items()}
        letters = sorted({letter for unit in counts for letter in unit})
        spelled = {unit: list(unit) for unit in counts}
        merged: list[str] = []
        while FIRST_PIECE + len(merged) + len(letters) < size:
            pairs: Counter[tuple[str, str]] = Counter()
            for unit, parts in spelled.items():
                for pair in itertools.pairwise(parts):
                    pairs[pair] += counts[unit]
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            piece = best[0] + best[1]
            if piece not in merged:
                merged.append(piece)
            for parts in spelled.values():
                merge_pair(parts, best)
        return cls(merged + letters)

    def encode(self, story: str) -> list[int]:
        """Encode as a reader of the GGUF does: the pair that makes the best piece merges first."""
        return [token for unit in units(story) for token in self.encode_unit(unit)]

    def encode_unit(self, unit: str) -> list[int]:
        """Encode one unit; letters that the vocabulary lacks become their UTF-8 bytes."""
        if unit not in self.known:
            parts = list(unit)
            while True:
                ranked = [
                    (self.ids[a + b], at)
                    for at, (a, b) in enumerate(itertools.pairwise(parts))
                    if a + b in self.ids
                ]
                if not ranked:
                    break
                at = min(ranked)[1]
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            tokens: list[int] = []
            for part in parts:
                spelled = [FIRST_BYTE + byte for byte in part.encode()]
                tokens += [self.ids[part]] if part in self.ids else spelled
            self.known[unit] = tokens
        return self.known[unit]

    def decode(self, tokens: list[int]) -> str:
        """Write the text of tokens, without the space that stands for the beginning."""
        raw = b""
        for token in tokens:
            if token >= FIRST_PIECE:
                raw += self.pieces[token - FIRST_PIECE].encode()
            elif token >= FIRST_BYTE:
                raw += bytes([token - FIRST_BYTE])
        return raw.decode(errors="replace").replace(MARKER, " ").removeprefix(" ")


def units(story: str) -> list[str]:
    return UNITS.findall(MARKER + story.replace(" ", MARKER))


def merge_pair(parts: list[str], pair: tuple[str, str]) -> None:
    at = 0
    while at < len(parts) - 1:
        if (parts[at], parts[at + 1]) == pair:
            parts[at : at + 2] = [pair[0] + pair[1]]
        at += 1


Weights = dict[str, torch.Tensor]
"""The model's tensors under their GGUF names, matrices as [rows, columns]."""


def new_weights(shape: Shape, seed: int) -> Weights:
    chance = torch.Generator().manual_seed(seed)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    deep = 1 / math.sqrt(2 * shape.layers)  # what is added to the residual stays small at first
    matrices = {"token_embd": (shape.vocabulary, shape.width, 1.0)}
    norms = ["output_norm"]
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        norms += [block + "attn_norm", block + "ffn_norm"]
        matrices |= {
            block + "attn_q": (queries, shape.width, 1.0),
            block + "attn_k": (keys, shape.width, 1.0),
            block + "attn_v": (keys, shape.width, 1.0),
            block + "attn_output": (shape.width, queries, deep),
            block + "ffn_gate": (shape.feed_forward, shape.width, 1.0),
            block + "ffn_up": (shape.feed_forward, shape.width, 1.0),
            block + "ffn_down": (shape.width, shape.feed_forward, deep),
        }
    weights = {f"{name}.weight": torch.ones(shape.width) for name in norms}
    for name, (rows, columns, gain) in matrices.items():
        deviation = gain * (0.03 if name == "token_embd" else columns**-0.5)
        weights[f"{name}.weight"] = deviation * torch.randn(rows, columns, generator=chance)
    return weights


def rope_table(shape: Shape, length: int) -> torch.Tensor:
    """Make the rotations as complex numbers [length, 1, head_width / 2]."""
    exponents = torch.arange(0, shape.head_width, 2) / shape.head_width
    angles = torch.arange(length)[:, None] * shape.rope_base**-exponents
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotate neighbours (2i, 2i + 1), which is the order of query and key rows in a GGUF."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2)


def forward(weights: Weights, shape: Shape, tokens: torch.Tensor) -> torch.Tensor:
    """Compute the logits [batch, length, vocabulary] of tokens [batch, length]."""
    batch, length = tokens.shape
    table = rope_table(shape, length)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        return functional.rms_norm(x, (shape.width,), weight, shape.epsilon)

    x = functional.embedding(tokens, weights["token_embd.weight"])
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        y = norm(x, block + "attn_norm")
        q = linear(y, block + "attn_q").view(batch, length, shape.heads, shape.head_width)
        k = linear(y, block + "attn_k").view(batch, length, shape.kv_heads, shape.head_width)
        v = linear(y, block + "attn_v").view(batch, length, shape.kv_heads, shape.head_width)
        with torch.autocast("cpu", enabled=False):  # attention in float32 is the faster one
            attended = functional.scaled_dot_product_attention(
                rotate(q, table).transpose(1, 2),
                rotate(k, table).transpose(1, 2),
                v.float().transpose(1, 2),
                is_causal=True,
                enable_gqa=True,
            )
        x = x + linear(attended.transpose(1, 2).flatten(2), block + "attn_output")
        y = norm(x, block + "ffn_norm")
        gated = functional.silu(linear(y, block + "ffn_gate")) * linear(y, block + "ffn_up")
        x = x + linear(gated, block + "ffn_down")
    return linear(norm(x, "output_norm"), "token_embd")


def loss_of(weights: Weights, shape: Shape, rows: torch.Tensor) -> torch.Tensor:
    """Compute the mean loss per token, in nats, of rows [batch, length + 1] with padding."""
    logits = forward(weights, shape, rows[:, :-1].clamp(min=0))
    targets = rows[:, 1:].flatten()
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=PADDING)


def batches_of(stories: list[list[int]], size: int, seed: int) -> list[torch.Tensor]:
    """Put stories of like length together, one a row, in an order of chance."""
    chance = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(stories), generator=chance).tolist()
    batches = []
    for at in range(0, len(order), size * BATCHES_SORTED):
        near = sorted(order[at : at + size * BATCHES_SORTED], key=lambda i: len(stories[i]))
        parts = [near[first : first + size] for first in range(0, len(near), size)]
        for which in torch.randperm(len(parts), generator=chance).tolist():
            rows = [torch.tensor(stories[i]) for i in parts[which]]
            batches.append(torch.nn.utils.rnn.pad_sequence(rows, True, PADDING))
    return batches


def held_out_loss(weights: Weights, shape: Shape, batches: list[torch.Tensor]) -> float:
    """Compute the mean loss per token, in nats, of all batches together."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for rows in batches:
            count = int((rows[:, 1:] != PADDING).sum())
            total += loss_of(weights, shape, rows).item() * count
            tokens += count
    return total / tokens


def schedule(steps: int, minutes: float) -> Iterator[tuple[int, float]]:
    """Count steps, with the share in [0, 1) that is done: of the minutes where given, or steps."""
    began = time.monotonic()
    for step in itertools.count():
        done = (time.monotonic() - began) / (60 * minutes) if minutes else step / steps
        if done >= 1:
            return
        yield step, done


def new_optimizers(weights: Weights, rate: float) -> list[torch.optim.Optimizer]:
    """Make Muon for the layers' matrices, which learn in fewer steps so; AdamW for the rest."""
    matrices = [w for name, w in weights.items() if w.dim() == 2 and name.startswith("blk")]
    others = [w for name, w in weights.items() if w.dim() == 1 or not name.startswith("blk")]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train(
    weights: Weights, shape: Shape, batches: list[torch.Tensor], options: argparse.Namespace
) -> None:
    """Train in place, with a short warm-up, then a cosine down to nearly nothing."""
    for weight in weights.values():
        weight.requires_grad_()
    optimizers = new_optimizers(weights, options.rate)
    began, smooth, tokens = time.monotonic(), 0.0, 0
    for step, done in schedule(options.steps, options.minutes):
        share = min(1.0, (step + 1) / 50) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        rows = batches[step % len(batches)]
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            loss = loss_of(weights, shape, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = options.rate * share
            optimizer.step()
            optimizer.zero_grad()
        tokens += int((rows[:, 1:] != PADDING).sum())
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 50 == 0:
            seconds = time.monotonic() - began
            print(
                f"step {step}  loss {smooth:.3f}  {done:.0%}  {tokens / seconds:.0f} tokens/s  "
                f"{seconds:.0f} s",
                flush=True,
            )
    for weight in weights.values():
        weight.requires_grad_(False)
    print(f"trained on {tokens} tokens in {(time.monotonic() - began) / 60:.1f} minutes")


def continue_text(
    weights: Weights,
    shape: Shape,
    vocabulary: Vocabulary,
    prompt: str,
    temperature: float,
    seed: int,
) -> str:
    """Continue a prompt up to the story's end; temperature 0 takes the likeliest token."""
    chance = torch.Generator().manual_seed(seed)
    tokens = [BEGIN, *vocabulary.encode(prompt)]
    with torch.no_grad():
        while len(tokens) < shape.context:
            logits = forward(weights, shape, torch.tensor([tokens]))[0, -1]
            if temperature == 0:
                token = int(logits.argmax())
            else:
                shares = functional.softmax(logits / temperature, dim=0)
                token = int(torch.multinomial(shares, 1, generator=chance))
            if token == END:
                break
            tokens.append(token)
    return vocabulary.decode(tokens)


def write_gguf(
    path: Path, weights: Weights, shape: Shape, vocabulary: Vocabulary, seed: int
) -> None:
    """Write the model: matrices as Q8_0, norms as F32, the head tied to the embedding."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("Little Stories")
    writer.add_description(
        "Tells little English stories. Trained from nothing on stories that a grammar made "
        f"(tools/train_demo_model.py, seed {seed}); it knows nothing else."
    )
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(shape.vocabulary)
    add_tokenizer(writer, vocabulary)
    for name, weight in weights.items():
        values = weight.numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    kinds = gguf.TokenType
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = len(vocabulary.pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(["<unk>", "<s>", "</s>", *byte_tokens, *vocabulary.pieces])
    writer.add_token_scores([0.0] * FIRST_PIECE + [float(-rank) for rank in range(pieces)])
    special = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
    writer.add_token_types([*special, *[kinds.BYTE] * 256, *[kinds.NORMAL] * pieces])
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)


def rounded(weights: Weights) -> Weights:
    """Take the weights as a reader of the Q8_0 file sees them."""
    kind = gguf.GGMLQuantizationType.Q8_0
    return {
        name: weight
        if weight.dim() == 1
        else torch.from_numpy(
            gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
        )
        for name, weight in weights.items()
    }


def print_samples(weights: Weights, shape: Shape, vocabulary: Vocabulary, count: int) -> None:
    for prompt in FIXED_PROMPTS:
        story = continue_text(weights, shape, vocabulary, prompt, 0, 0)
        print(f"\n--- {prompt!r}, greedy\n{story}", flush=True)
    for number in range(count):
        prompt = FIXED_PROMPTS[number % len(FIXED_PROMPTS)]
        story = continue_text(weights, shape, vocabulary, prompt, 0.8, number)
        print(f"\n--- {prompt!r}, temperature 0.8, seed {number}\n{story}", flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("little-stories.gguf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stories", type=int, default=24_500, help="how many stories are told")
    parser.add_argument("--steps", type=int, default=2000, help="steps of training")
    parser.add_argument("--minutes", type=float, default=0, help="time for it, instead of steps")
    parser.add_argument("--batch", type=int, default=12, help="stories a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--samples", type=int, default=10, help="how many stories to print")
    parser.add_argument(
        "--bfloat16", action="store_true", help="multiply in bfloat16: faster on some CPUs"
    )
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    shape = Shape()
    stories = tell_stories(options.stories, options.seed)
    held_out, training = stories[: len(stories) // 50], stories[len(stories) // 50 :]
    vocabulary = Vocabulary.learn(training[:10_000], shape.vocabulary)
    encoded = [[BEGIN, *vocabulary.encode(story), END] for story in stories]
    cut = len(held_out)
    batches = batches_of(encoded[cut:], options.batch, options.seed)
    test_batches = batches_of(encoded[:cut], options.batch, options.seed)
    weights = new_weights(shape, options.seed)
    parameters = sum(weight.numel() for weight in weights.values())
    print(
        f"{len(training)} stories, {sum(map(len, encoded[cut:]))} tokens, {parameters} parameters",
        flush=True,
    )
    train(weights, shape, batches, options)
    write_gguf(options.out, weights, shape, vocabulary, options.seed)
    for name, measured in (("float", weights), ("Q8_0", rounded(weights))):
        loss = held_out_loss(measured, shape, test_batches)
        print(f"held-out loss, nats per token: {name} {loss:.4f}")
    print(f"{options.out}: {options.out.stat().st_size} bytes", flush=True)
    print_samples(rounded(weights), shape, vocabulary, options.samples)


if __name__ == "__main__":
    main()
