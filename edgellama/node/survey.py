"""A guest that asks many members at once, each one directly."""

from __future__ import annotations

import secrets
import time
from queue import Empty
from typing import TYPE_CHECKING, Final

from edgellama.errors import WireError
from edgellama.link.endpoint import Connected, DialFailed, MessageReceived, Priority
from edgellama.node.guest import Guest
from edgellama.wire.measurement_messages import MeterQuery, MeterReply
from edgellama.wire.messages import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellama.values import Address, NodeId

REACH_WAIT_S: Final = 4.0  # a dial's own time is three and a half
REPLY_WAIT_S: Final = 2.0
ADDRESSES_MAX: Final = 256  # as many links as an endpoint keeps


class Survey(Guest):
    """Knocks at addresses and asks whoever opens."""

    def reach(
        self, addresses: Iterable[Address], wait_s: float = REACH_WAIT_S
    ) -> dict[Address, NodeId | None]:
        """Return who answers at each address, None where nobody has within ``wait_s``."""
        found: dict[Address, NodeId | None] = dict.fromkeys([*addresses][:ADDRESSES_MAX])
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
                found[event.address] = event.identity.node
                waiting.discard(event.address)
            elif isinstance(event, DialFailed):
                waiting.discard(event.address)
        return found

    def meters(self, wait_s: float = REPLY_WAIT_S) -> dict[NodeId, MeterReply]:
        """Return what all members that were reached have counted; the silent ones are missing."""
        query = MeterQuery(secrets.randbits(64))
        data = encode(query)
        asked = set(self._members)

        def send(now: float) -> None:
            for node in asked & self._endpoint.peers().keys():
                self._endpoint.send(node, data, Priority.CONTROL, now)

        self._driver.post(send)
        replies: dict[NodeId, MeterReply] = {}
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
            if isinstance(message, MeterReply) and message.request == query.request:
                replies[event.node] = message
        return replies
