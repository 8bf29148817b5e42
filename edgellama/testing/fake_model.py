"""A model made of hashes: cheap, and any mistake in how it is computed changes its tokens.

A row depends on its layer, its position and all that the layer saw before; a layer that is
applied twice, left out or out of order, a wrong position and a lost KV cache all give other
rows, so other tokens. ``expected_answer`` computes the same without any mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b, shake_128
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from edgellama_kernels import CacheLayer, HiddenRows

from edgellama.errors import WireError
from edgellama.model.cache import SessionCache
from edgellama.model.conversation import continued, fitting
from edgellama.model.perplexity import negative_log_likelihoods
from edgellama.model.sampling import sample
from edgellama.node.engine import Engine
from edgellama.node.epoch_stage import EpochStage
from edgellama.values import ModelFacts, NodeId, Plan, Span, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellama.wire.messages import Ask

WIDTH: Final = 64
VOCABULARY: Final = 61
END_TOKEN: Final = 0
FIRST_TOKEN: Final = 1  # stands before every prompt
CONTEXT_MAX: Final = 512

LAYER_BYTES: Final = 1_000
HOME_BYTES: Final = 500
SCRATCH_BYTES: Final = 100
KV_BYTES_PER_TOKEN: Final = 1

_DIGEST_BYTES: Final = 16
_FINITE_BITS: Final = 0x3FFF  # an fp16 number below 2: no infinity, no NaN


@dataclass(frozen=True)
class FakeModel:
    """A model by its name and its number of layers; others' rows differ from its rows."""

    name: str = "hashes"
    layers: int = 12

    @property
    def facts(self) -> ModelFacts:
        """What planners and people know of it."""
        return ModelFacts(
            blake2b(self.name.encode(), digest_size=32).hexdigest(),
            self.name,
            self.layers * LAYER_BYTES + HOME_BYTES,
            WIDTH,
            CONTEXT_MAX,
            (LAYER_BYTES,) * self.layers,
            HOME_BYTES,
            KV_BYTES_PER_TOKEN,
            SCRATCH_BYTES,
            KV_BYTES_PER_TOKEN,
        )


def ram_bytes(layers: float, *, sessions_max: int = 2, context: int = CONTEXT_MAX) -> int:
    """Return an offer that is enough for so many layers, and for home besides."""
    layer = LAYER_BYTES + KV_BYTES_PER_TOKEN * context * sessions_max
    return HOME_BYTES + SCRATCH_BYTES + int(layers * layer)


def _digest(*parts: object) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=_DIGEST_BYTES).digest()


