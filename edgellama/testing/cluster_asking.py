"""Whoever asks a simulated mesh: a guest of one of its devices, and an answer as it comes in."""

from __future__ import annotations

from dataclasses import dataclass, field
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
)

if TYPE_CHECKING:
    from edgellama.testing.cluster_node import ClusterNode

MESH_KEY: Final = b"simulated mesh"


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
                raise ClusterError(f"{message} after the answer's end")
            for due in self.order.accept(message):
                self.text += due.text
                if isinstance(due, Finished):
                    self.finished = due


class ClusterGuest:
    """An asker that is no member: what ``Guest`` is, in virtual time."""

    def __init__(self, network: SimulatedNetwork, number: int, gateway: ClusterNode) -> None:
        identity = Identity(f"{(1 << 120) + number:032x}", 1, guest=True)
        address = Address(f"10.0.1.{number}", 40_000)
        self.host = SimulatedHost(network, identity, address, MESH_KEY)
        self.host.handler = self
        self.gateway = gateway
        self.answers: dict[int, Answer] = {}
        self.statuses: list[StatusReply] = []
        self._unsent: list[Message] = []
        self.host.act(lambda now: self.host.endpoint.dial(gateway.address, now))

    def ask(self, ask: Ask) -> Answer:
        """Ask as soon as the gateway is reached."""
        answer = self.answers[ask.request] = Answer(ask)
        self._say(ask)
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
            for message in self._unsent:
                self.host.endpoint.send(self.gateway.node, encode(message), Priority.CONTROL, now)
            self._unsent.clear()
        elif isinstance(event, DialFailed):
            self.host.endpoint.dial(self.gateway.address, now)
        elif isinstance(event, Disconnected):
            for answer in self.answers.values():
                answer.abandoned = True
        elif isinstance(event, MessageReceived):
            self._receive(decode(event.message))

    def next_timer(self) -> float | None:
        """Return None: a guest has no timers."""
        return None

    def handle_timer(self, now: float) -> None:
        """Do nothing."""

    def _say(self, message: Message) -> None:
        if self.gateway.node not in self.host.endpoint.peers():
            self._unsent.append(message)
            return
        node, data = self.gateway.node, encode(message)
        self.host.act(lambda now: self.host.endpoint.send(node, data, Priority.CONTROL, now))

    def _receive(self, message: Message) -> None:
        if isinstance(message, StatusReply):
            self.statuses.append(message)
            return
        request = getattr(message, "request", None)
        assert request is not None, message
        self.answers[request].take(message)
