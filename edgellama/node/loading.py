"""From a plan to weights that can compute: fetch what is missing, pack it, map it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from edgellama.errors import ModelFileError
from edgellama.model.config import ModelConfig
from edgellama.model.cost import model_facts
from edgellama.model.tokenizer import Tokenizer
from edgellama.model.weights import HomeWeights, LayerWeights
from edgellama.net.model_fetch import fetch_header, fetch_layers
from edgellama.net.own_model import OwnModel
from edgellama.net.packed import HOME_PART, layer_part
from edgellama.net.supply import Supply, WeightSource
from edgellama.net.throttle import Throttle
from edgellama.node.engine import LoadedSpan
from edgellama.plan.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgellama.model.chat_template import ChatTemplate
    from edgellama.model.gguf import GgufFile
    from edgellama.net.packed import PackedCache
    from edgellama.net.store import Store
    from edgellama.net.transfer import Fetched
    from edgellama.values import ModelFacts, NodeId, Plan, Span

SOURCE_TRIES: Final = 20
SOURCE_WAIT_S: Final = 0.5

Sources = Callable[[], Sequence[WeightSource]]


class Progress(Protocol):
    """Shown to a person while a node loads."""

    def __call__(self, doing: str, done_bytes: int, total_bytes: int) -> None:
        """Say how far ``doing`` has come."""


def _unheard(source: WeightSource, bytes_per_s: int) -> None:
    """Tell nobody what came from where."""


def _silent(doing: str, done_bytes: int, total_bytes: int) -> None:
    """Show nothing."""


class SpanLoader:
    """Brings a node's span of a model to where the engine can use it.

    The user's own file is read in place; everything else comes from peers by way of the store,
    and stays there for the next start. Used by one thread at a time.
    """

    def __init__(
        self,
        store: Store,
        packed: PackedCache,
        mesh_key: bytes,
        tell: Callable[[str], None],
        progress: Progress = _silent,
        throttle: Throttle | None = None,
        came: Callable[[WeightSource, int], None] = _unheard,
    ) -> None:
        self._store = store
        self._packed = packed
        self.mesh_key = mesh_key  # of fetches that begin from now on
        self._distrusted: set[WeightSource] = set()
        self._tell = tell
        self._progress = progress
        self._throttle = throttle or Throttle()
        self._came = came  # is told how many bytes a second came from a source

    def load(
        self,
        plan: Plan,
        node: NodeId,
        sources: Sources,
        cancelled: threading.Event | None = None,
    ) -> LoadedSpan:
        """Return the node's span under ``plan``, ready to compute.

        ``sources`` gives the peers to ask for weights. Raises TransferError when
        they cannot be had or loading was cancelled, and what a bad model file raises.
        """
        stage = plan.stage_of(node)
        assert stage is not None
        span, at_home = plan.stages[stage].span, stage == 0
        cancelled = cancelled or threading.Event()
        root = plan.model_root
        # What is held already must stay so: the file need not have its tensors.
        gguf, _held = self._open(root, span, at_home, sources, cancelled)
        with gguf:
            config = ModelConfig.from_gguf(gguf)
            buffers = self._packed.layer_buffers(
                gguf, config, root, span, self._told("packing layers")
            )
            layers = tuple(
                LayerWeights.over(gguf, config, layer, buffer)
                for layer, buffer in zip(range(*span), buffers, strict=True)
            )
            if self._packed.note:
                self._tell(self._packed.note)
            if not at_home:
                return LoadedSpan(plan, span, config, layers, None, None)
            buffer = self._packed.home_buffer(gguf, config, root, self._told("packing the head"))
            home = HomeWeights.over(gguf, config, buffer)
            tokenizer = _tokenizer(gguf, config)
            template = _template(gguf, tokenizer)
            return LoadedSpan(plan, span, config, layers, home, tokenizer, template)

    def _open(
        self, root: str, span: Span, at_home: bool, sources: Sources, cancelled: threading.Event
    ) -> tuple[GgufFile, dict[str, NDArray[np.uint8]]]:
        """Return the model's file, with what of the span is not packed yet, and what is."""
        own = self._store.source(root)
        if isinstance(own, OwnModel):
            return own.open_gguf(), {}
        patient = _patient(sources, cancelled)
        supply = Supply(
            *(patient, self.mesh_key, cancelled, self._tell, self._distrusted), self._throttle
        )
        stored = fetch_header(self._store, root, supply, self._told("fetching the header"))
        gguf = stored.open_gguf()
        try:
            config = ModelConfig.from_gguf(gguf)
            held = self._packed.held(gguf, config, root, span, home=at_home)
            layers = [layer for layer in range(*span) if layer_part(layer) not in held]
            home = at_home and HOME_PART not in held
            told = self._told("fetching layers")
            began = time.monotonic()
            fetched = fetch_layers(stored, gguf, config, layers, home, supply, told)
            for source, count in fetched.items():
                self._came(source, round(count / (time.monotonic() - began)))
        except BaseException:
            gguf.close()
            raise
        if fetched:
            self._tell(f"fetched {_fetched_text(fetched)}")
        return gguf, held

    def _told(self, doing: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(doing, done, total)


def _fetched_text(fetched: Fetched) -> str:
    """Return how much came from whom, the most first."""
    shares = sorted(fetched.items(), key=lambda share: -share[1])
    return ", ".join(f"{format_size(count)} from {source}" for source, count in shares)


def _patient(sources: Sources, cancelled: threading.Event) -> Sources:
    """Return sources that wait at first: news of other members may come after the plan."""
    tries_left = SOURCE_TRIES

    def ask() -> Sequence[WeightSource]:
        nonlocal tries_left
        while not (known := sources()) and tries_left and not cancelled.wait(SOURCE_WAIT_S):
            tries_left -= 1
        tries_left = 0
        return known

    return ask


def _tokenizer(gguf: GgufFile, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer; ModelFileError where it and the embedding count different tokens."""
    tokenizer = Tokenizer.from_gguf(gguf)
    if tokenizer.size != config.vocabulary:
        raise ModelFileError(
            f"{gguf.path_name}: the tokenizer has {tokenizer.size} tokens, "
            f"the embedding {config.vocabulary}"
        )
    return tokenizer


def _template(gguf: GgufFile, tokenizer: Tokenizer) -> ChatTemplate | None:
    # Only at home: not every device has to load a template engine.

    from edgellama.model.chat_template import ChatTemplate

    return ChatTemplate.from_gguf(gguf, tokenizer)


def own_model_facts(own: OwnModel, path: Path) -> ModelFacts:
    """Return the planner's facts of a user's file."""
    with own.open_gguf() as gguf:
        return model_facts(gguf, own.manifest.root, path.stem)
