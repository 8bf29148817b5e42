"""The sending half of messages: what waits, in strict order of priority, and what is under way."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from edgellama.link.reassembly import (
    LARGE_FRAGMENTS_MIN,
    LARGE_MESSAGES_MAX,
    STARTED_MESSAGES_MAX,
)
from edgellama.wire.frames import (
    FRAGMENT_HEADER_BYTES,
    MESSAGE_ID_MAX,
    Priority,
    fragment_bytes,
    fragment_count,
    pack_fragment,
)

SMALL_FRAGMENTS_MAX = 8
"""Up to so many fragments a message is small: a probe repeats all of it at once."""

QUEUED_BYTES_MAX = 256 << 20
QUEUED_MESSAGES_MAX = 65536
"""Beyond these the peer takes messages too slowly to be of use, and the connection ends."""

WAITING = -1  # carrier of a fragment that waits to be sent
ARRIVED = -2  # carrier of a fragment that was acknowledged


class OutgoingMessage:
    """A message until every fragment of it has been acknowledged."""

    __slots__ = (
        "carriers",
        "data",
        "fragment_bytes",
        "message_id",
        "next_index",
        "priority",
        "unacknowledged",
    )

    def __init__(self, data: bytes, priority: Priority) -> None:
        count = fragment_count(len(data))
        self.data = data
        self.priority = int(priority)
        self.fragment_bytes = fragment_bytes(len(data), count)
        self.unacknowledged = count
        self.message_id = WAITING  # given when the first fragment leaves
        self.next_index = 0  # the first fragment that was never sent
        # For each fragment the latest packet that carries it, or WAITING or ARRIVED.
        self.carriers = [WAITING] * count

    @property
    def small(self) -> bool:
        """Whether a probe repeats the whole message."""
        return len(self.carriers) <= SMALL_FRAGMENTS_MAX

    @property
    def large(self) -> bool:
        """Whether the message counts as large on the receiver's side."""
        return len(self.carriers) >= LARGE_FRAGMENTS_MIN


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
        self._next_message_id = 0
        self._started = 0
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

    def push(self, data: bytes, priority: Priority) -> None:
        """Queue a message."""
        self._fresh[priority].append(OutgoingMessage(data, priority))
        self.unfinished += 1
        self.queued_bytes += len(data)

    def next(self, lowest: Priority) -> Piece | None:
        """Return the next fragment of that priority or a more urgent one; ``take`` takes it."""
        for priority in range(lowest + 1):
            again = self._again[priority]
            while again:
                piece = again[0]
                if piece.message.carriers[piece.fragment_index] == WAITING:
                    return piece
                again.popleft()  # arrived after all, or gone out as a probe
            fresh = self._fresh[priority]
            if fresh and (fresh[0].message_id >= 0 or self._may_start(fresh[0])):
                return Piece(fresh[0], fresh[0].next_index)
        return None

    def _may_start(self, message: OutgoingMessage) -> bool:
        if self._started >= STARTED_MESSAGES_MAX:
            return False
        return not message.large or self._large_started < LARGE_MESSAGES_MAX

    def take(self, piece: Piece, packet_number: int) -> bool:
        """Note that a fragment leaves in a packet; return whether it was sent before."""
        message, index = piece
        message.carriers[index] = packet_number
        if index < message.next_index:
            return True
        fresh = self._fresh[message.priority]
        if index == 0:
            message.message_id = self._next_message_id
            self._next_message_id += 1
            self._started += 1
            self._large_started += message.large
        message.next_index += 1
        if message.next_index == len(message.carriers):
            fresh.popleft()
        return False

    def arrived(self, piece: Piece) -> None:
        """Note that some packet with this fragment was acknowledged."""
        message, index = piece
        if message.carriers[index] == ARRIVED:
            return
        message.carriers[index] = ARRIVED
        message.unacknowledged -= 1
        if not message.unacknowledged:
            self._started -= 1
            self._large_started -= message.large
            self.unfinished -= 1
            self.queued_bytes -= len(message.data)

    def lost(self, piece: Piece, packet_number: int) -> bool:
        """Queue a lost packet's fragment again, unless a later packet carries it or it arrived."""
        message, index = piece
        if message.carriers[index] != packet_number:
            return False
        message.carriers[index] = WAITING
        self._again[message.priority].append(piece)
        return True
