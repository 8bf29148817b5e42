"""A whole model on this device alone, opened for measuring it: perplexity and what is like it."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from edgellama.errors import MisuseError
from edgellama.model.head import Head
from edgellama.model.perplexity import CONTEXT_DEFAULT, Perplexity, chunk_nll, chunks_of
from edgellama.model.stage import Stage
from edgellama.net.packed import PackedCache
from edgellama.net.store import Store
from edgellama.node.kernels import DeviceKernels, prove
from edgellama.node.loading import SpanLoader, own_model_facts
from edgellama.values import KV_F16, Plan, Span, StagePlacement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellama_kernels import Kernels

    from edgellama.model.tokenizer import Tokenizer
    from edgellama.net.paths import StatePaths
    from edgellama.node.engine import LoadedSpan

TEXT_BYTES_MAX: Final = 256 << 20  # tokens take some ten times as much memory as their text


class MeasuredModel:
    """All layers, embedding and head of a model under one thread's kernels."""

    def __init__(
        self, loaded: LoadedSpan, kernels: Kernels, better_kernels: SimpleQueue[Kernels]
    ) -> None:
        assert loaded.home is not None
        assert loaded.tokenizer is not None
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.context = loaded.plan.context
        self.loaded = loaded
        self._better = better_kernels
        self._use(kernels)

    def _use(self, kernels: Kernels) -> None:
        prove(kernels)
        loaded = self.loaded
        assert loaded.home is not None
        self.kernels = kernels
        self._head = Head(kernels, loaded.config, loaded.home)
        self._stage = Stage(
            *(kernels, loaded.config, loaded.span, loaded.layers, self.context),
            sessions_max=1,
            kv_kind=loaded.plan.kv_kind,
        )

    def parts(self) -> tuple[Stage, Head]:
        """Return what computes the next text: between two, compiled kernels may take over."""
        try:
            better = self._better.get_nowait()
        except Empty:
            return self._stage, self._head
        self.kernels.close()
        self._use(better)
        return self._stage, self._head

    def close(self) -> None:
        """End the kernels' threads."""
        self.kernels.close()


@contextmanager
def measured_model(
    model: Path,
    context: int | None,
    threads: int | None,
    backend: str,
    paths: StatePaths,
    tell: Callable[[str], None],
    scratch: Path | None = None,
    kv_kind: str = KV_F16,
) -> Iterator[MeasuredModel]:
    """Open a GGUF file; ``context`` None is 512, or what the model has where that is less.

    What is made of the file is kept for the next time, or in the folder ``scratch``.
    Raises MisuseError for a context beyond the model's, and what a bad file raises.
    """
    paths.make()
    store = Store(scratch or paths.store)
    try:
        facts = own_model_facts(store.adopt(model), model)
        if context is not None and context > facts.context_max:
            raise MisuseError(f"--context {context}: the model was made for {facts.context_max}")
        context = context or min(CONTEXT_DEFAULT, facts.context_max)
        node = secrets.token_hex(16)
        placement = StagePlacement(node, Span(0, len(facts.layer_bytes)))
        plan = Plan(1, node, facts.root, context, 1, (placement,), kv_kind)
        kernels = DeviceKernels(backend, threads, paths, tell)
        better: SimpleQueue[Kernels] = SimpleQueue()
        kernels.watch(better.put)
        loaded = SpanLoader(store, PackedCache(scratch or paths.packed), b"", tell).load(
            plan, node, sources=list
        )
        opened = MeasuredModel(loaded, kernels.now, better)
        try:
            yield opened
        finally:
            opened.close()
    finally:
        store.close()


def perplexity_of(
    model: MeasuredModel,
    text: str,
    chunks_max: int | None,
    progress: Callable[[int, int], None],
) -> Perplexity:
    """Measure how well the model foretells ``text``, over at most ``chunks_max`` chunks.

    ``progress`` is told the chunks done and the chunks in all. Raises MisuseError for a text that
    has not one whole chunk.
    """
    encode = model.tokenizer.encode
    chunks = chunks_of(encode(text), encode(""), model.context, chunks_max)
    nlls = []
    for done, chunk in enumerate(chunks):
        progress(done, len(chunks))
        nlls.append(chunk_nll(*model.parts(), chunk))
    return Perplexity.of(nlls, model.context)


def read_text(path: Path) -> str:
    """Return a text file's content; MisuseError where it cannot be read or is not UTF-8.

    One line feed at the end is left out, as llama.cpp does with its ``-f``.
    """
    try:
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise MisuseError(f"{path} is longer than {TEXT_BYTES_MAX >> 20} MiB")
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except OSError as error:
        raise MisuseError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise MisuseError(f"{path} is not UTF-8 text") from None
