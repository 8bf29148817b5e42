"""Where quantizing takes its tensors from: any file that gives rows as they would lie in a GGUF."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from edgellama_kernels import PackedMatrix, WeightKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgellama.model.gguf import GgufFile


class SourceTensor(NamedTuple):
    """A tensor under its GGUF name; ``shape`` in GGUF's order, columns first."""

    name: str
    kind_name: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Rows, over all dimensions after the first."""
        return prod(self.shape[1:])

    @property
    def columns(self) -> int:
        """Weights in a row."""
        return self.shape[0]


class WeightSource(Protocol):
    """A model's tensors and metadata; safe to read from several threads."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def tensors(self) -> Sequence[SourceTensor]:
        """All tensors, in the order in which they shall be written."""

    def metadata(self) -> Mapping[str, bytes]:
        """Return the keys of the GGUF to be written, each value encoded."""

    def raw_rows(self, tensor: SourceTensor, first: int, past: int) -> NDArray[np.uint8]:
        """Return rows in the tensor's own type: uint8 [n, bytes of a row]."""

    def release(self) -> None:
        """Let the system use the memory of what was read for other things."""


class GgufSource:
    """An open GGUF file as it is."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self.name = gguf.path_name
        self.tensors = [
            SourceTensor(tensor.name, tensor.kind_name, tensor.shape)
            for tensor in gguf.tensors.values()
        ]

    def metadata(self) -> Mapping[str, bytes]:
        """Return the file's keys; how tensors are aligned is up to whoever writes them."""
        return {
            key: self._gguf.encoded_value(key)
            for key in self._gguf.metadata
            if key != "general.alignment"
        }

    def raw_rows(self, tensor: SourceTensor, first: int, past: int) -> NDArray[np.uint8]:
        """Return rows as they lie in the file."""
        return self._gguf.tensor_rows(tensor.name, first, past)

    def release(self) -> None:
        """Let the system have the pages of the mapped file."""
        self._gguf.release_pages()


def wide_rows(kind_name: str, raw: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """Return the exact values of rows as a GGUF stores them: float32 [n, columns]."""
    if kind_name == WeightKind.F32.value:
        return np.ascontiguousarray(raw).view("<f4")
    if kind_name == WeightKind.F16.value:
        return np.ascontiguousarray(raw).view("<f2").astype(np.float32)
    if kind_name == WeightKind.BF16.value:
        halves = np.ascontiguousarray(raw).view("<u2")
        return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)
    matrix = PackedMatrix.zeros(WeightKind(kind_name), len(raw), columns)
    matrix.store_rows(0, raw)
    return matrix.dequantized_rows(np.arange(len(raw)))
