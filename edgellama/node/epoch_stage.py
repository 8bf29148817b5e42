"""One epoch's span of layers on this device: its open answers, and what they hold in each layer.

Layers of an answer are as long as each other while tokens flow. After a change of plans some are
new here and hold nothing yet; they are filled by ``fill`` until all are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.model.cache import SessionCache
from edgellama.node.kept_caches import LayerCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama_kernels import CacheLayer, HiddenRows, Kernels

    from edgellama.mesh.effects import OpenJob
    from edgellama.model.stage import Stage
    from edgellama.node.kept_caches import KeptCaches
    from edgellama.values import Plan, Span


@dataclass
class _Answer:
    key: int  # names it under every epoch; 0 while nobody has said it
    layers: list[LayerCache]


class EpochStage:
    """A stage under one plan, whole and in parts; used by the compute thread alone.

    ``build`` gives a Stage over some of the span's layers, ``allocate`` an empty cache of one.
    """

    def __init__(
        self,
        plan: Plan,
        span: Span,
        build: Callable[[Span], Stage],
        allocate: Callable[[], CacheLayer],
    ) -> None:
        self._plan = plan
        self._span = span
        self._build = build
        self._allocate = allocate
        self._parts = {span: build(span)}
        self._answers: dict[int, _Answer] = {}

    def sessions(self) -> tuple[int, ...]:
        """Return the open sessions, the oldest first."""
        return tuple(self._answers)

    def use(self, kernels: Kernels) -> None:
        """Compute with other kernels from now on."""
        for part in self._parts.values():
            part.use(kernels)

    def open(self, job: OpenJob, kept: KeptCaches) -> tuple[int, ...]:
        """Go on with an answer; return how many positions each layer holds, at most its length.

        A session that steps have opened already only learns its key. Raises WireError when there
        is no room.
        """
        answer = self._answers.get(job.session)
        held, length = kept.take(job.key, self._plan, self._span), job.length
        # Whoever is continued is kept no longer, even where the answer itself is at hand.
        before = kept.take(job.continues, self._plan, self._span)
        if not held and before:
            held, length = before, min(length, job.shared)
        if answer is None:
            answer = self._begin(job.session, held if length else {}, kept)
        answer.key = job.key
        for layer in answer.layers:
            layer.length = min(layer.length, length) if length else layer.length
        return tuple(layer.length for layer in answer.layers)

    def forward(
        self, session: int, hidden: HiddenRows, position: int, kept: KeptCaches
    ) -> HiddenRows:
        """Compute the whole span for rows that follow what every layer holds."""
        answer = self._answers.get(session)
        if answer is None:
            if position:
                raise WireError(f"session {session} is not open on this stage")
            answer = self._begin(session, {}, kept)
        if any(layer.length != position for layer in answer.layers):
            lengths = sorted({layer.length for layer in answer.layers})
            raise WireError(f"session {session} stands at position {lengths}, not {position}")
        return self._compute(session, answer, self._span, hidden, position)

    def fill(self, session: int, span: Span, hidden: HiddenRows, position: int) -> HiddenRows:
        """Compute some layers for rows that no layer of them may lack the past of."""
        answer = self._answers.get(session)
        if answer is None:
            raise WireError(f"session {session} is not open on this stage")
        if not (self._span.first <= span.first < span.past <= self._span.past):
            raise WireError(f"layers {span.first} to {span.past - 1} are not held here")
        if any(layer.length < position for layer in self._layers(answer, span)):
            raise WireError(f"session {session} does not hold what comes before {position}")
        return self._compute(session, answer, span, hidden, position)

    def close(self, session: int, kept: KeptCaches | None = None) -> None:
        """End a session, if it is open: free its memory, or keep what it holds under its key."""
        answer = self._answers.pop(session, None)
        if answer is not None and kept is not None:
            self._keep(answer, kept)

    def retire(self, kept: KeptCaches) -> None:
        """Keep the answers that have a name: the epoch is over."""
        for answer in self._answers.values():
            self._keep(answer, kept)
        self._answers.clear()

    def _keep(self, answer: _Answer, kept: KeptCaches) -> None:
        if answer.key:
            layers = dict(zip(range(*self._span), answer.layers, strict=True))
            kept.put(answer.key, self._plan, layers)

    def _begin(self, session: int, held: dict[int, LayerCache], kept: KeptCaches) -> _Answer:
        most = self._plan.sessions_max
        if len(self._answers) >= most:
            raise WireError(f"this stage already holds {most} sessions, its maximum")
        kept.make_room(most - len(self._answers) - 1)
        layers = [held.get(layer) or LayerCache(self._allocate()) for layer in range(*self._span)]
        answer = self._answers[session] = _Answer(0, layers)
        return answer

    def _layers(self, answer: _Answer, span: Span) -> list[LayerCache]:
        first = self._span.first
        return answer.layers[span.first - first : span.past - first]

    def _compute(
        self, session: int, answer: _Answer, span: Span, hidden: HiddenRows, position: int
    ) -> HiddenRows:
        part = self._parts.get(span)
        if part is None:
            part = self._parts[span] = self._build(span)
        layers = self._layers(answer, span)
        cache = SessionCache(tuple(layer.cache for layer in layers), position)
        part.open(session, cache)
        try:
            hidden = part.forward(session, hidden, position)
        finally:
            part.release(session)
        for layer in layers:
            layer.length = max(layer.length, cache.length)
        return hidden
