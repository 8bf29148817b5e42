"""What home keeps of one answer, and what it needs of a tokenizer for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

from edgellama.values import LinkCounters, NodeId

if TYPE_CHECKING:
    from edgellama.wire.messages import Ask

TOKENIZING, QUEUED, RUNNING, CLOSING = "tokenizing", "queued", "running", "closing"


class TextStream(Protocol):
    """Turns tokens into text as they come; holds back incomplete UTF-8."""

    def push(self, token_id: int) -> str:
        """Return the text that this token completes."""

    def finish(self) -> str:
        """Return what is left at the end."""


class Vocabulary(Protocol):
    """What home needs of a tokenizer while tokens flow."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""

    def stream(self) -> TextStream:
        """Return a decoder for one answer."""


@dataclass
class Session:
    """One answer that home is working on."""

    id: int  # names the session's steps under one epoch; a session begun again gets another
    ask: Ask
    gateway: NodeId
    gateway_lost_at: float | None = None
    state: str = TOKENIZING
    prompt: tuple[int, ...] = ()
    is_templated: bool = False
    generated: list[int] = field(default_factory=list)
    stream: TextStream | None = None
    nlls: dict[int, tuple[float, ...]] = field(default_factory=dict)  # by the first one's position
    fed: int = 0  # positions given to the ring
    fed_at: float = 0.0  # when the last of them were
    continues: int = 0  # the key of an ended answer whose first ``shared`` positions serve
    shared: int = 0
    keeps: bool = True  # what was computed is kept when it ends
    resumed_at: int = 0  # what came before this position an earlier epoch has computed
    returned: dict[int, int] = field(default_factory=dict)  # position -> count, chunks under way
    has_been_told_to_wait: bool = False
    started_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    reason: str = ""  # why the answer ended; empty when nobody waits for its end, or it is told
    close_by: float = 0.0  # when its end is told at the latest
    closing: set[NodeId] = field(default_factory=set)  # stages that have not answered yet
    counters: LinkCounters = field(default_factory=LinkCounters)

    @property
    def known(self) -> int:
        """How many tokens are known, the prompt's and the answer's."""
        return len(self.prompt) + len(self.generated)

    def key(self, model_root: str) -> int:
        """Return what names the answer under every epoch, whoever is home: never 0.

        It follows from all that the tokens follow from, so what a device has kept under this name
        is of these very tokens.
        """
        named = repr((self.ask.request, self.ask.sampling, self.prompt, model_root))
        return int.from_bytes(blake2b(named.encode(), digest_size=8).digest(), "big") or 1

    @property
    def due(self) -> int:
        """How many positions have to go round: of a text that is scored all but the last."""
        return self.known - 1 if self.ask.scored_from else self.known

    def wanted(self, first: int, past: int) -> int:
        """Return how many rows of the positions from ``first`` up to ``past`` shall come back."""
        if self.ask.scored_from:
            return max(0, past - max(first, self.ask.scored_from))
        return 1 if past == self.due else 0

    def is_full(self, context: int) -> bool:
        """Return whether the answer can have no further token."""
        return len(self.generated) >= self.ask.tokens_max or self.known >= context

    def tokens(self, first: int, past: int) -> tuple[int, ...]:
        """Return the known tokens from position ``first`` up to ``past``."""
        return (*self.prompt, *self.generated)[first:past]
