"""Which tensors a layer and home consist of, and how each is used.

What is listed here is all that is known of a family's tensors: the check of a file, the packed
weights, what a node fetches and what it costs all follow from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edgellama.model.config import ModelConfig


class Part(NamedTuple):
    """One tensor of a layer or of home.

    ``field``: what the packed weights call it. ``name``: the tensor's, without its layer.
    ``shape``: in GGUF's order, columns first. ``rotated``: RoPE turns what it makes, so its rows,
    or a vector's numbers, are put into the order of the kernels, head by head. Of a tensor that
    several parts share, a part is ``rows`` rows from ``first`` on; 0 rows are all.
    """

    field: str
    name: str
    shape: tuple[int, ...]
    rotated: bool = False
    first: int = 0
    rows: int = 0


def layer_parts(config: ModelConfig) -> tuple[Part, ...]:
    """Return a layer's parts in the order in which they are packed; all layers have the same."""
    return (*_attention_parts(config), *_feed_forward_parts(config))


def home_parts(config: ModelConfig) -> tuple[Part, ...]:
    """Return home's parts; a tied output is the embedding."""
    matrix = (config.width, config.vocabulary)
    parts = (
        Part("embedding", "token_embd.weight", matrix),
        Part("output_norm", "output_norm.weight", (config.width,)),
    )
    return parts if config.tied_output else (*parts, Part("output", "output.weight", matrix))


def layer_tensor(layer: int, name: str) -> str:
    """Return the GGUF name of a layer's tensor, such as ``blk.3.attn_q.weight``."""
    return f"blk.{layer}.{name}"


def _attention_parts(config: ModelConfig) -> list[Part]:
    width, head_width = config.width, config.head_width
    queries, keys = config.heads * head_width, config.kv_heads * head_width
    parts = [
        Part("attention_norm", "attn_norm.weight", (width,)),
        Part("query", "attn_q.weight", (width, queries), rotated=True),
        Part("key", "attn_k.weight", (width, keys), rotated=True),
        Part("value", "attn_v.weight", (width, keys)),
        Part("attention_output", "attn_output.weight", (queries, width)),
    ]
    if config.family.fused:
        parts[1:4] = _shares("attn_qkv.weight", parts[1:4])
    if config.family.biases:
        parts += [
            Part("query_bias", "attn_q.bias", (queries,), rotated=True),
            Part("key_bias", "attn_k.bias", (keys,), rotated=True),
            Part("value_bias", "attn_v.bias", (keys,)),
        ]
    if config.family.head_norms:
        parts += [
            Part("query_norm", "attn_q_norm.weight", (head_width,), rotated=True),
            Part("key_norm", "attn_k_norm.weight", (head_width,), rotated=True),
        ]
    if config.family.post_norms:
        parts.append(Part("attention_post_norm", "post_attention_norm.weight", (width,)))
    return parts


def _shares(name: str, parts: list[Part]) -> list[Part]:
    """Return parts whose rows follow each other in one tensor."""
    rows = [part.shape[1] for part in parts]
    shape = (parts[0].shape[0], sum(rows))
    return [
        part._replace(name=name, shape=shape, first=sum(rows[:n]), rows=rows[n])
        for n, part in enumerate(parts)
    ]


def _feed_forward_parts(config: ModelConfig) -> list[Part]:
    width, inner = config.width, config.feed_forward
    if config.experts:
        return [
            Part("feed_forward_norm", "ffn_norm.weight", (width,)),
            Part("router", "ffn_gate_inp.weight", (width, config.experts)),
            Part("gate", "ffn_gate_exps.weight", (width, inner, config.experts)),
            Part("up", "ffn_up_exps.weight", (width, inner, config.experts)),
            Part("down", "ffn_down_exps.weight", (inner, width, config.experts)),
        ]
    parts = [
        Part("feed_forward_norm", "ffn_norm.weight", (width,)),
        Part("gate", "ffn_gate.weight", (width, inner)),
        Part("up", "ffn_up.weight", (width, inner)),
        Part("down", "ffn_down.weight", (inner, width)),
    ]
    if config.family.fused:
        parts[1:3] = _shares("ffn_up.weight", parts[1:3])
    if config.family.post_norms:
        parts.append(Part("feed_forward_post_norm", "post_ffw_norm.weight", (width,)))
    return parts
