"""A guest that asks many members at once, each one directly."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, TypeVar

from edgellama.errors import WireError
from edgellama.link.endpoint import Connected, DialFailed, MessageReceived, Priority
from edgellama.node.guest import Guest
from edgellama.wire.measurement_messages import MeterQuery, MeterReply
from edgellama.wire.messages import StatusQuery, StatusReply, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellama.values import Address, NodeId

REACH_WAIT_S: Final = 4.0  # a dial's own time is three and a half
REPLY_WAIT_S: Final = 2.0
ADDRESSES_MAX: Final = 256  # as many links as an endpoint keeps

Reply = TypeVar("Reply", StatusReply, MeterReply)


@dataclass(frozen=True)
class Knock:
    """What came of knocking at an address: who opened, or why nobody did."""

    node: NodeId | None
    refusal: str = "no answer"


class Survey(Guest):
    """Knocks at addresses and asks whoever opens."""

    def reach(
        self, addresses: Iterable[Address], wait_s: float = REACH_WAIT_S
    ) -> dict[Address, Knock]:
        """Return what comes of each address within ``wait_s``, ADDRESSES_MAX of them at most."""
        found = dict.fromkeys([*addresses][:ADDRESSES_MAX], Knock(None))
        for address in found:
            self._dial(address)
        waiting = set(found)
        deadline = time.monotonic() + wait_s
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            try:
                event = self._next_event(left_s)
            except Empty:
                break
            if isinstance(event, Connected) and not event.identity.guest:
                found[event.address] = Knock(event.identity.node)
                waiting.discard(event.address)
            elif isinstance(event, DialFailed):
                found[event.address] = Knock(None, event.reason)
                waiting.discard(event.address)
        return found

    def meters(self, wait_s: float = REPLY_WAIT_S) -> dict[NodeId, MeterReply]:
        """Return what all members that were reached have counted; the silent ones are missing."""
        return self.replies(MeterQuery(secrets.randbits(64)), MeterReply, wait_s)

    def replies(
        self, query: StatusQuery | MeterQuery, kind: type[Reply], wait_s: float = REPLY_WAIT_S
    ) -> dict[NodeId, Reply]:
        """Ask all members that were reached; the silent ones are missing."""
        data = encode(query)
        asked = set(self._members)

        def send(now: float) -> None:
            for node in asked & self._links.peers().keys():
                self._links.send(node, data, Priority.CONTROL, now)

        self._driver.post(send)
        replies: dict[NodeId, Reply] = {}
        deadline = time.monotonic() + wait_s
        while asked - replies.keys() and (left_s := deadline - time.monotonic()) > 0:
            try:
                event = self._next_event(left_s)
            except Empty:
                break
            if not isinstance(event, MessageReceived):
                asked &= set(self._members)
                continue
            try:
                message = decode(event.message)
            except WireError:
                continue  # another release's: it counts as silent
            if isinstance(message, kind) and message.request == query.request:
                replies[event.node] = message
        return replies

    def round_trips_s(self) -> dict[NodeId, float]:
        """Return the round trip to each member that is connected, where it is measured."""
        answer: SimpleQueue[dict[NodeId, float]] = SimpleQueue()

        def look(_: float) -> None:
            peers = self._links.peers().items()
            answer.put({n: p.round_trip_s for n, p in peers if p.round_trip_s is not None})

        self._driver.post(look)
        try:
            return answer.get(timeout=REPLY_WAIT_S)
        except Empty:
            return {}
