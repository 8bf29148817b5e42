"""The sending half of messages: what waits, in strict order of priority, and what is under way."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from edgellama.link.reassembly import (
    LARGE_BYTES_MIN,
    LARGE_MESSAGES_MAX,
    STARTED_MESSAGES_MAX,
)
from edgellama.wire.frames import (
    FRAGMENT_BYTES_BASE,
    FRAGMENT_HEADER_BYTES,
    MESSAGE_ID_MAX,
    PARITY_HEADER_BYTES,
    Priority,
    fragment_bytes,
    fragment_count,
    pack_fragment,
    pack_parity,
    parity_of,
)

SMALL_BYTES_MAX = 8 * FRAGMENT_BYTES_BASE
"""Up to so many bytes a message is small: a few packets, which a probe repeats all at once."""

QUEUED_BYTES_MAX = 256 << 20
QUEUED_MESSAGES_MAX = 65536
"""Beyond these the peer takes messages too slowly to be of use, and the connection ends."""

WAITING = -1  # carrier of a fragment that waits to be sent
ARRIVED = -2  # carrier of a fragment that was acknowledged


class OutgoingMessage:
    """A message until every fragment of it has been acknowledged.

    It is cut into fragments when the first of them is about to leave, for the path as it then is.
    """

    __slots__ = (
        "carriers",
        "data",
        "fragment_bytes",
        "given_up",
        "message_id",
        "next_index",
        "parity_arrived",
        "priority",
        "unacknowledged",
    )

    def __init__(self, data: bytes, priority: int) -> None:
        self.data = data
        self.priority = priority
        self.message_id = WAITING  # given when the first fragment leaves
        self.next_index = 0  # the first fragment that was never sent
        self.fragment_bytes = 0
        self.unacknowledged = 0
        # For each fragment the latest packet that carries it, or WAITING or ARRIVED.
        self.carriers: list[int] = []
        self.parity_arrived = False
        self.given_up = False  # this cut of the message was replaced by another

    def cut(self, fragment_bytes_max: int) -> None:
        """Decide how long the fragments are."""
        count = fragment_count(len(self.data), fragment_bytes_max)
        self.fragment_bytes = fragment_bytes(len(self.data), count)
        self.unacknowledged = count
        self.carriers = [WAITING] * count

    @property
    def small(self) -> bool:
        """Whether it is a few packets long."""
        return len(self.data) <= SMALL_BYTES_MAX

    @property
    def large(self) -> bool:
        """Whether the message counts as large on the receiver's side."""
        return len(self.data) >= LARGE_BYTES_MIN

    @property
    def parity_frame_bytes(self) -> int:
        """The length of the parity's frame."""
        return PARITY_HEADER_BYTES + self.fragment_bytes

    def parity_frame(self) -> bytes:
        """Return the frame that makes good any one fragment; the message has its id."""
        data, size = self.data, self.fragment_bytes
        parts = (data[start : start + size] for start in range(0, len(data), size))
        parity = parity_of(parts, size)
        return pack_parity(self.priority, self.message_id, len(self.carriers), len(data), parity)


class Piece(NamedTuple):
    """One fragment of a message that is being sent."""

    message: OutgoingMessage
    fragment_index: int

    @property
    def frame_bytes(self) -> int:
        """The length of the fragment's frame."""
        message, index = self
        size = message.fragment_bytes
        return FRAGMENT_HEADER_BYTES + min(size, len(message.data) - index * size)

    @property
    def last(self) -> bool:
        """Whether it ends its message."""
        return self.fragment_index + 1 == len(self.message.carriers)

    def frame(self) -> bytes:
        """Return the fragment's frame; the message has its id."""
        message, index = self
        data, size = message.data, message.fragment_bytes
        payload = data[index * size : (index + 1) * size]
        count = len(message.carriers)
        return pack_fragment(message.priority, message.message_id, index, count, len(data), payload)


