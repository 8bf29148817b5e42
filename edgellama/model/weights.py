"""A layer's weights, and home's, packed into one flat buffer each.

A buffer holds the packed matrices (``edgellama_kernels.PackedMatrix``) and the float32 norms one
after the other, each at a multiple of 64 bytes. Where each lies follows from the configuration
and the tensors' types alone, so a buffer made on one device can be mapped and used on another.

Rows of the query and key matrices are stored in half-split order: a llama file rotates
neighbouring pairs (2i, 2i+1) of a head, the kernels rotate (i, i + head_width / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from edgellama_kernels import PackedMatrix, WeightKind, packed_bytes

from edgellama.model.config import ROPE_FACTORS_TENSOR, home_tensor, layer_tensor
from edgellama.model.gguf_header import file_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgellama.model.config import ModelConfig
    from edgellama.model.gguf import GgufFile
    from edgellama.values import Span

ALIGNMENT_BYTES = 64  # a cache line, and what the packed matrices ask for
SLICE_BYTES_MAX = 1 << 20  # raw rows packed at a time: the scratch is a few times this
GROUP_ROWS = 8  # rows are stored in whole groups of this many

_ROTATED = ("attn_q", "attn_k")


@dataclass(frozen=True)
class LayerWeights:
    """Views into one layer's buffer; ``rows x columns`` in the margin."""

    attention_norm: NDArray[np.float32]  # [width]
    query: PackedMatrix  # heads * head_width x width
    key: PackedMatrix  # kv_heads * head_width x width
    value: PackedMatrix  # kv_heads * head_width x width
    attention_output: PackedMatrix  # width x heads * head_width
    feed_forward_norm: NDArray[np.float32]  # [width]
    gate: PackedMatrix  # feed_forward x width
    up: PackedMatrix  # feed_forward x width
    down: PackedMatrix  # width x feed_forward

    @classmethod
    def over(
        cls, gguf: GgufFile, config: ModelConfig, layer: int, buffer: NDArray[np.uint8]
    ) -> LayerWeights:
        """Return views into a buffer that ``pack_layer`` filled, without a copy.

        Of ``gguf`` the header alone is read. ``buffer``: uint8 [layer_bytes(...)], may be
        read-only. Raises ModelFileError where its size is not that.
        """
        sections = _layer_sections(gguf, config, layer)
        _check_size(gguf, sections, buffer)
        matrices = {name: _matrix(s, buffer) for name, s in sections.items() if s.kind}
        norms = {name: _norm(s, buffer) for name, s in sections.items() if not s.kind}
        return cls(
            attention_norm=norms["attn_norm"],
            query=matrices["attn_q"],
            key=matrices["attn_k"],
            value=matrices["attn_v"],
            attention_output=matrices["attn_output"],
            feed_forward_norm=norms["ffn_norm"],
            gate=matrices["ffn_gate"],
            up=matrices["ffn_up"],
            down=matrices["ffn_down"],
        )


@dataclass(frozen=True)
class HomeWeights:
    """Views into home's buffer; a tied ``output`` is the embedding itself, held once."""

    embedding: PackedMatrix  # vocabulary x width
    output_norm: NDArray[np.float32]  # [width]
    output: PackedMatrix  # vocabulary x width

    @classmethod
    def over(cls, gguf: GgufFile, config: ModelConfig, buffer: NDArray[np.uint8]) -> HomeWeights:
        """Return views into a buffer that ``pack_home`` filled, without a copy.

        Of ``gguf`` the header alone is read. ``buffer``: uint8 [home_bytes(...)], may be
        read-only. Raises ModelFileError where its size is not that.
        """
        sections = _home_sections(gguf, config)
        _check_size(gguf, sections, buffer)
        embedding = _matrix(sections["token_embd"], buffer)
        return cls(
            embedding=embedding,
            output_norm=_norm(sections["output_norm"], buffer),
            output=embedding if config.tied_output else _matrix(sections["output"], buffer),
        )


def layer_bytes(gguf: GgufFile, config: ModelConfig, layer: int) -> int:
    """Return the size in bytes of a layer's buffer; of ``gguf`` the header alone is read."""
    return _total_bytes(_layer_sections(gguf, config, layer))


def home_bytes(gguf: GgufFile, config: ModelConfig) -> int:
    """Return the size in bytes of home's buffer; of ``gguf`` the header alone is read."""
    return _total_bytes(_home_sections(gguf, config))


def pack_layer(gguf: GgufFile, config: ModelConfig, layer: int, buffer: NDArray[np.uint8]) -> None:
    """Fill ``buffer``, uint8 [layer_bytes(...)], from the layer's tensors.

    Every byte is written, so equal files give equal buffers. Raises ModelFileError where a norm
    or a scale is not finite.
    """
    _pack(gguf, config, _layer_sections(gguf, config, layer), buffer)


def pack_home(gguf: GgufFile, config: ModelConfig, buffer: NDArray[np.uint8]) -> None:
    """Fill ``buffer``, uint8 [home_bytes(...)], as ``pack_layer`` does."""
    _pack(gguf, config, _home_sections(gguf, config), buffer)