def _row(digest: bytes) -> tuple[NDArray[np.uint16], int]:
    """Return a row's fp16 bits [WIDTH] and its exponent; the row repeats, so lz4 shortens it."""
    halves = np.frombuffer(digest, "<u2").astype(np.uint16) & np.uint16(_FINITE_BITS)
    return np.tile(halves, WIDTH // len(halves)), digest[0] % 16


def _rows(digests: Sequence[bytes]) -> HiddenRows:
    rows = [_row(digest) for digest in digests]
    return HiddenRows(
        np.array([halves for halves, _ in rows], np.uint16).reshape(len(rows), WIDTH),
        np.array([exponent for _, exponent in rows], np.uint8),
    )


class FakeHead:
    """The embedding and the output head."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def embed(self, token_ids: Sequence[int]) -> HiddenRows:
        """Return a row for every token."""
        return _rows([_digest(self._model.name, "embed", token) for token in token_ids])

    def logits(self, hidden: HiddenRows) -> NDArray[np.float32]:
        """Return the logits [T, VOCABULARY], from -4 to 4."""
        return np.stack([self._row_logits(hidden, row) for row in range(len(hidden.exponents))])

    def _row_logits(self, hidden: HiddenRows, row: int) -> NDArray[np.float32]:
        known = (self._model.name, hidden.halves[row].tobytes(), int(hidden.exponents[row]))
        noise = np.frombuffer(shake_128(repr(known).encode()).digest(2 * VOCABULARY), "<u2")
        return noise.astype(np.float32) / np.float32(8192) - np.float32(4)


class FakeStage:
    """Layers ``span``; a layer's cache is a digest of all that it has seen, for every position.

    Refuses what a Stage refuses.
    """

    def __init__(self, model: FakeModel, span: Span, context: int, sessions_max: int) -> None:
        self._model, self._span = model, span
        self._context, self._sessions_max = context, sessions_max
        self._sessions: dict[int, SessionCache] = {}

    def open(self, session: int, cache: SessionCache | None = None) -> None:
        """Begin a session, or go on with a cache."""
        if session in self._sessions:
            raise WireError(f"session {session} is already open on this stage")
        if len(self._sessions) >= self._sessions_max:
            raise WireError(f"this stage already holds {self._sessions_max} sessions, its maximum")
        if cache is None:
            cache = SessionCache(tuple(empty_cache() for _ in range(self._span.layers)))
        assert len(cache.layers) == self._span.layers
        self._sessions[session] = cache

    def release(self, session: int) -> SessionCache:
        """Forget a session and return its cache."""
        return self._sessions.pop(session)

    def forward(self, session: int, hidden: HiddenRows, position: int) -> HiddenRows:
        """Return the rows after the span's layers."""
        known = self._sessions.get(session)
        if known is None:
            raise WireError(f"session {session} is not open on this stage")
        if position != known.length:
            raise WireError(f"session {session} stands at {known.length}, not {position}")
        if position + len(hidden.exponents) > self._context:
            raise WireError(f"session {session} would outgrow its context of {self._context}")
        assert hidden.halves.shape == (len(hidden.exponents), WIDTH)
        for index, layer in enumerate(range(*self._span)):
            seen: list[bytes] = cast("Any", known.layers[index])
            hidden = self._layer(seen, layer, hidden, position)
        known.length = position + len(hidden.exponents)
        return hidden

    def _layer(
        self, seen: list[bytes], layer: int, hidden: HiddenRows, position: int
    ) -> HiddenRows:
        """Compute one layer; ``seen[p]`` is what it remembers of the positions up to ``p``."""
        digests = []
        for row in range(len(hidden.exponents)):
            at = position + row
            given = hidden.halves[row].tobytes(), int(hidden.exponents[row]), at
            before = seen[at - 1] if at else b""
            digests.append(_digest(self._model.name, layer, before, given))
            seen[at : at + 1] = digests[-1:]
        return _rows(digests)


def empty_cache() -> CacheLayer:
    """Return what a layer of hashes remembers at first."""
    return cast("Any", [])  # type: ignore[no-any-return]


class FakeStream:
    """Text of tokens: every fifth token's text comes with the next one's, as split UTF-8 does."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token_id: int) -> str:
        """Return the text that the token completes."""
        text = f"{self._held}<{token_id}>"
        self._held = text if token_id % 5 == 0 else ""
        return "" if self._held else text

    def finish(self) -> str:
        """Return what is left."""
        held, self._held = self._held, ""
        return held


class FakeTokenizer:
    """A token for every byte of the text."""

    end_tokens = frozenset({END_TOKEN})

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        return [FIRST_TOKEN, *(1 + byte % (VOCABULARY - 1) for byte in text.encode())]

    def stream(self) -> FakeStream:
        """Return a decoder for one answer."""
        return FakeStream()


class FakeEngine(Engine):
    """The production engine, with hashes for its stages and its head."""

    def __init__(self) -> None:
        super().__init__(cast("Any", None))

    def install_span(self, model: FakeModel, plan: Plan, node: NodeId) -> None:
        """Make ready to compute the node's span under the plan."""
        stage = plan.stage_of(node)
        assert stage is not None
        span = plan.stages[stage].span
        if span.layers:

            def build(part: Span) -> Any:
                return FakeStage(model, part, plan.context, plan.sessions_max)

            self._stages.setdefault(plan.epoch, EpochStage(plan, span, build, empty_cache))
        if stage == 0:
            self._heads[plan.epoch] = cast("Any", FakeHead(model))
            self._tokenizer = cast("Any", FakeTokenizer())

    def sessions_held(self) -> list[tuple[int, int]]:
        """Return (epoch, session) of every KV cache in use."""
        return [(epoch, each) for epoch, stage in self._stages.items() for each in stage.sessions()]

    def answers_kept(self) -> set[int]:
        """Return the keys of the answers whose KV caches are kept."""
        return set(self._kept.answers())


def expected_nlls(model: FakeModel, ask: Ask) -> tuple[float, ...]:
    """Score a text with all layers at one place."""
    stage, head = FakeStage(model, Span(0, model.layers), CONTEXT_MAX, 1), FakeHead(model)
    stage.open(0)
    hidden = stage.forward(0, head.embed(ask.tokens[:-1]), 0)
    logits = head.logits(hidden)[ask.scored_from :]
    nlls = negative_log_likelihoods(logits, ask.tokens[ask.scored_from + 1 :])
    return tuple(nlls.tolist())


@dataclass(frozen=True)
class ExpectedAnswer:
    """What any mesh must answer."""

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    reason: str


def _prompt_of(tokenizer: FakeTokenizer, ask: Ask, context: int) -> tuple[int, ...]:
    def tokens_of(history: Sequence[Turn]) -> list[int]:
        return tokenizer.encode(continued(history, ask.prompt))

    return tuple(fitting(tokens_of, ask.history, context, ask.tokens_max)[0])


def expected_answer(model: FakeModel, ask: Ask, context: int = CONTEXT_MAX) -> ExpectedAnswer:
    """Compute an answer token by token with all layers at one place: the oracle."""
    head = FakeHead(model)
    stage = FakeStage(model, Span(0, model.layers), context, 1)
    tokenizer = FakeTokenizer()
    stage.open(0)
    stream = tokenizer.stream()
    prompt = _prompt_of(tokenizer, ask, context)
    tokens: list[int] = []
    text = ""
    reason = "length"
    position, due = 0, prompt
    while len(tokens) < ask.tokens_max and len(prompt) + len(tokens) < context:
        hidden = stage.forward(0, head.embed(due), position)
        position += len(due)
        recent = (*prompt, *tokens)[max(0, position - ask.sampling.repeat_window) :]
        token = sample(head.logits(hidden)[-1], ask.sampling, position, recent)
        if token == END_TOKEN and not ask.ignore_end:
            reason = "stop"
            break
        tokens.append(token)
        text += stream.push(token)
        due = (token,)
    return ExpectedAnswer(prompt, tuple(tokens), text + stream.finish(), reason)
