"""One device without a network: the production mesh of a single member, in this thread.

The same code as in a mesh makes the answer, so it is the same answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgellama.errors import UnplaceableError
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import (
    DropEpochsBefore,
    Effect,
    GiveUp,
    LoadPlan,
    Run,
    ToAsker,
)
from edgellama.node.engine import Engine
from edgellama.values import LinkCounters, ModelFacts, NodeId
from edgellama.wire.messages import (
    ALIVE,
    Ask,
    Failure,
    Finished,
    MemberRecord,
    Message,
    Notice,
    Piece,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from queue import SimpleQueue

    from edgellama_kernels import Kernels

    from edgellama.mesh.home import Vocabulary
    from edgellama.node.loading import SpanLoader

SESSIONS_MAX = 1


class _Alone:
    """A node without links: what the mesh decides is carried out at once, in this thread."""

    def __init__(self, me: MemberRecord, model: ModelFacts, engine: Engine, loader: SpanLoader):
        self.core = MeshNode(me, model, SESSIONS_MAX, self, open_mesh=True)
        self.engine = engine
        self._loader = loader
        self._tokenizer: Vocabulary | None = None

    def counters(self, node: NodeId | None) -> LinkCounters:
        """Return nothing: there are no links."""
        return LinkCounters()

    def vocabulary(self) -> Vocabulary | None:
        """Return the tokenizer, once the model is loaded."""
        return self._tokenizer

    def until_idle(self) -> Iterator[Message]:
        """Do what the core wants until it wants nothing more; yield what it says to the asker."""
        while effects := self.core.effects():
            for effect in effects:
                if isinstance(effect, ToAsker):
                    yield effect.message
                else:
                    self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case LoadPlan():
                me = self.core.membership.me.node
                loaded = self._loader.load(effect.plan, me, sources=list)
                self.engine.install(loaded)
                self._tokenizer = loaded.tokenizer
                self.core.plan_loaded(effect.plan.epoch, time.monotonic())
            case DropEpochsBefore():
                self.engine.drop_before(effect.epoch)
            case Run():
                result = self.engine.run(effect.job)
                self.core.job_done(effect.job, result, time.monotonic())
            case GiveUp():
                raise effect.error


def answer_alone(
    ask: Ask,
    model: ModelFacts,
    loader: SpanLoader,
    kernels: Kernels,
    *,
    node: NodeId,
    name: str,
    ram_bytes: int,
    context: int,
    better_kernels: SimpleQueue[Kernels] | None = None,
) -> Iterator[Piece | Finished | Notice]:
    """Yield the pieces of an answer made on this device alone, and its end.

    ``context`` 0 leaves it to the model. Kernels that come into ``better_kernels`` meanwhile take
    over. Raises UnplaceableError where ``ram_bytes`` do not suffice, and what loading and
    computing raise.
    """
    me = MemberRecord(
        *(node, 1, 1, ALIVE, name, "", 0, 0, ram_bytes, context, kernels.name, ""),
        *(model.root, False, ""),
    )
    alone = _Alone(me, model, Engine(kernels), loader)
    try:
        alone.engine.prove()
        # No other member can come, so the view has settled already.
        alone.core.handle_timer((alone.core.planning.next_timer() or 0.0) + 1.0)
        if alone.core.planning.trouble:
            raise UnplaceableError(alone.core.planning.trouble)
        for message in alone.until_idle():
            raise AssertionError(f"{message} before anything was asked")
        alone.core.ask(ask, time.monotonic())
        for message in alone.until_idle():
            if isinstance(message, Failure):
                raise message.error()
            assert isinstance(message, Piece | Finished | Notice)
            yield message
            if better_kernels is not None and not better_kernels.empty():
                alone.engine.use(better_kernels.get())
    finally:
        alone.engine.close()