def needed_tensors(gguf: GgufFile, config: ModelConfig, span: Span, home: bool) -> list[str]:
    """Return the names of the tensors that a node with this span reads, in file order.

    The RoPE factors, where the file has them, are needed by every node.
    """
    names = {
        layer_tensor(layer, name)
        for layer in range(span.first, span.past)
        for name in config.layer_shapes()
    }
    if home:
        names.update(home_tensor(name) for name in config.home_shapes())
    names.add(ROPE_FACTORS_TENSOR)
    return [name for name in gguf.tensors if name in names]


class _Section(NamedTuple):
    """Where one tensor lies in a buffer; ``kind`` is None for a norm of ``columns`` float32."""

    tensor: str
    kind: WeightKind | None
    rows: int
    columns: int
    offset: int
    bytes: int
    rotated: bool


def _layer_sections(gguf: GgufFile, config: ModelConfig, layer: int) -> dict[str, _Section]:
    tensors = {name: layer_tensor(layer, name) for name in config.layer_shapes()}
    return _sections(gguf, config.layer_shapes(), tensors)


def _home_sections(gguf: GgufFile, config: ModelConfig) -> dict[str, _Section]:
    tensors = {name: home_tensor(name) for name in config.home_shapes()}
    return _sections(gguf, config.home_shapes(), tensors)


def _sections(
    gguf: GgufFile, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, str]
) -> dict[str, _Section]:
    sections = {}
    offset = 0
    for name, shape in shapes.items():
        columns = shape[0]
        if len(shape) == 1:
            kind, rows, size = None, 1, 4 * columns
        else:
            kind, rows = WeightKind(gguf.tensors[tensors[name]].kind_name), shape[1]
            size = packed_bytes(kind, rows, columns)
        rotated = name in _ROTATED
        sections[name] = _Section(tensors[name], kind, rows, columns, offset, size, rotated)
        offset += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return sections


def _total_bytes(sections: Mapping[str, _Section]) -> int:
    last = list(sections.values())[-1]
    return last.offset + -(-last.bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _check_size(
    gguf: GgufFile, sections: Mapping[str, _Section], buffer: NDArray[np.uint8]
) -> None:
    wanted = _total_bytes(sections)
    if buffer.dtype != np.uint8 or buffer.shape != (wanted,):
        raise file_fault(
            gguf.path_name, f"packed weights of {buffer.nbytes} bytes where {wanted} belong"
        )


def _matrix(section: _Section, buffer: NDArray[np.uint8]) -> PackedMatrix:
    assert section.kind is not None
    view = buffer[section.offset : section.offset + section.bytes]
    return PackedMatrix(section.kind, section.rows, section.columns, view)


def _norm(section: _Section, buffer: NDArray[np.uint8]) -> NDArray[np.float32]:
    view: NDArray[np.float32] = buffer[section.offset : section.offset + section.bytes].view("<f4")
    return view


def _pack(
    gguf: GgufFile,
    config: ModelConfig,
    sections: Mapping[str, _Section],
    buffer: NDArray[np.uint8],
) -> None:
    _check_size(gguf, sections, buffer)
    buffer[:] = 0  # the gaps and the rows that fill up the last group
    for section in sections.values():
        if section.kind is None:
            _pack_norm(gguf, section, buffer)
        else:
            _pack_matrix(gguf, section, config.head_width, buffer)


def _pack_norm(gguf: GgufFile, section: _Section, buffer: NDArray[np.uint8]) -> None:
    norm = _norm(section, buffer)
    norm[:] = np.frombuffer(gguf.tensor_bytes(section.tensor), "<f4", count=section.columns)
    if not np.isfinite(norm).all():
        raise file_fault(gguf.path_name, f"tensor {section.tensor} is not finite")


def _pack_matrix(
    gguf: GgufFile, section: _Section, head_width: int, buffer: NDArray[np.uint8]
) -> None:
    matrix = _matrix(section, buffer)
    row_bytes = gguf.tensors[section.tensor].row_bytes
    step = max(GROUP_ROWS, SLICE_BYTES_MAX // row_bytes // GROUP_ROWS * GROUP_ROWS)
    for first in range(0, section.rows, step):
        past = min(first + step, section.rows)
        if section.rotated:
            rows = gguf.tensor_rows(section.tensor, 0, section.rows)
            raw = rows[half_split_source(np.arange(first, past), head_width)]
        else:
            raw = gguf.tensor_rows(section.tensor, first, past)
        matrix.store_rows(first, raw)
        if not _all_finite(matrix, slice(first // GROUP_ROWS, -(-past // GROUP_ROWS))):
            raise file_fault(gguf.path_name, f"tensor {section.tensor} is not finite")


def _all_finite(matrix: PackedMatrix, groups: slice) -> bool:
    """Tell whether groups of rows hold finite numbers alone; kernels count on that."""
    if matrix.kind is WeightKind.F32:
        return bool(np.isfinite(matrix.elements[groups]).all())
    exponent = np.uint16(0x7F80 if matrix.kind is WeightKind.BF16 else 0x7C00)
    kept = (matrix.scales, matrix.minimums) if matrix.kind.quantized else (matrix.elements,)
    return not any(((halves[groups] & exponent) == exponent).any() for halves in kept)


def half_split_source(rows: NDArray[np.int64], head_width: int) -> NDArray[np.int64]:
    """Return which row of a llama file stands at each of ``rows`` in half-split order.

    Within each head, row i comes from 2i and row head_width / 2 + i from 2i + 1.
    """
    within = rows % head_width
    half = head_width // 2
    return rows - within + np.where(within < half, 2 * within, 2 * (within - half) + 1)