class Outbox:
    """Messages that wait or are under way; gives the next fragment to send."""

    def __init__(self) -> None:
        self._fresh: tuple[deque[OutgoingMessage], ...] = tuple(deque() for _ in Priority)
        self._again: tuple[deque[Piece], ...] = tuple(deque() for _ in Priority)
        self._under_way: dict[int, OutgoingMessage] = {}  # by id: sent in part, not acknowledged
        self._fragment_bytes_max = FRAGMENT_BYTES_BASE
        self._next_message_id = 0
        self._large_started = 0
        self.unfinished = 0  # messages not fully acknowledged
        self.queued_bytes = 0  # their bytes

    @property
    def overfull(self) -> bool:
        """Whether more waits than any useful peer leaves waiting, or no message id is left."""
        return (
            self.queued_bytes > QUEUED_BYTES_MAX
            or self.unfinished > QUEUED_MESSAGES_MAX
            or self._next_message_id > MESSAGE_ID_MAX
        )

    def push(self, data: bytes, priority: int) -> None:
        """Queue a message."""
        self._fresh[priority].append(OutgoingMessage(data, priority))
        self.unfinished += 1
        self.queued_bytes += len(data)

    def fit(self, fragment_bytes_max: int) -> None:
        """Cut messages for a path that takes fragments of so many bytes.

        What is under way in longer fragments is cut anew, under the id that it has, and sent again
        from its beginning: the receiver forgets the fragments of the former cut.
        """
        self._fragment_bytes_max = fragment_bytes_max
        for message_id, message in reversed(list(self._under_way.items())):
            if message.fragment_bytes <= fragment_bytes_max:
                continue
            message.given_up = True
            anew = OutgoingMessage(message.data, message.priority)
            anew.message_id = message_id
            anew.cut(fragment_bytes_max)
            self._under_way[message_id] = anew
            fresh = self._fresh[message.priority]
            if message.next_index < len(message.carriers):
                fresh.remove(message)
            fresh.appendleft(anew)

    def next(self, lowest: int) -> Piece | None:
        """Return the next fragment of that priority or a more urgent one; ``take`` takes it."""
        for priority in range(lowest + 1):
            again = self._again[priority]
            while again:
                piece = again[0]
                message, index = piece
                if message.carriers[index] == WAITING and not message.given_up:
                    return piece
                again.popleft()  # arrived after all, or gone out as a probe
            fresh = self._fresh[priority]
            if fresh:
                message = fresh[0]
                if message.carriers:
                    return Piece(message, message.next_index)
                if self._may_start(message):
                    message.cut(self._fragment_bytes_max)
                    return Piece(message, 0)
        return None

    def _may_start(self, message: OutgoingMessage) -> bool:
        if len(self._under_way) >= STARTED_MESSAGES_MAX:
            return False
        return not message.large or self._large_started < LARGE_MESSAGES_MAX

    def take(self, piece: Piece, packet_number: int) -> bool:
        """Note that a fragment leaves in a packet; return whether it was sent before."""
        message, index = piece
        message.carriers[index] = packet_number
        if index < message.next_index:
            return True
        again = message.message_id >= 0 and not index  # cut anew
        if message.message_id < 0:
            message.message_id = self._next_message_id
            self._under_way[message.message_id] = message
            self._next_message_id += 1
            self._large_started += message.large
        message.next_index += 1
        if message.next_index == len(message.carriers):
            self._fresh[message.priority].popleft()
        return again

    def arrived(self, piece: Piece) -> None:
        """Note that some packet with this fragment was acknowledged."""
        message, index = piece
        if message.carriers[index] == ARRIVED or message.given_up:
            return
        message.carriers[index] = ARRIVED
        message.unacknowledged -= 1
        if message.unacknowledged <= message.parity_arrived:
            self._finish(message)

    def parity_arrived(self, message: OutgoingMessage) -> None:
        """Note that the packet with a message's parity was acknowledged."""
        if message.given_up or not message.unacknowledged:
            return
        message.parity_arrived = True
        if message.unacknowledged <= 1:
            self._finish(message)

    def _finish(self, message: OutgoingMessage) -> None:
        """Forget a message that the receiver has whole, be it by parity."""
        if message.unacknowledged:
            message.carriers = [ARRIVED] * len(message.carriers)
            message.unacknowledged = 0
        del self._under_way[message.message_id]
        self._large_started -= message.large
        self.unfinished -= 1
        self.queued_bytes -= len(message.data)

    def lost(self, piece: Piece, packet_number: int) -> bool:
        """Queue a lost packet's fragment again, unless a later packet carries it or it arrived."""
        message, index = piece
        if message.carriers[index] != packet_number or message.given_up:
            return False
        message.carriers[index] = WAITING
        self._again[message.priority].append(piece)
        return True

    def repeat(self, message: OutgoingMessage) -> None:
        """Queue again whatever of a message is on its way."""
        for index, carrier in enumerate(message.carriers):
            if carrier >= 0 and not message.given_up:
                self.lost(Piece(message, index), carrier)
