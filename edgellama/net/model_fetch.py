"""How a node without the model's file comes by what it needs of it: header first, then a span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.model.rope_settings import ROPE_TENSORS
from edgellama.model.weights import needed_tensors
from edgellama.net.transfer import fetch_chunks, fetch_manifest
from edgellama.values import Span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellama.model.config import ModelConfig
    from edgellama.model.gguf import GgufFile
    from edgellama.net.manifest import Progress
    from edgellama.net.store import Store
    from edgellama.net.stored_model import StoredModel
    from edgellama.net.supply import Supply
    from edgellama.net.transfer import Fetched


def fetch_header(
    store: Store, root: str, supply: Supply, progress: Progress | None = None
) -> StoredModel:
    """Return the stored copy with all that the configuration and the tokenizer are read from.

    What the store has is not asked for: with a header on the disk no source is needed. Raises
    what ``fetch_manifest`` and ``fetch_chunks`` raise.
    """
    stored = store.find(root) or store.create(fetch_manifest(root, supply))
    manifest = stored.manifest
    # The only tensors that belong to the configuration; most models do not have them.
    factors = [region.name for region in manifest.regions if region.name in ROPE_TENSORS]
    chunks = [*manifest.chunks_of_header(), *manifest.chunks_of_tensors(factors)]
    fetch_chunks(stored, chunks, supply, progress)
    return stored


def fetch_layers(
    stored: StoredModel,
    gguf: GgufFile,
    config: ModelConfig,
    layers: Iterable[int],
    home: bool,
    supply: Supply,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch the tensors of these layers, and home's where asked, and nothing else.

    ``gguf``: the stored copy's own, from ``open_gguf``. Raises what ``fetch_chunks`` raises.
    """
    names = {
        name
        for layer in layers
        for name in needed_tensors(gguf, config, Span(layer, layer + 1), False)
    }
    if home:
        names.update(needed_tensors(gguf, config, Span(0, 0), True))
    return fetch_chunks(stored, stored.manifest.chunks_of_tensors(names), supply, progress)
