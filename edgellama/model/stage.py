"""A contiguous span of layers with its KV cache: what one device computes of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama_kernels import CacheKind, Unrecordable

from edgellama.errors import WireError
from edgellama.model.cache import SessionCache
from edgellama.model.decoder import decode_layer
from edgellama.model.hidden import check_hidden, finite, join_rows, take_rows
from edgellama.model.rope import RopeTable
from edgellama.values import KV_F16

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama_kernels import HiddenRows, Kernels, Program

    from edgellama.model.config import ModelConfig
    from edgellama.model.weights import LayerWeights
    from edgellama.values import Span

CHUNK_TOKENS_MAX = 128  # bounds the scratch memory; larger chunks gain no speed


class Stage:
    """Layers ``span`` of a model, and for each open session their keys and values.

    ``layers`` are the weights of the span's layers in order. ``context`` is how many positions a
    session can hold, ``sessions_max`` how many can be open at once, ``kv_kind`` how their keys and
    values are kept. Not safe for threads: one
    compute thread owns a stage and its kernels.
    """

    def __init__(
        self,
        kernels: Kernels,
        config: ModelConfig,
        span: Span,
        layers: Sequence[LayerWeights],
        context: int,
        sessions_max: int,
        kv_kind: str = KV_F16,
    ) -> None:
        assert 0 <= span.first < span.past <= config.layers
        assert len(layers) == span.layers
        assert 1 <= context <= config.context_max
        self.span = span
        self.context = context
        self.sessions_max = sessions_max
        self._cache_kind = CacheKind(kv_kind)
        self._config = config
        self._layers = tuple(layers)
        self._turns = [RopeTable(rope, config.head_width) for rope in config.ropes]
        self._sessions: dict[int, SessionCache] = {}
        self.use(kernels)

    def use(self, kernels: Kernels) -> None:
        """Compute with other kernels from now on; the bits stay the same, sessions go on."""
        self._kernels = kernels
        self._program = self._recorded()

    def sessions(self) -> tuple[int, ...]:
        """Return the open sessions, the oldest first."""
        return tuple(self._sessions)

    def open(self, session: int, cache: SessionCache | None = None) -> None:
        """Begin a session of length 0, or go on with the cache of one that was released.

        Raises WireError when it is open or there is no room.
        """
        if session in self._sessions:
            raise WireError(f"session {session} is already open on this stage")
        if len(self._sessions) >= self.sessions_max:
            raise WireError(f"this stage already holds {self.sessions_max} sessions, its maximum")
        if cache is None:
            cache = SessionCache.allocate(
                self._config, len(self._layers), self.context, self._cache_kind
            )
        assert len(cache.layers) == len(self._layers)
        self._sessions[session] = cache

    def release(self, session: int) -> SessionCache:
        """Forget a session and return its cache. Raises WireError when it is not open."""
        self._session(session)
        return self._sessions.pop(session)

    def length(self, session: int) -> int:
        """Return how many positions the session holds. Raises WireError when it is not open."""
        return self._session(session).length

    def truncate(self, session: int, length: int) -> None:
        """Forget the positions from ``length`` on. Raises WireError beyond the session's end."""
        cache = self._session(session)
        if not 0 <= length <= cache.length:
            raise WireError(f"session {session} holds {cache.length} positions, not {length}")
        cache.length = length

    def close(self, session: int) -> None:
        """Free a session's memory. Raises WireError when it is not open."""
        self.release(session)

    def forward(self, session: int, hidden: HiddenRows, position: int) -> HiddenRows:
        """Compute the span for T tokens that follow what the session holds.

        ``hidden``: the span's input, [T, width], T at least 1; ``position`` must equal
        ``length(session)``. Returns its output, [T, width]. How a prompt is cut into calls does
        not change the result. Raises WireError for a step that does not fit the session or the
        model, NonFiniteError where a number leaves its range; the session is then as before.
        """
        cache = self._session(session)
        count = self._check_step(session, cache.length, hidden, position)
        pieces = []
        for first in range(0, count, CHUNK_TOKENS_MAX):
            piece = take_rows(hidden, first, min(first + CHUNK_TOKENS_MAX, count))
            pieces.append(self._forward_piece(cache, piece, position + first))
        cache.length = position + count
        return join_rows(pieces)

    def _forward_piece(self, cache: SessionCache, hidden: HiddenRows, position: int) -> HiddenRows:
        turns = [table.rows(position, len(hidden.exponents)) for table in self._turns]
        with finite(f"layers {self.span.first} to {self.span.past - 1}"):
            if self._program is not None:
                return self._program.run(hidden, turns, cache.layers, position)
            layers = range(self.span.first, self.span.past)
            for layer, weights, cached in zip(layers, self._layers, cache.layers, strict=True):
                step = layer, weights, cached, hidden, turns, position
                hidden = decode_layer(self._kernels, self._config, *step)
        return hidden

    def _recorded(self) -> Program | None:
        """Return all layers as one program, None where the kernels run verb by verb."""
        config = self._config
        recording = self._kernels.record(
            CHUNK_TOKENS_MAX, config.width, config.head_width, self._cache_kind
        )
        if recording is None:
            return None
        hidden = recording.hidden
        turns = [recording.turns(number) for number in range(len(self._turns))]
        try:
            for number, weights in enumerate(self._layers):
                step = self.span.first + number, weights, recording.cache(number), hidden, turns, 0
                hidden = decode_layer(recording, config, *step)
        except Unrecordable:
            return None
        return recording.finish(hidden)

    def _session(self, session: int) -> SessionCache:
        cache = self._sessions.get(session)
        if cache is None:
            raise WireError(f"session {session} is not open on this stage")
        return cache

    def _check_step(self, session: int, length: int, hidden: HiddenRows, position: int) -> int:
        """Return how many tokens a step has, once it fits session and model."""
        check_hidden(hidden, self._config.width)
        count = len(hidden.exponents)
        if position != length:
            raise WireError(f"session {session} stands at position {length}, not {position}")
        if position + count > self.context:
            raise WireError(
                f"session {session} cannot hold {position + count} positions, "
                f"its context is {self.context}"
            )
        return count
