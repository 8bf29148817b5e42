"""A layer's weights, and home's, packed into one flat buffer each.

A buffer holds the packed matrices (``edgellama_kernels.PackedMatrix``) and the float32 norms and
biases one after the other, each at a multiple of 64 bytes. Where each lies follows from the
configuration and the tensors' types alone, so a buffer made on one device can be mapped and used
on another.

What RoPE turns is stored in the kernels' order: they rotate the numbers (i, i + head_width / 2) of
a head, and a file's family may rotate other pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from edgellama_kernels import PackedExperts, PackedMatrix, WeightKind, packed_bytes

from edgellama.model.gguf_header import file_fault
from edgellama.model.rope_settings import ROPE_TENSORS
from edgellama.model.tensor_parts import home_parts, layer_parts, layer_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edgellama.model.config import ModelConfig
    from edgellama.model.gguf import GgufFile
    from edgellama.model.tensor_parts import Part
    from edgellama.values import Span

ALIGNMENT_BYTES = 64  # a cache line, and what the packed matrices ask for
SLICE_BYTES_MAX = 1 << 20  # raw rows packed at a time: the scratch is a few times this
GROUP_ROWS = 8  # rows are stored in whole groups of this many


class GatedUnit(NamedTuple):
    """The feed-forward unit that every token meets."""

    gate: PackedMatrix  # feed_forward x width
    up: PackedMatrix  # feed_forward x width
    down: PackedMatrix  # width x feed_forward


class GatedExperts(NamedTuple):
    """A mixture of units, of which each token meets some."""

    gate: PackedExperts  # feed_forward x width each
    up: PackedExperts  # feed_forward x width each
    down: PackedExperts  # width x feed_forward each
    router: PackedMatrix  # experts x width


@dataclass(frozen=True)
class LayerWeights:
    """Views into one layer's buffer; ``rows x columns`` in the margin.

    What a family does not have is None.
    """

    attention_norm: NDArray[np.float32]  # [width]
    query: PackedMatrix  # heads * head_width x width
    key: PackedMatrix  # kv_heads * head_width x width
    value: PackedMatrix  # kv_heads * head_width x width
    attention_output: PackedMatrix  # width x heads * head_width
    feed_forward_norm: NDArray[np.float32]  # [width]
    unit: GatedUnit | GatedExperts
    query_bias: NDArray[np.float32] | None = None  # [heads * head_width]
    key_bias: NDArray[np.float32] | None = None  # [kv_heads * head_width]
    value_bias: NDArray[np.float32] | None = None  # [kv_heads * head_width]
    query_norm: NDArray[np.float32] | None = None  # [head_width]
    key_norm: NDArray[np.float32] | None = None  # [head_width]
    attention_post_norm: NDArray[np.float32] | None = None  # [width]
    feed_forward_post_norm: NDArray[np.float32] | None = None  # [width]

    @classmethod
    def over(
        cls, gguf: GgufFile, config: ModelConfig, layer: int, buffer: NDArray[np.uint8]
    ) -> LayerWeights:
        """Return views into a buffer that ``pack_layer`` filled, without a copy.

        Of ``gguf`` the header alone is read. ``buffer``: uint8 [layer_bytes(...)], may be
        read-only. Raises ModelFileError where its size is not that.
        """
        views = _views(gguf, _layer_sections(gguf, config, layer), buffer)
        unit = {name: views.pop(name) for name in GatedExperts._fields if name in views}
        return cls(unit=GatedExperts(**unit) if config.experts else GatedUnit(**unit), **views)

    def matrices(self) -> dict[str, PackedMatrix | PackedExperts]:
        """Return all matrices by the ``field`` of their part."""
        parts = vars(self) | self.unit._asdict()
        return {
            name: part
            for name, part in parts.items()
            if isinstance(part, PackedMatrix | PackedExperts)
        }


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
        views = _views(gguf, _home_sections(gguf, config), buffer)
        return cls(**{"output": views["embedding"]} | views)


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
        layer_tensor(layer, part.name)
        for layer in range(span.first, span.past)
        for part in layer_parts(config)
    }
    if home:
        names.update(part.name for part in home_parts(config))
    names.update(ROPE_TENSORS)
    return [name for name in gguf.tensors if name in names]


class _Section(NamedTuple):
    """Where a part lies in a buffer; ``kind`` is None for a vector of ``columns`` float32.

    ``first``: of its rows in the tensor. ``experts``: how many matrices of ``rows`` by ``columns``
    lie there, 0 for a single one.
    """

    field: str
    tensor: str
    rotated: bool
    first: int
    kind: WeightKind | None
    rows: int
    columns: int
    experts: int
    offset: int
    bytes: int


def _layer_sections(gguf: GgufFile, config: ModelConfig, layer: int) -> list[_Section]:
    return _sections(
        gguf, [part._replace(name=layer_tensor(layer, part.name)) for part in layer_parts(config)]
    )


def _home_sections(gguf: GgufFile, config: ModelConfig) -> list[_Section]:
    return _sections(gguf, home_parts(config))


def _sections(gguf: GgufFile, parts: Iterable[Part]) -> list[_Section]:
    """Lay parts whose names are whole one after the other."""
    sections = []
    offset = 0
    for part in parts:
        columns, *more = part.shape
        rows, experts = (*more, 0, 0)[:2]
        rows = part.rows or rows
        kind, size = None, 4 * columns
        if more:
            kind = WeightKind(gguf.tensors[part.name].kind_name)
            size = max(1, experts) * packed_bytes(kind, rows, columns)
        taken = (part.field, part.name, part.rotated, part.first)
        sections.append(_Section(*taken, kind, rows, columns, experts, offset, size))
        offset += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return sections


def _total_bytes(sections: Sequence[_Section]) -> int:
    last = sections[-1]
    return last.offset + -(-last.bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _check_size(gguf: GgufFile, sections: Sequence[_Section], buffer: NDArray[np.uint8]) -> None:
    wanted = _total_bytes(sections)
    if buffer.dtype != np.uint8 or buffer.shape != (wanted,):
        raise file_fault(
            gguf.path_name, f"packed weights of {buffer.nbytes} bytes where {wanted} belong"
        )


def _views(
    gguf: GgufFile, sections: Sequence[_Section], buffer: NDArray[np.uint8]
) -> dict[str, Any]:
    """Return each part's matrix or vector over the buffer, by its field."""
    _check_size(gguf, sections, buffer)
    return {
        section.field: _matrix(section, buffer) if section.kind else _vector(section, buffer)
        for section in sections
    }


