"""A folder as Hugging Face's transformers writes it, seen as the tensors of a GGUF.

``config.json`` says the shape, safetensors hold the weights, ``tokenizer.json`` or
``tokenizer.model`` the vocabulary. Names and shapes become GGUF's; rows of q and k of a llama are
put into the order in which its GGUF files rotate neighbouring pairs; experts are stacked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.errors import MisuseError
from edgellama.model.gguf_header import file_fault, file_unsupported, quoted
from edgellama.model.gguf_writer import encoded
from edgellama.model.hugging_face_config import ModelShape
from edgellama.model.hugging_face_tokenizer import tokenizer_keys
from edgellama.model.json_fields import JsonFields
from edgellama.model.safetensors import SafetensorsFolder
from edgellama.model.weight_source import SourceTensor, wide_rows

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_HOME: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER: Final = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
}
_FUSED: Final = {
    "self_attn.qkv_proj.weight": "attn_qkv.weight",
    "mlp.gate_up_proj.weight": "ffn_up.weight",
}
_POST_NORMS: Final = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
_LAYER_NAME: Final = re.compile(r"model\.layers\.(\d{1,4})\.(.+)")
_EXPERT_NAME: Final = re.compile(r"mlp\.experts\.(\d{1,4})\.(gate|up|down)_proj\.weight")
_BIASED: Final = re.compile(r"(self_attn\.[qkv]_proj)\.(weight|bias)")
_IGNORED_SUFFIX: Final = ".rotary_emb.inv_freq"  # each node computes its own


@dataclass(frozen=True)
class _Origin:
    """Where a tensor's rows come from: one stored tensor, or one for each expert.

    ``head_width`` is 0, or that of heads whose rows are put into another order. ``less_one``: the
    numbers are stored less 1, as Gemma's norms are.
    """

    names: tuple[str, ...]
    rows_each: int
    head_width: int
    less_one: bool


class HuggingFaceSource:
    """A folder's weights; raises ModelFileError or UnsupportedModelError where it is unsound."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        if not (folder / "config.json").is_file():
            raise MisuseError(f"{folder} has no config.json, so it is no folder with a model")
        self._shape = ModelShape.read(JsonFields.read(folder / "config.json"))
        self._stored = SafetensorsFolder(folder)
        self._origins: dict[str, _Origin] = {}
        self.tensors = self._described(self._named())
        self._metadata = {
            key: encoded(value)
            for key, value in {
                **self._shape.keys,
                "general.name": folder.resolve().name,
                **tokenizer_keys(folder, self._vocabulary()),
            }.items()
        }

    def metadata(self) -> Mapping[str, bytes]:
        """Return the keys of the GGUF, each value encoded."""
        return self._metadata

    def raw_rows(self, tensor: SourceTensor, first: int, past: int) -> NDArray[np.uint8]:
        """Return rows in GGUF's order, in the type that they are stored in."""
        factors = self._shape.rope_factors.get(tensor.name)
        if factors is not None:
            return factors.astype("<f4").view(np.uint8)[None]
        origin = self._origins[tensor.name]
        if origin.less_one:
            stored = self._stored.tensors[origin.names[0]]
            numbers = self._stored.rows(origin.names[0], first, past)
            wide = wide_rows(stored.kind_name, numbers, tensor.columns)
            return (wide + np.float32(1)).astype("<f4").view(np.uint8)
        if origin.head_width:
            rows = self._stored.rows(origin.names[0], 0, tensor.rows)
            return rows[interleaved_source(np.arange(first, past), origin.head_width)]
        pieces = []
        for number, name in enumerate(origin.names):
            start = number * origin.rows_each
            begin, end = max(first, start), min(past, start + origin.rows_each)
            if begin < end:
                pieces.append(self._stored.rows(name, begin - start, end - start))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def release(self) -> None:
        """Let the system have the memory of what was read."""
        self._stored.release_pages()

    def _vocabulary(self) -> int:
        embedding = next(each for each in self.tensors if each.name == "token_embd.weight")
        if embedding.rows != self._shape.vocabulary:
            raise file_fault(
                self.name,
                f"the embedding has {embedding.rows} rows "
                f"for a vocabulary of {self._shape.vocabulary} tokens",
            )
        return embedding.rows

    def _named(self) -> dict[str, dict[int, str]]:
        """Return stored names by GGUF name, of experts each under its number."""
        found: dict[str, dict[int, str]] = {}
        for stored in self._stored.tensors:
            if stored.endswith(_IGNORED_SUFFIX):
                continue
            if stored == "lm_head.weight" and self._shape.tied:
                continue  # the embedding again
            name, expert = self._gguf_name(stored)
            found.setdefault(name, {})[expert] = stored
        return found

    def _gguf_name(self, stored: str) -> tuple[str, int]:
        """Return the GGUF name of a stored tensor and the number of the expert it is of."""
        if stored in _HOME:
            return _HOME[stored], 0
        layer = _LAYER_NAME.fullmatch(stored)
        if layer and int(layer[1]) < self._shape.layers:
            prefix = f"blk.{int(layer[1])}."
            expert = _EXPERT_NAME.fullmatch(layer[2])
            if expert and int(expert[1]) < self._shape.experts:
                return f"{prefix}ffn_{expert[2]}_exps.weight", int(expert[1])
            family = self._shape.family
            biased = _BIASED.fullmatch(layer[2])
            if biased and (biased[2] == "weight" or family.biases):
                return f"{prefix}{_LAYER[biased[1]]}.{biased[2]}", 0
            own = _FUSED if family.fused else _POST_NORMS if family.post_norms else {}
            names = _LAYER | own
            if layer[2] in names:
                return prefix + names[layer[2]], 0
        raise file_unsupported(
            self.name, f"tensor {quoted(stored)} has no place in a GGUF of this family"
        )

    def _described(self, named: dict[str, dict[int, str]]) -> list[SourceTensor]:
        """Return all tensors, home's first and the layers' in order, and note their origins."""
        tensors = [self._tensor(name, named[name]) for name in sorted(named, key=_order)]
        found = {tensor.name for tensor in tensors}
        needed = {"token_embd.weight", "output_norm.weight"}
        if self._shape.tied is False:
            needed.add("output.weight")
        parts = ("attn_qkv",) if self._shape.family.fused else ("attn_q", "attn_k")
        for layer in range(self._shape.layers):
            needed |= {f"blk.{layer}.{each}.weight" for each in ("attn_norm", *parts)}
        if needed - found:
            raise file_fault(self.name, f"tensor {min(needed - found)} is missing")
        for name, factors in self._shape.rope_factors.items():
            tensors.append(SourceTensor(name, "F32", (len(factors),)))
        return tensors

    def _tensor(self, name: str, stored: dict[int, str]) -> SourceTensor:
        names = tuple(stored[number] for number in sorted(stored))
        first = self._stored.tensors[names[0]]
        if any(self._stored.tensors[each][:2] != first[:2] for each in names):
            raise file_fault(self.name, f"the experts of {name} differ in type or shape")
        stacked = name.endswith("_exps.weight")
        if stacked and len(names) != self._shape.experts:
            raise file_fault(self.name, f"{name} has {len(names)} experts of {self._shape.experts}")
        if not 1 <= len(first.shape) <= 2:
            raise file_fault(self.name, f"tensor {quoted(names[0])} has shape {list(first.shape)}")
        shape = first.shape[::-1] + ((len(names),) if stacked else ())
        less_one = self._shape.family.name == "gemma3" and len(shape) == 1
        head_width = self._head_width(name, first.shape)
        self._origins[name] = _Origin(names, first.rows, head_width, less_one)
        return SourceTensor(name, "F32" if less_one else first.kind_name, shape)

    def _head_width(self, name: str, shape: tuple[int, ...]) -> int:
        """Return the width of heads whose rows are put into another order; 0 where none are."""
        heads = {"attn_q": self._shape.heads, "attn_k": self._shape.kv_heads}
        part = name.split(".")[-2]
        if part not in heads:
            return 0
        if shape[0] != heads[part] * self._shape.head_width or self._shape.head_width % 2:
            raise file_fault(self.name, f"{name} has {shape[0]} rows, not those of its heads")
        return self._shape.head_width if self._shape.family.neighbours else 0


def interleaved_source(rows: NDArray[np.int64], head_width: int) -> NDArray[np.int64]:
    """Return which row of transformers' order stands at each of ``rows`` of a llama's GGUF.

    Within each head, rows 2i and 2i + 1 come from i and head_width / 2 + i.
    """
    within = rows % head_width
    return rows - within + within % 2 * (head_width // 2) + within // 2


def _order(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return (int(parts[1]), name) if parts[0] == "blk" else (-1, name)
