"""What a model asks of a device, in the planner's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama_kernels import CacheKind

from edgellama.model.cache import cache_bytes_per_token
from edgellama.model.config import ModelConfig
from edgellama.model.stage import CHUNK_TOKENS_MAX
from edgellama.model.weights import home_bytes, layer_bytes
from edgellama.values import ModelFacts

if TYPE_CHECKING:
    from edgellama.model.gguf import GgufFile

NAME_CHARACTERS_MAX = 80

# The kernels cut attention and matmuls into tiles of at most this many scores or products, and
# hold this many bytes for each at the worst moment: float32 in the steps of NumPy's exp, and of a
# sum of products. The compiled backend needs less.
TILE_NUMBERS_MAX = 1 << 18
SCORE_BYTES = 48
PRODUCT_BYTES = 16
# Weights, order and ids of the whole vocabulary while a token is drawn.
SAMPLER_TOKEN_BYTES = 80
BLOCK_COLUMNS = 32
# The tokenizer at home: a token's piece and its place in tables, and 2.2 merges of two pieces as
# byte-level vocabularies have them. Measured: 500 bytes; of SentencePiece's kind 290.
VOCABULARY_TOKEN_BYTES = 512


def model_facts(gguf: GgufFile, root: str, name: str) -> ModelFacts:
    """Return the planner's facts of a model file.

    ``root``: the hexadecimal root hash of the file's manifest. ``name``: what to call the model
    when the file does not say. Raises as ``ModelConfig.from_gguf`` does.
    """
    config = ModelConfig.from_gguf(gguf)
    return ModelFacts(
        root=root,
        name=_stated_name(gguf) or name,
        file_bytes=gguf.file_bytes,
        width=config.width,
        context_max=config.context_max,
        layer_bytes=tuple(layer_bytes(gguf, config, layer) for layer in range(config.layers)),
        home_bytes=home_bytes(gguf, config) + VOCABULARY_TOKEN_BYTES * config.vocabulary,
        kv_bytes_per_token=cache_bytes_per_token(config, CacheKind.F16),
        scratch_bytes=scratch_bytes(config),
        kv_q8_bytes_per_token=cache_bytes_per_token(config, CacheKind.Q8),
    )


def scratch_bytes(config: ModelConfig) -> int:
    """Return what a stage, home included, needs besides weights and cache at its largest step.

    That is one layer over CHUNK_TOKENS_MAX tokens, or one draw of a token at home.
    """
    tokens = CHUNK_TOKENS_MAX
    attention_width = config.heads * config.head_width
    kv_width = config.kv_heads * config.head_width
    units = max(1, config.experts_used)  # that a token meets
    # Hidden state in and out, input, norm and sum; with that, queries thrice, mixed, keys and
    # values, or gate, up, their product, and that again as int8; of experts what each makes of it.
    attention = 4 * config.width + 4 * attention_width + 2 * kv_width
    feed_forward = 4 * config.width + 4 * units * config.feed_forward
    if config.experts:
        feed_forward += 2 * units * config.width + 2 * config.experts
    query_scores = (config.heads // config.kv_heads) * config.context_max
    scores = max(query_scores, min(TILE_NUMBERS_MAX, tokens * query_scores))
    largest_matrix = config.width * max(attention_width, config.feed_forward)
    products = max(tokens // BLOCK_COLUMNS * largest_matrix, config.width * config.vocabulary)
    tile_bytes = max(SCORE_BYTES * scores, PRODUCT_BYTES * min(TILE_NUMBERS_MAX, products))
    step_bytes = 4 * tokens * max(attention, feed_forward) + tile_bytes
    return max(step_bytes, SAMPLER_TOKEN_BYTES * config.vocabulary)


def _stated_name(gguf: GgufFile) -> str:
    """Return the file's own name for the model in printable characters, or nothing."""
    stated = gguf.metadata.get("general.name")
    if not isinstance(stated, str):
        return ""
    return "".join(filter(str.isprintable, stated)).strip()[:NAME_CHARACTERS_MAX]