def _matrix(section: _Section, buffer: NDArray[np.uint8]) -> PackedMatrix | PackedExperts:
    assert section.kind is not None
    view = buffer[section.offset : section.offset + section.bytes]
    shape = (section.rows, section.columns)
    if section.experts:
        return PackedExperts(section.kind, section.experts, *shape, view)
    return PackedMatrix(section.kind, *shape, view)


def _vector(section: _Section, buffer: NDArray[np.uint8]) -> NDArray[np.float32]:
    view: NDArray[np.float32] = buffer[section.offset : section.offset + section.bytes].view("<f4")
    return view


def _pack(
    gguf: GgufFile, config: ModelConfig, sections: Sequence[_Section], buffer: NDArray[np.uint8]
) -> None:
    _check_size(gguf, sections, buffer)
    buffer[:] = 0  # the gaps and the rows that fill up the last group
    for section in sections:
        if section.kind is None:
            _pack_vector(gguf, config, section, buffer)
        else:
            _pack_matrices(gguf, config, section, buffer)


def _pack_vector(
    gguf: GgufFile, config: ModelConfig, section: _Section, buffer: NDArray[np.uint8]
) -> None:
    vector = _vector(section, buffer)
    numbers = np.frombuffer(gguf.tensor_bytes(section.tensor), "<f4", count=section.columns)
    if section.rotated:
        numbers = numbers[kernel_order(np.arange(section.columns), config)]
    vector[:] = numbers
    if not np.isfinite(vector).all():
        raise file_fault(gguf.path_name, f"tensor {section.tensor} is not finite")


def _pack_matrices(
    gguf: GgufFile, config: ModelConfig, section: _Section, buffer: NDArray[np.uint8]
) -> None:
    packed = _matrix(section, buffer)
    if isinstance(packed, PackedMatrix):
        _pack_matrix(gguf, config, section, packed, section.first)
        return
    for number in range(packed.count):
        _pack_matrix(gguf, config, section, packed.expert(number), number * packed.rows)


def _pack_matrix(
    gguf: GgufFile, config: ModelConfig, section: _Section, matrix: PackedMatrix, start: int
) -> None:
    """Pack the rows of a tensor that begin with row ``start``."""
    row_bytes = gguf.tensors[section.tensor].row_bytes
    step = max(GROUP_ROWS, SLICE_BYTES_MAX // row_bytes // GROUP_ROWS * GROUP_ROWS)
    for first in range(0, section.rows, step):
        past = min(first + step, section.rows)
        if section.rotated:
            rows = gguf.tensor_rows(section.tensor, start, start + section.rows)
            raw = rows[kernel_order(np.arange(first, past), config)]
        else:
            raw = gguf.tensor_rows(section.tensor, start + first, start + past)
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


def kernel_order(rows: NDArray[np.int64], config: ModelConfig) -> NDArray[np.int64]:
    """Return which row of a file stands at each of ``rows`` in the kernels' order.

    The kernels turn the rows i and head_width / 2 + i of each head, for i below half of RoPE's
    dimensions. Those are 2i and 2i + 1 in a file that turns neighbours, else i and
    dimensions / 2 + i; the rows that nothing turns follow in any order, here the file's.
    """
    head_width = config.head_width
    within = rows % head_width
    second, pair = np.divmod(within, head_width // 2)
    turned = config.rope.dimensions // 2
    if config.family.neighbours:
        source = 2 * pair + second
    else:
        left = head_width // 2 - turned  # pairs that do not turn
        kept = 2 * turned + second * left + pair - turned
        source = np.where(pair < turned, second * turned + pair, kept)
    order: NDArray[np.int64] = rows - within + source
    return order
