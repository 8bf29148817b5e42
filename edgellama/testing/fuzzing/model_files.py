"""Model files that anybody may have written, and the chat templates inside them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np

from edgellama.errors import (
    MisuseError,
    ModelFileError,
    UnsupportedModelError,
)
from edgellama.model.chat_template import ChatTemplate
from edgellama.model.config import ModelConfig
from edgellama.model.conversation import conversation
from edgellama.model.gguf import GgufFile
from edgellama.model.gguf_writer import OutputTensor, encoded, file_parts
from edgellama.model.tokenizer import Tokenizer
from edgellama.model.weights import (
    HomeWeights,
    LayerWeights,
    home_bytes,
    layer_bytes,
    pack_home,
    pack_layer,
)
from edgellama.net.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "hostile.gguf"
TODAY: Final = 738_000
PACKED_BYTES_MAX: Final = 1 << 20
_TEXT: Final = "Hé <s>\u2581 x1\n"


def gguf(data: bytes) -> None:
    """Read a model file as ``join`` does: header, hashes, configuration, tokenizer, weights."""
    try:
        with GgufFile.parse(data, NAME) as file:
            _read_all(file, data)
    except (ModelFileError, UnsupportedModelError):
        return


def _read_all(file: GgufFile, data: bytes) -> None:
    for key in file.metadata:
        assert file.metadata[key] is not None
        assert file.encoded_value(key)
    for name, tensor in file.tensors.items():
        assert tensor.offset + tensor.bytes <= len(data)
        assert len(file.tensor_bytes(name)) == tensor.bytes
    manifest = Manifest.build(file, io.BytesIO(data))
    assert Manifest.decode(manifest.encoded, manifest.root) == manifest
    assert manifest.agrees_with(file)
    _use(file)


def _use(file: GgufFile) -> None:
    tokenizer = Tokenizer.from_gguf(file)
    assert all(0 <= token < tokenizer.size for token in tokenizer.encode(_TEXT))
    tokenizer.decode(range(min(tokenizer.size, 64)))
    config = ModelConfig.from_gguf(file)
    sizes = [layer_bytes(file, config, layer) for layer in range(config.layers)]
    if sum(sizes) + home_bytes(file, config) > PACKED_BYTES_MAX:
        return
    for layer, size in enumerate(sizes):
        buffer = np.zeros(size, np.uint8)
        pack_layer(file, config, layer, buffer)
        LayerWeights.over(file, config, layer, buffer)
    buffer = np.zeros(home_bytes(file, config), np.uint8)
    pack_home(file, config, buffer)
    HomeWeights.over(file, config, buffer)


def gguf_seeds() -> Iterator[bytes]:
    """Yield a small llama of each tokenizer, and a file of metadata alone."""
    pieces = ["<unk>", "<s>", "</s>", "\u2581", "x", "\u2581x", "1", "H"]
    kinds = np.array([2, 3, 3, 1, 1, 1, 1, 1], np.int32)
    sentences = {
        "tokenizer.ggml.model": encoded("llama"),
        "tokenizer.ggml.tokens": encoded(pieces),
        "tokenizer.ggml.scores": encoded(np.zeros(len(pieces), np.float32)),
        "tokenizer.ggml.token_type": encoded(kinds),
        "tokenizer.chat_template": encoded("{{ messages[0].content }}"),
    }
    byte_level = {
        "tokenizer.ggml.model": encoded("gpt2"),
        "tokenizer.ggml.pre": encoded("llama-bpe"),
        "tokenizer.ggml.tokens": encoded(pieces),
        "tokenizer.ggml.token_type": encoded(kinds),
        "tokenizer.ggml.merges": encoded(["x 1"]),
    }
    for tokenizer in (sentences, byte_level):
        yield _small_llama(tokenizer, len(pieces))
    flags = {"a": encoded(True), "b": encoded(np.ones(3, bool)), "c": encoded(1.5)}
    yield b"".join(file_parts(flags, [], iter(())))


def _small_llama(tokenizer: dict[str, bytes], vocabulary: int) -> bytes:
    keys = {
        "general.architecture": encoded("llama"),
        "llama.block_count": encoded(1),
        "llama.context_length": encoded(16),
        "llama.embedding_length": encoded(8),
        "llama.feed_forward_length": encoded(8),
        "llama.attention.head_count": encoded(2),
        "llama.attention.head_count_kv": encoded(1),
        "llama.attention.layer_norm_rms_epsilon": encoded(1e-5),
        "llama.rope.freq_base": encoded(10000.0),
        "tokenizer.ggml.bos_token_id": encoded(1),
        "tokenizer.ggml.eos_token_id": encoded(2),
        **tokenizer,
    }
    matrices = {"attn_q": 8, "attn_k": 4, "attn_v": 4, "attn_output": 8}
    matrices |= {"ffn_gate": 8, "ffn_up": 8, "ffn_down": 8}
    tensors = [OutputTensor("token_embd.weight", "F16", (8, vocabulary))]
    tensors += [OutputTensor(f"blk.0.{n}.weight", "F16", (8, m)) for n, m in matrices.items()]
    norms = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    tensors += [OutputTensor(f"{name}.weight", "F32", (8,)) for name in norms]
    return b"".join(file_parts(keys, tensors, ((t, bytes(t.bytes)) for t in tensors)))


def templates(data: bytes) -> None:
    """Render any text as a chat template."""
    text = data.decode(errors="replace")
    try:
        ChatTemplate(text, NAME, "<s>", "</s>").render(conversation("Be kind.", (), _TEXT), TODAY)
    except (MisuseError, UnsupportedModelError):
        return


def template_seeds() -> Iterator[bytes]:
    """Yield templates with what templates are made of."""
    yield b"{% for m in messages %}{{ '<|' + m['role'] + '|>' + m.content | trim }}{% endfor %}"
    yield b"{% if not tools is defined %}{{ bos_token }}{% endif %}{{ strftime_now('%d %b %Y') }}"
    yield b"{%- set ns = namespace(n=0) -%}{% for i in range(9) %}{% set ns.n = ns.n + i %}"
    yield b"{% macro f(x) %}{{ x | tojson(indent=2) }}{% endmacro %}{{ f(messages) }}"
    yield b"{{ raise_exception('no') }}{{ ('a' * 99).replace('a', 'bb').split('b') | join(',') }}"
    yield b"{% generation %}{{ messages[-1]['content'][1:] ~ 1 // 2 }}{% endgeneration %}"
