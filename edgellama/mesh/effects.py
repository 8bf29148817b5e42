"""What the mesh wants done: it decides, the node carries out and reports back."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellama_kernels import HiddenRows

from edgellama.link.endpoint import Priority
from edgellama.wire.messages import Relayed, encode

if TYPE_CHECKING:
    from edgellama.errors import EdgellamaError
    from edgellama.mesh.transfer_pace import DecodeDelay
    from edgellama.values import Address, ModelFacts, NodeId, Plan, SamplingSettings, Span
    from edgellama.wire.key_messages import Forget, InviteQuery, NewKey
    from edgellama.wire.messages import Ask, Conversation, Message


@dataclass(frozen=True)
class Send:
    """Send a message to a connected peer; one that is not connected any more gets nothing."""

    node: NodeId
    message: Message
    priority: Priority


@dataclass(frozen=True)
class Dial:
    """Try to connect to a member at this address."""

    address: Address


@dataclass(frozen=True)
class HangUp:
    """End the link to a member that is not heard any more; what ``Disconnected`` says is done."""

    node: NodeId


@dataclass(frozen=True)
class LoadPlan:
    """Load this node's span of the plan; report with ``plan_loaded`` or ``plan_failed``."""

    plan: Plan
    facts: ModelFacts


@dataclass(frozen=True)
class DropEpochsBefore:
    """No step below this epoch will be computed again: free what only they need."""

    epoch: int


@dataclass(frozen=True)
class ToAsker:
    """An answer's message for the asker in this very process."""

    message: Message


@dataclass(frozen=True)
class Tell:
    """A line that a person would want to know: joined, left, replanned."""

    text: str


@dataclass(frozen=True)
class TokenCame:
    """A token has gone round the ring; weights on their way shall not make the next one slower."""

    delay: DecodeDelay


@dataclass(frozen=True)
class StoreConversation:
    """Bring the record of a session to the disk, in the place of an older one."""

    conversation: Conversation


@dataclass(frozen=True)
class RemoveConversation:
    """Remove the record of a session from the disk, if there is one."""

    name: str


@dataclass(frozen=True)
class Administer:
    """Somebody of the mesh asks about its key: to let a device in, or to forget one."""

    asker: NodeId
    message: InviteQuery | Forget | NewKey


@dataclass(frozen=True)
class GiveUp:
    """This node cannot go on in this mesh; the error says why."""

    error: EdgellamaError


@dataclass(frozen=True)
class HandedOver:
    """Nothing waits for this node any more, or it has waited long enough: it may leave."""


@dataclass(frozen=True)
class TokenizeJob:
    """Turn what is asked into tokens that leave room in ``context``; the result is PromptTokens."""

    session: int
    ask: Ask
    context: int


@dataclass(frozen=True)
class StageJob:
    """Compute this node's layers for the positions from ``position`` on.

    Home gives ``tokens`` to embed, every other stage ``hidden`` rows. The result is HiddenRows.
    """

    epoch: int
    session: int
    position: int
    tokens: tuple[int, ...] = ()
    hidden: HiddenRows | None = None

    @property
    def count(self) -> int:
        """How many positions the job computes."""
        return len(self.tokens) if self.hidden is None else len(self.hidden.exponents)


@dataclass(frozen=True)
class OpenJob:
    """Go on with an answer under this epoch, with what is kept of its KV cache.

    ``key`` names the answer under every epoch; of a cache longer than ``length`` the rest is not
    used. The result is, for each layer of the span, how many positions it holds. Where nothing is
    kept, the first ``shared`` positions of the answer ``continues`` serve.
    """

    epoch: int
    session: int
    key: int
    length: int
    continues: int = 0
    shared: int = 0


@dataclass(frozen=True)
class FillJob:
    """Compute the layers ``span`` for positions that the session as a whole has behind it.

    Home gives ``tokens`` to embed where the span begins with the first layer, or is empty there;
    else ``hidden`` are the rows before layer ``span.first``. The result is HiddenRows: those
    before layer ``span.past``. What a layer holds already is written again with the same bits.
    """

    epoch: int
    session: int
    span: Span
    position: int
    tokens: tuple[int, ...] = ()
    hidden: HiddenRows | None = None

    @property
    def count(self) -> int:
        """How many positions the job computes."""
        return len(self.tokens) if self.hidden is None else len(self.hidden.exponents)


@dataclass(frozen=True)
class ForgetJob:
    """Free what is kept of an answer that nobody goes on with; the result is None."""

    key: int


@dataclass(frozen=True)
class HeadJob:
    """Make the token that stands at ``position`` from the row before it; the result is its id."""

    epoch: int
    session: int
    position: int
    hidden: HiddenRows  # the last row alone
    sampling: SamplingSettings
    recent: tuple[int, ...]


@dataclass(frozen=True)
class ScoreJob:
    """Say how well each row from ``position`` on foretells its target; gives Likelihoods."""

    epoch: int
    session: int
    position: int
    hidden: HiddenRows
    targets: tuple[int, ...]


@dataclass(frozen=True)
class CloseJob:
    """Free the session's KV cache, or ``keep`` it under its key; the result is None."""

    epoch: int
    session: int
    keep: bool = False


@dataclass(frozen=True)
class PromptTokens:
    """What a model reads of a question; see ``Piece``."""

    tokens: tuple[int, ...]
    turns_kept: int
    is_templated: bool


@dataclass(frozen=True)
class Likelihoods:
    """Of each target the negative logarithm of its probability, in nats."""

    nlls: tuple[float, ...]


Job = TokenizeJob | OpenJob | FillJob | StageJob | HeadJob | ScoreJob | CloseJob | ForgetJob


@dataclass(frozen=True)
class Run:
    """Run a job on the compute thread; report with ``job_done``."""

    job: Job


Effect = (
    Send
    | Dial
    | HangUp
    | LoadPlan
    | DropEpochsBefore
    | ToAsker
    | Tell
    | TokenCame
    | StoreConversation
    | RemoveConversation
    | Administer
    | GiveUp
    | HandedOver
    | Run
)

JobResult = PromptTokens | tuple[int, ...] | Likelihoods | HiddenRows | int | None


class Outbox:
    """The effects that the parts of one node want, in their order.

    ``routes`` holds, for each member that can only be reached by way of another, that other one.
    """

    def __init__(self, me: NodeId = "") -> None:
        self.routes: dict[NodeId, NodeId] = {}
        self._me = me
        self._effects: deque[Effect] = deque()

    def put(self, effect: Effect) -> None:
        """Add an effect."""
        self._effects.append(effect)

    def send(self, node: NodeId, message: Message, priority: Priority = Priority.CONTROL) -> None:
        """Add a message to a peer, by way of another member where there is no link to it."""
        by = self.routes.get(node)
        if by is not None:
            node, message = by, Relayed(self._me, node, encode(message))
        self._effects.append(Send(node, message, priority))

    def drain(self) -> list[Effect]:
        """Return what has gathered, and forget it."""
        effects = list(self._effects)
        self._effects.clear()
        return effects
