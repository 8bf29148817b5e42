"""The two ends of the model, both at home: token ids to hidden state, hidden state to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellama.errors import WireError
from edgellama.model.hidden import check_hidden, finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama_kernels import HiddenRows, Kernels
    from numpy.typing import NDArray

    from edgellama.model.config import ModelConfig
    from edgellama.model.weights import HomeWeights


class Head:
    """Embedding and output head over home's weights, used by the compute thread alone."""

    def __init__(self, kernels: Kernels, config: ModelConfig, weights: HomeWeights) -> None:
        self._kernels = kernels
        self._config = config
        self._weights = weights

    def use(self, kernels: Kernels) -> None:
        """Compute with other kernels from now on; the bits stay the same."""
        self._kernels = kernels

    def embed(self, token_ids: Sequence[int]) -> HiddenRows:
        """Return the hidden state, [T, width], that enters layer 0.

        Raises WireError for no tokens or for one that is not in the vocabulary.
        """
        vocabulary = self._config.vocabulary
        if len(token_ids) == 0 or min(token_ids) < 0 or max(token_ids) >= vocabulary:
            raise WireError(f"{len(token_ids)} tokens came that are not all of the {vocabulary}")
        with finite("the embedding"):
            ids = np.array(token_ids, np.int64)
            scale = self._config.embedding_scale
            return self._kernels.embed(self._weights.embedding, ids, scale)

    def logits(self, hidden: HiddenRows) -> NDArray[np.float32]:
        """Return float32 [T, vocabulary] for every row of the last layer's output, [T, width].

        Pass the rows that are asked for alone (``hidden.take_rows``): of a prompt, the last.
        Raises WireError for a wrong shape, NonFiniteError where a number leaves its range.
        """
        check_hidden(hidden, self._config.width)
        kernels, weights = self._kernels, self._weights
        with finite("the output head"):
            x = kernels.expand(hidden)  # [T, width]
            x = kernels.rms_norm(x, weights.output_norm, self._config.epsilon)
            return kernels.matmul(weights.output, kernels.prepare(x))  # [T, vocabulary]
