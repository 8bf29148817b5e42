"""Small models of every family as transformers' folders, and the logits that it made of them.

Any test may `import family_models`: pytest puts the folder of `tests/conftest.py` on the path.
The folders' weights are seeded, and `tools/oracle_logits.py` wrote the golden files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import gguf_writing
import numpy as np
from hugging_face_folders import write_folder
from model_running import PackedModel, Ring, packed_model

from edgellama.model.hugging_face_source import HuggingFaceSource
from edgellama.node.quantizing import same_kind, write_quantized

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgellama_kernels import Kernels
    from numpy.typing import NDArray

oracle = gguf_writing.tool("oracle_logits")


class Difference(NamedTuple):
    """Of logits from the oracle's, over the standard deviation of these."""

    mean: float
    greatest: float
    same_first: float  # the share of rows whose greatest logit is of the same token


def quantized_model(folder: Path, case: Mapping[str, Any], kind: str) -> Path:
    """Write a case's folder, and by `quantize` the GGUF file that is returned."""
    source = HuggingFaceSource(write_folder(folder / "source", case, oracle.weights(case)))
    target = folder / f"{kind}.gguf"
    write_quantized(source, same_kind(source, kind), target, {}, 1, lambda _done, _all: None)
    return target


def model_of(folder: Path, name: str, kind: str) -> PackedModel:
    """Return a case's model, packed."""
    return packed_model(quantized_model(folder, oracle.CASES[name], kind))


def difference(model: PackedModel, kernels: Kernels, name: str, kind: str) -> Difference:
    """Compare all rows and columns that the golden file has of this type."""
    found, expected = [], []
    with np.load(oracle.GOLDEN / f"{name}.npz") as golden:
        for length in oracle.LENGTHS:
            ring = Ring(model, kernels, (model.config.layers,), context=max(oracle.LENGTHS))
            logits = ring.prefill(oracle.tokens(length), [length])
            found.append(logits[oracle.rows_kept(length), :: oracle.COLUMN_STEP])
            expected.append(golden[f"{kind} {length}"])
    return _difference(np.concatenate(found), np.concatenate(expected))


def _difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> Difference:
    error = np.abs(found.astype(np.float64) - expected) / expected.std(dtype=np.float64)
    same_first = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    return Difference(float(error.mean()), float(error.max()), float(same_first))
