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

    import edgellama_kernels

    from edgellama.mesh.home import Vocabulary
    from edgellama.node.loading import SpanLoader

SESSIONS_MAX = 1


class _Alone:
    """What a node without links can be asked."""

    def __init__(self) -> None:
        self.tokenizer: Vocabulary | None = None

    def counters(self, node: NodeId | None) -> LinkCounters:
        return LinkCounters()

    def vocabulary(self) -> Vocabulary | None:
        return self.tokenizer


def answer_alone(
    ask: Ask,
    model: ModelFacts,
    loader: SpanLoader,
    kernels: edgellama_kernels.Kernels,
    *,
    node: NodeId,
    name: str,
    ram_bytes: int,
    context: int,
) -> Iterator[Piece | Finished | Notice]:
    """Yield the pieces of an answer made on this device alone, and its end.

    ``context`` 0 leaves it to the model. Raises UnplaceableError where ``ram_bytes`` do not
    suffice, and what loading and computing raise.
    """
    me = MemberRecord(
        *(node, 1, 1, ALIVE, name, "", 0, 0, ram_bytes, context, kernels.name, ""),
        *(model.root, False, ""),
    )
    surroundings = _Alone()
    core = MeshNode(me, model, SESSIONS_MAX, surroundings, open_mesh=True)
    engine = Engine(kernels)
    # No other member can come, so the view has settled already.
    core.handle_timer((core.planning.next_timer() or 0.0) + 1.0)
    if core.planning.trouble:
        raise UnplaceableError(core.planning.trouble)
    for message in _until_idle(core, engine, loader, surroundings):
        raise AssertionError(f"{message} before anything was asked")
    core.ask(ask, time.monotonic())
    for message in _until_idle(core, engine, loader, surroundings):
        if isinstance(message, Failure):
            raise message.error()
        assert isinstance(message, Piece | Finished | Notice)
        yield message


def _until_idle(
    core: MeshNode, engine: Engine, loader: SpanLoader, surroundings: _Alone
) -> Iterator[Message]:
    """Do what the core wants until it wants nothing more; yield what it says to the asker."""
    while effects := core.effects():
        for effect in effects:
            if isinstance(effect, ToAsker):
                yield effect.message
            else:
                _carry_out(core, engine, loader, surroundings, effect)


def _carry_out(
    core: MeshNode, engine: Engine, loader: SpanLoader, surroundings: _Alone, effect: Effect
) -> None:
    match effect:
        case LoadPlan():
            loaded = loader.load(effect.plan, core.membership.me.node, sources=list)
            engine.install(loaded)
            surroundings.tokenizer = loaded.tokenizer
            core.plan_loaded(effect.plan.epoch, time.monotonic())
        case DropEpochsBefore():
            engine.drop_before(effect.epoch)
        case Run():
            core.job_done(effect.job, engine.run(effect.job), time.monotonic())
        case GiveUp():
            raise effect.error
