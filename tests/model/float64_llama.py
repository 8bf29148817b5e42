"""A second, independent llama: float64, textbook formulas, the file read by the gguf package.

Nothing of the project takes part; it shows what the exact arithmetic of the kernels is near to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Float64 = NDArray[np.float64]


class Float64Llama:
    """All weights as float64; ``logits`` computes a whole text at once."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self._keys = {
            key.removeprefix("llama."): field.contents()
            for key, field in reader.fields.items()
            if key.startswith("llama.")
        }
        self._weights = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }

    def logits(self, token_ids: Sequence[int]) -> Float64:
        """Return [T, vocabulary] for tokens at positions 0 to T - 1."""
        weights = self._weights
        x = weights["token_embd.weight"][list(token_ids)]
        for layer in range(self._keys["block_count"]):
            block = {
                name.split(".")[2]: weight
                for name, weight in weights.items()
                if name.startswith(f"blk.{layer}.")
            }
            x = x + self._attention(block, self._norm(x, block["attn_norm"]))
            h = self._norm(x, block["ffn_norm"])
            gate = h @ block["ffn_gate"].T
            up = h @ block["ffn_up"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ block["ffn_down"].T
        output = weights.get("output.weight", weights["token_embd.weight"])
        return self._norm(x, weights["output_norm.weight"]) @ output.T

    def _norm(self, x: Float64, weight: Float64) -> Float64:
        epsilon = self._keys["attention.layer_norm_rms_epsilon"]
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight

    def _attention(self, block: dict[str, Float64], h: Float64) -> Float64:
        tokens = len(h)
        heads = self._keys["attention.head_count"]
        kv_heads = self._keys["attention.head_count_kv"]
        q = self._rope((h @ block["attn_q"].T).reshape(tokens, heads, -1))
        k = self._rope((h @ block["attn_k"].T).reshape(tokens, kv_heads, -1))
        v = (h @ block["attn_v"].T).reshape(tokens, kv_heads, -1)
        k = k.repeat(heads // kv_heads, axis=1)
        v = v.repeat(heads // kv_heads, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(q.shape[-1])
        scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        e /= e.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", e, v).reshape(tokens, -1)
        return mixed @ block["attn_output"].T

    def _rope(self, x: Float64) -> Float64:
        """Rotate neighbouring pairs of the first rope.dimension_count numbers of each head."""
        dimensions = self._keys["rope.dimension_count"]
        rates = self._keys["rope.freq_base"] ** (-np.arange(0, dimensions, 2) / dimensions)
        rates = rates / self._keys.get("rope.scaling.factor", 1.0)
        rates = rates / self._weights.get("rope_freqs.weight", 1.0)
        angles = np.arange(len(x))[:, None] * rates
        c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
        turned = x.copy()
        a, b = x[..., 0:dimensions:2], x[..., 1:dimensions:2]
        turned[..., 0:dimensions:2] = a * c - b * s
        turned[..., 1:dimensions:2] = a * s + b * c
        return turned
