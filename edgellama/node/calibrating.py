"""What a text makes of a model's activations: how much each column of each matrix counts.

A squared error in column j of a matrix costs, at its output, as much as the square of the number
that meets this column. Its mean over a text is measured by running the model over the text, with
kernels that look at what goes into each matmul.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from edgellama_kernels import PackedExperts

from edgellama.errors import MisuseError
from edgellama.model.head import Head
from edgellama.model.perplexity import chunk_nll, chunks_of
from edgellama.model.stage import Stage
from edgellama.model.tensor_parts import layer_parts, layer_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama_kernels import Kernels, PackedMatrix, Routing, Rows
    from numpy.typing import NDArray

    from edgellama.node.engine import LoadedSpan
    from edgellama.node.scoring import MeasuredModel

CHUNKS_MAX: Final = 128  # 64,000 tokens: more change no choice
# Columns that this text hardly touches still count a little: another text may touch them.
LEAST_SHARE: Final = 0.01


class _Observer:
    """Kernels that add up the squares of what goes into each matrix, column by column."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.squares: dict[int, NDArray[np.float64]] = {}  # by the matrix's address
        self.rows: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        """All other operations are those of the kernels beneath."""
        return getattr(self._kernels, name)

    def matmul(
        self, matrix: PackedMatrix, rows: Rows, residual: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        self._note(matrix.address, rows.values)
        return self._kernels.matmul(matrix, rows, residual)

    def expert_matmul(
        self, experts: PackedExperts, rows: Rows, routing: Routing
    ) -> NDArray[np.float32]:
        # All experts of a layer are one tensor, whose columns count as they do on the whole.
        self._note(experts.first.address, rows.values)
        return self._kernels.expert_matmul(experts, rows, routing)

    def _note(self, key: int, values: NDArray[np.float32]) -> None:
        values = values.reshape(-1, values.shape[-1])
        squares = np.square(values, dtype=np.float64).sum(axis=0)
        self.squares[key] = self.squares.get(key, 0.0) + squares
        self.rows[key] = self.rows.get(key, 0) + len(values)


def importance_of(
    model: MeasuredModel, text: str, progress: Callable[[int, int], None]
) -> dict[str, NDArray[np.float32]]:
    """Return by tensor how much its columns count on this text: float32 [columns], of mean 1.

    Of a long text the first `CHUNKS_MAX` chunks are run. Raises MisuseError for a text of less
    than one chunk.
    """
    encode = model.tokenizer.encode
    tokens = encode(text)
    if len(tokens) < model.context:
        raise MisuseError(
            f"the text of --calibrate has less than one chunk of {model.context} tokens"
        )
    chunks = chunks_of(tokens, encode(""), model.context, CHUNKS_MAX)
    observer = _Observer(model.kernels)
    loaded = model.loaded
    assert loaded.home is not None
    kernels: Any = observer
    stage = Stage(kernels, loaded.config, loaded.span, loaded.layers, model.context, 1)
    head = Head(kernels, loaded.config, loaded.home)
    for done, chunk in enumerate(chunks):
        progress(done, len(chunks))
        chunk_nll(stage, head, chunk)
    shares = {}
    for name, matrix in _matrices(loaded).items():
        key = (matrix.first if isinstance(matrix, PackedExperts) else matrix).address
        if key in observer.squares:
            shares[name] = _share(observer.squares[key] / observer.rows[key])
    embedding = "token_embd.weight"
    if embedding in shares:
        # It is used twice, and as the embedding each of its columns counts alike.
        shares[embedding] = (shares[embedding] + np.float32(1)) / np.float32(2)
    return shares


def _share(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    mean = float(squares.mean())
    if mean == 0:
        return np.ones(len(squares), np.float32)
    return ((squares / mean + LEAST_SHARE) / (1 + LEAST_SHARE)).astype(np.float32)


def _matrices(loaded: LoadedSpan) -> dict[str, PackedMatrix | PackedExperts]:
    """Return the matrices by the name of their tensor; the tied output by the embedding's."""
    assert loaded.home is not None
    output = "token_embd.weight" if loaded.config.tied_output else "output.weight"
    matrices: dict[str, PackedMatrix | PackedExperts] = {output: loaded.home.output}
    for layer, weights in zip(range(*loaded.span), loaded.layers, strict=True):
        own = weights.matrices()
        for part in layer_parts(loaded.config):
            if part.field in own:
                matrices[layer_tensor(layer, part.name)] = own[part.field]
    return matrices
