"""Whoever asks a simulated mesh: a guest of one of its devices, and an answer as it comes in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.mesh.gateway import GATEWAY_SILENT_S
from edgellama.mesh.ordering import AnswerOrder
from edgellama.testing.network import SimulatedHost, SimulatedNetwork
from edgellama.values import Address
from edgellama.wire.messages import (
    Ask,
    Cancel,
    Failure,
    Finished,
    Message,
    Notice,
    Piece,
    StatusQuery,
    StatusReply,
    decode,
    encode,
    with_turns_kept,
)

if TYPE_CHECKING:
    from edgellama.testing.cluster_node import ClusterNode
    from edgellama.values import NodeId

MESH_KEY: Final = b"simulated mesh"
REDIAL_S: Final = 0.5


class ClusterError(AssertionError):
    """The mesh broke a promise."""


@dataclass
class Answer:
    """One request as its asker sees it."""

    ask: Ask
    order: AnswerOrder = field(init=False)
    text: str = ""
    finished: Finished | None = None
    failure: Failure | None = None
    notices: list[str] = field(default_factory=list)
    cancelled: bool = False
    abandoned: bool = False  # the device that was asked is gone

    def __post_init__(self) -> None:
        """Begin with the tokens that the asker has already."""
        self.order = AnswerOrder(self.ask.tokens)

    def gateway_lost(self) -> None:
        """Go on with what is known at another gateway."""
        self.order = AnswerOrder(self.order.tokens)
        self.ask = replace(self.ask, tokens=self.tokens, attempt=self.ask.attempt + 1)

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that the asker has."""
        return tuple(self.order.tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected."""
        gone = self.cancelled or self.abandoned
        return gone or self.finished is not None or self.failure is not None

    def take(self, message: Message) -> None:
        """Take a message for this request."""
        if isinstance(message, Notice):
            self.notices.append(message.text)
        elif isinstance(message, Failure):
            self.failure = message
        elif isinstance(message, Piece | Finished):
            if self.ended and not self.cancelled:
                self._take_late(message)
                return
            for due in self.order.accept(message):
                self.text += due.text
                if isinstance(due, Piece):
                    # As an asker does: another home shall leave out the same turns.
                    self.ask = with_turns_kept(self.ask, due.turns_kept)
                if isinstance(due, Finished):
                    self.finished = due

    def _take_late(self, message: Piece | Finished) -> None:
        """Take what a gateway that was left says yet, which may only be what is known."""
        if isinstance(message, Finished):
            known = self.finished is None or message.tokens_count == self.finished.tokens_count
        else:
            past = message.index + len(message.tokens)
            known = self.tokens[message.index : past] == message.tokens
        if not known:
            raise ClusterError(f"{message} after the answer's end")


class ClusterGuest:
    """An asker that is no member: what ``MeshAsker`` and ``Guest`` are, in virtual time."""

    def __init__(self, network: SimulatedNetwork, number: int, gateway: ClusterNode) -> None:
        identity = Identity(f"{(1 << 120) + number:032x}", 1, guest=True)
        address = Address(f"10.0.1.{number}", 40_000)
        self.host = SimulatedHost(network, identity, address, MESH_KEY)
        self.host.handler = self
        self.gateway = gateway  # the first one
        self.answers: dict[int, Answer] = {}
        self.statuses: list[StatusReply] = []
        self._asked: NodeId | None = None  # the member that is asked now
        self._members = [gateway.address]
        self._unsent: list[Message] = []
        self._dial_at: float | None = None
        self.host.act(self._dial)

    def ask(self, ask: Ask) -> Answer:
        """Ask as soon as a gateway is reached."""
        answer = self.answers[ask.request] = Answer(ask)
        self._say(ask)
        self.query_status()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Stop an answer."""
        answer.cancelled = True
        self._say(Cancel(answer.ask.request))

    def query_status(self) -> None:
        """Ask how the mesh stands; the replies gather in ``statuses``."""
        self._say(StatusQuery(len(self.statuses)))

    def vanish(self) -> None:
        """Be gone without a word."""
        self.host.crash()
        for answer in self.answers.values():
            answer.abandoned = True

    def handle_event(self, event: Event, now: float) -> None:
        """Take an event of the link."""
        if isinstance(event, Connected):
            self._connected(event.identity.node, now)
        elif isinstance(event, DialFailed) and self._asked is None:
            self._dial_at = now + REDIAL_S
        elif isinstance(event, Disconnected) and event.node == self._asked:
            self._lost(now)
        elif isinstance(event, MessageReceived):
            self._receive(decode(event.message))

    def next_timer(self) -> float | None:
        """Return when the gateway will have been silent for too long, or is dialled again."""
        if self._asked is None:
            return self._dial_at
        peer = self.host.endpoint.peers().get(self._asked)
        return peer.silent_since + GATEWAY_SILENT_S if peer and self._is_waiting() else None

    def handle_timer(self, now: float) -> None:
        """Give up a silent gateway, or dial again."""
        if self._asked is None:
            self._dial(now)
        else:
            self.host.endpoint.give_up(self._asked, now)
            self._lost(now)

    def _is_waiting(self) -> bool:
        return any(not answer.ended for answer in self.answers.values())

    def _dial(self, now: float) -> None:
        self._dial_at = None
        for address in self._members:
            self.host.endpoint.dial(address, now)

    def _lost(self, now: float) -> None:
        """Look for another gateway, and ask it what has not been answered."""
        self._asked = None
        self._unsent = [each for each in self._unsent if isinstance(each, Cancel)]
        for answer in self.answers.values():
            if not answer.ended:
                answer.gateway_lost()
                self._unsent.append(answer.ask)
        self._dial(now)

    def _connected(self, node: NodeId, now: float) -> None:
        if self._asked is not None:
            return
        self._asked = node
        for message in [*self._unsent, StatusQuery(len(self.statuses))]:
            self.host.endpoint.send(node, encode(message), Priority.CONTROL, now)
        self._unsent.clear()

    def _say(self, message: Message) -> None:
        node = self._asked
        if node is None:
            self._unsent.append(message)
            return
        data = encode(message)
        self.host.act(lambda now: self.host.endpoint.send(node, data, Priority.CONTROL, now))

    def _receive(self, message: Message) -> None:
        if isinstance(message, StatusReply):
            self.statuses.append(message)
            records = [member.record for member in message.members]
            self._members = [Address(each.host, each.port) for each in records]
            return
        request = getattr(message, "request", None)
        if request is not None:
            self.answers[request].take(message)
