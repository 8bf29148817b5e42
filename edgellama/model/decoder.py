"""One decoder layer: attention and a gated feed-forward unit, each added to its input.

T tokens at positions ``position`` to ``position + T - 1``. What enters and leaves is fp16 with
an exponent a row (``HiddenRows``); inside the layer everything is float32. Where ``kernels`` record
their verbs, this is written down once and run as a program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from edgellama_kernels import CacheLayer, HiddenRows, PackedMatrix, Rows, Verbs
    from numpy.typing import NDArray

    from edgellama.model.config import ModelConfig
    from edgellama.model.weights import LayerWeights


def decode_layer(
    kernels: Verbs,
    config: ModelConfig,
    weights: LayerWeights,
    cache: CacheLayer,
    hidden: HiddenRows,
    turns: NDArray[np.float32],
    position: int,
) -> HiddenRows:
    """Return the layer's output for T tokens and store their keys and values in ``cache``.

    ``hidden``: [T, width]. ``turns``: float32 [T, 2, head_width // 2], cosines and sines of the
    tokens' positions. Raises edgellama_kernels.NonFinite where a number leaves its range.
    """
    # Attention                                                                       shape
    x = kernels.expand(hidden)  # [T, width]
    rows = kernels.prepare(kernels.rms_norm(x, weights.attention_norm, config.epsilon))
    queries = _projected(kernels, weights.query, weights.query_bias, rows)
    keys = _projected(kernels, weights.key, weights.key_bias, rows)
    values = _projected(kernels, weights.value, weights.value_bias, rows)

    queries = queries.reshape(-1, config.heads, config.head_width)  # [T, heads, head_width]
    keys = keys.reshape(-1, config.kv_heads, config.head_width)  # [T, kv_heads, head_width]
    values = values.reshape(-1, config.kv_heads, config.head_width)  # [T, kv_heads, head_width]
    if weights.query_norm is not None:
        queries = kernels.rms_norm(queries, weights.query_norm, config.epsilon)
    if weights.key_norm is not None:
        keys = kernels.rms_norm(keys, weights.key_norm, config.epsilon)
    kernels.rope(queries, turns)
    kernels.rope(keys, turns)
    kernels.store(cache, keys, values, position)

    mixed = kernels.attention(queries, cache, position)  # [T, heads * head_width]
    x = kernels.matmul(weights.attention_output, kernels.prepare(mixed), x)  # [T, width]

    # Feed-forward
    rows = kernels.prepare(kernels.rms_norm(x, weights.feed_forward_norm, config.epsilon))
    gate = kernels.matmul(weights.gate, rows)  # [T, feed_forward]
    up = kernels.matmul(weights.up, rows)  # [T, feed_forward]
    activated = kernels.prepare(kernels.silu_multiply(gate, up))
    x = kernels.matmul(weights.down, activated, x)  # [T, width]
    return kernels.shrink(x)


def _projected(
    kernels: Verbs, matrix: PackedMatrix, bias: NDArray[np.float32] | None, rows: Rows
) -> NDArray[np.float32]:
    """Return [T, matrix.rows], with the bias of a family that has one."""
    y = kernels.matmul(matrix, rows)
    return y if bias is None else kernels.add(y, bias)
