"""One device without a network: the production mesh of a single member, in this thread.

The same code as in a mesh makes the answers, so they are the same answers.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from edgellama.errors import UnplaceableError
from edgellama.mesh.core import MeshNode
from edgellama.mesh.effects import (
    CloseJob,
    DropEpochsBefore,
    Effect,
    GiveUp,
    LoadPlan,
    Run,
    ToAsker,
)
from edgellama.node.engine import Engine
from edgellama.node.session_shelf import Nowhere
from edgellama.values import KV_F16, LinkCounters, LinkFacts, ModelFacts, NodeId
from edgellama.wire.messages import (
    ALIVE,
    Ask,
    Conversation,
    Failure,
    Finished,
    MemberRecord,
    Message,
    Notice,
    Piece,
    StatusReply,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from queue import SimpleQueue
    from threading import Event

    from edgellama_kernels import Kernels

    from edgellama.mesh.home_session import Vocabulary
    from edgellama.node.loading import SpanLoader

SESSIONS_MAX: Final = 1

AnswerMessage = Piece | Finished | Notice


class Alone(Nowhere):
    """A node without links: what the mesh decides is carried out at once, in this thread.

    ``ram_bytes`` is what it may take; ``context`` 0 leaves it to the model. Kernels that come into
    ``better_kernels`` later take over. Raises UnplaceableError where the memory does not suffice,
    and what loading raises.
    """

    def __init__(
        self,
        model: ModelFacts,
        loader: SpanLoader,
        kernels: Kernels,
        *,
        node: NodeId,
        name: str,
        ram_bytes: int,
        context: int,
        kv_kind: str = KV_F16,
        better_kernels: SimpleQueue[Kernels] | None = None,
    ) -> None:
        me = MemberRecord(
            *(node, 1, 1, ALIVE, name, "", 0, 0, ram_bytes, context, kernels.name, ""),
            *(model.root, False, ""),
            kv_kind=kv_kind,
        )
        self._core = MeshNode(me, model, SESSIONS_MAX, self, open_mesh=True)
        self._engine = Engine(kernels)
        self._loader = loader
        self._better = better_kernels
        self._wanted: deque[Effect] = deque()
        self._tokenizer: Vocabulary | None = None
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def answer(
        self, ask: Ask, stop: Event | None = None, session: Conversation | None = None
    ) -> Iterator[AnswerMessage]:
        """Yield the messages of an answer; it ends early when ``stop`` is set.

        Raises what computing raises, and what is wrong with the question.
        """
        self._core.ask(ask, time.monotonic())
        try:
            yield from self._said(stop)
        except KeyboardInterrupt:
            raise  # in the middle of anything: this node cannot be asked again
        except BaseException:
            self._abandon(ask.request)
            raise
        self._abandon(ask.request)  # where it was stopped

    def status(self) -> StatusReply:
        """Return how this mesh of one stands."""
        return self._core.status()

    def close(self) -> None:
        """End the kernels' threads."""
        self._engine.close()

    def heard_at(self, node: NodeId) -> float | None:
        """Return None: there are no links."""

    def counters(self, node: NodeId | None) -> LinkCounters:
        """Return nothing: there are no links."""
        return LinkCounters()

    def transport(self, node: NodeId) -> str:
        """Return nothing: there is nobody else."""
        return ""

    def links(self) -> list[LinkFacts]:
        """Return nothing: there are no links."""
        return []

    def clock_ms(self) -> int:
        """Return this device's clock."""
        return time.time_ns() // 1_000_000

    def vocabulary(self) -> Vocabulary | None:
        """Return the tokenizer, once the model is loaded."""
        return self._tokenizer

    def _load(self) -> None:
        self._engine.prove()
        # No other member can come, so the view has settled already.
        self._core.handle_timer((self._core.planning.next_timer() or 0.0) + 1.0)
        if self._core.planning.trouble:
            raise UnplaceableError(self._core.planning.trouble)
        for message in self._until_idle():
            raise AssertionError(f"{message} before anything was asked")

    def _said(self, stop: Event | None) -> Iterator[AnswerMessage]:
        for message in self._until_idle(stop):
            if isinstance(message, Failure):
                raise message.error()
            assert isinstance(message, AnswerMessage)
            yield message
            self._take_better_kernels()

    def _until_idle(self, stop: Event | None = None) -> Iterator[Message]:
        """Do what the core wants until it wants nothing more; yield what it says to the asker."""
        while stop is None or not stop.is_set():
            self._wanted.extend(self._core.effects())
            if not self._wanted:
                return
            effect = self._wanted.popleft()
            if isinstance(effect, ToAsker):
                yield effect.message
            else:
                self._carry_out(effect)

    def _abandon(self, request: int) -> None:
        """Free what a request holds, without computing what was still wanted of it."""
        self._core.cancel(request, time.monotonic())
        for effect in (*self._wanted, *self._core.effects()):
            if isinstance(effect, Run) and isinstance(effect.job, CloseJob):
                self._carry_out(effect)
        self._wanted.clear()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case LoadPlan():
                me = self._core.membership.me.node
                loaded = self._loader.load(effect.plan, me, sources=list)
                self._engine.install(loaded)
                self._tokenizer = loaded.tokenizer
                self._core.plan_loaded(effect.plan.epoch, time.monotonic())
            case DropEpochsBefore():
                self._engine.drop_before(effect.epoch)
            case Run():
                result = self._engine.run(effect.job)
                self._core.job_done(effect.job, result, time.monotonic())
            case GiveUp():
                raise effect.error

    def _take_better_kernels(self) -> None:
        if self._better is not None and not self._better.empty():
            self._engine.use(self._better.get())
