"""One decoder layer: attention and a gated feed-forward unit, each added to its input.

T tokens at positions ``position`` to ``position + T - 1``. What enters and leaves is fp16 with
an exponent a row (``HiddenRows``); inside the layer everything is float32. Where ``kernels`` record
their verbs, this is written down once and run as a program. What only some families have is None
in the weights of the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.model.weights import GatedUnit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from edgellama_kernels import CacheLayer, HiddenRows, PackedMatrix, Rows, Verbs
    from numpy.typing import NDArray

    from edgellama.model.config import ModelConfig
    from edgellama.model.weights import LayerWeights

    Numbers = NDArray[np.float32]


def decode_layer(
    kernels: Verbs,
    config: ModelConfig,
    layer: int,
    weights: LayerWeights,
    cache: CacheLayer,
    hidden: HiddenRows,
    turns: Sequence[Numbers],
    position: int,
) -> HiddenRows:
    """Return the layer's output for T tokens and store their keys and values in ``cache``.

    ``hidden``: [T, width]. ``turns``: for each of ``config.ropes`` float32 [T, 2, head_width // 2],
    cosines and sines of the tokens' positions. Raises edgellama_kernels.NonFinite where a number
    leaves its range.
    """
    x = kernels.expand(hidden)  # [T, width]
    rows = kernels.prepare(kernels.rms_norm(x, weights.attention_norm, config.epsilon))
    own_turns, window = turns[config.rope_of(layer)], config.window_of(layer)
    x = _attention(kernels, config, weights, cache, rows, own_turns, window, position, x)
    rows = kernels.prepare(kernels.rms_norm(x, weights.feed_forward_norm, config.epsilon))
    x = _feed_forward(kernels, config, weights, rows, x)
    return kernels.shrink(x)


def _attention(
    kernels: Verbs,
    config: ModelConfig,
    weights: LayerWeights,
    cache: CacheLayer,
    rows: Rows,
    turns: Numbers,
    window: int,
    position: int,
    x: Numbers,
) -> Numbers:
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

    seen = position, window, config.score_scale
    mixed = kernels.prepare(kernels.attention(queries, cache, *seen))  # [T, heads * head_width]
    norm = weights.attention_post_norm
    return _added(kernels, config, weights.attention_output, mixed, norm, x)  # [T, width]


def _projected(kernels: Verbs, matrix: PackedMatrix, bias: Numbers | None, rows: Rows) -> Numbers:
    """Return [T, matrix.rows], with the bias of a family that has one."""
    y = kernels.matmul(matrix, rows)
    return y if bias is None else kernels.add(y, bias)


def _added(
    kernels: Verbs,
    config: ModelConfig,
    matrix: PackedMatrix,
    rows: Rows,
    norm: Numbers | None,
    x: Numbers,
) -> Numbers:
    """Return x plus what the matrix makes, normalised first in a family that has a norm there."""
    if norm is None:
        return kernels.matmul(matrix, rows, x)
    return kernels.add(x, kernels.rms_norm(kernels.matmul(matrix, rows), norm, config.epsilon))


def _feed_forward(
    kernels: Verbs, config: ModelConfig, weights: LayerWeights, rows: Rows, x: Numbers
) -> Numbers:
    unit, norm = weights.unit, weights.feed_forward_post_norm
    gated = kernels.gelu_multiply if config.family.gelu else kernels.silu_multiply
    if isinstance(unit, GatedUnit):
        gate = kernels.matmul(unit.gate, rows)  # [T, feed_forward]
        up = kernels.matmul(unit.up, rows)  # [T, feed_forward]
        activated = kernels.prepare(gated(gate, up))
        return _added(kernels, config, unit.down, activated, norm, x)  # [T, width]

    logits = kernels.matmul(unit.router, rows)  # [T, experts]
    routing = kernels.route(logits, config.experts_used)
    gate = kernels.expert_matmul(unit.gate, rows, routing)  # [T, used, feed_forward]
    up = kernels.expert_matmul(unit.up, rows, routing)  # [T, used, feed_forward]
    activated = kernels.prepare(gated(gate, up))
    outputs = kernels.expert_matmul(unit.down, activated, routing)  # [T, used, width]
    return kernels.mix(outputs, routing, x)  # [T, width]
