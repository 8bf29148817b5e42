"""How a node without the model's file comes by what it needs of it: header first, then a span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.model.rope_settings import ROPE_FACTORS_TENSOR
from edgellama.model.weights import needed_tensors
from edgellama.net.transfer import fetch_chunks, fetch_manifest

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from edgellama.model.config import ModelConfig
    from edgellama.model.gguf import GgufFile
    from edgellama.net.manifest import Progress
    from edgellama.net.store import Store
    from edgellama.net.stored_model import StoredModel
    from edgellama.values import Address, Span


def fetch_header(
    store: Store,
    root: str,
    sources: Sequence[Address],
    mesh_key: bytes,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> StoredModel:
    """Return the stored copy with all that the configuration and the tokenizer are read from.

    What the store has is not asked for: with a header on the disk no source is needed. Raises
    what ``fetch_manifest`` and ``fetch_chunks`` raise.
    """
    stored = store.find(root) or store.create(fetch_manifest(root, sources, mesh_key))
    manifest = stored.manifest
    # The one tensor that belongs to the configuration; most models do not have it.
    factors = [region.name for region in manifest.regions if region.name == ROPE_FACTORS_TENSOR]
    chunks = [*manifest.chunks_of_header(), *manifest.chunks_of_tensors(factors)]
    fetch_chunks(stored, chunks, sources, mesh_key, progress, cancelled)
    return stored


def fetch_span(
    stored: StoredModel,
    gguf: GgufFile,
    config: ModelConfig,
    span: Span,
    home: bool,
    sources: Sequence[Address],
    mesh_key: bytes,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> None:
    """Fetch the tensors of the span's layers, and home's where asked, and nothing else.

    ``gguf``: the stored copy's own, from ``open_gguf``. Raises what ``fetch_chunks`` raises.
    """
    chunks = stored.manifest.chunks_of_tensors(needed_tensors(gguf, config, span, home))
    fetch_chunks(stored, chunks, sources, mesh_key, progress, cancelled)
