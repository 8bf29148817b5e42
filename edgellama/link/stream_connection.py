"""One established connection over TCP: messages in and out as sealed records, and its liveness.

Sans-IO. TCP repairs loss and holds back who sends too fast; what is left to do here is to seal,
to let small messages overtake large ones, and to notice silence. Bytes are given out only when
they can leave, so the choice between messages is made as late as it can be.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from edgellama.errors import WireError
from edgellama.link.connection import (
    CLOSE_REASONS,
    IDLE_DEATH_S,
    KEEPALIVE_S,
    KEYS_PACKETS_MAX,
    KEYS_RETRY_S,
    KEYS_S,
    KEYS_S_MAX,
)
from edgellama.link.outbox import QUEUED_BYTES_MAX, QUEUED_MESSAGES_MAX
from edgellama.link.recovery import RoundTrip
from edgellama.values import LinkCounters
from edgellama.wire.frames import CloseCode, Priority
from edgellama.wire.sealing import Sequence
from edgellama.wire.stream import (
    FIRST_PIECE_BYTES,
    KEYS_USED_FRAME,
    LENGTH,
    NEXT_PIECE_BYTES,
    PING_FRAME,
    PONG_FRAME,
    RECORD_BYTES_MAX,
    Close,
    FirstPiece,
    KeysAsked,
    KeysGiven,
    KeysUsed,
    NextPiece,
    Ping,
    Pong,
    StreamFrame,
    pack_first_piece,
    pack_keys_asked,
    pack_keys_given,
    pack_next_piece,
    pack_record,
    pack_stream_close,
    parse_stream_frames,
    record_bytes,
)

if TYPE_CHECKING:
    from edgellama.link.identity import Identity
    from edgellama.values import Address
    from edgellama.wire.noise import Initiator, Opening, TransportKeys

GIVE_UP_S: Final = 4.0
"""With messages under way: longer than TCP needs to send a segment five times."""

PONGS_MAX: Final = 8
"""Pings that wait for an answer; a peer that sends more gets no more."""


class StreamConnection:
    """The state of one connection, from the end of its handshake to ``ended``."""

    def __init__(
        self,
        identity: Identity,
        address: Address,
        keys: TransportKeys,
        now: float,
        *,
        initiated: bool,
    ) -> None:
        self.identity = identity
        self.address = address
        self.initiated = initiated
        self.heard_at = now
        self.ended: str | None = None  # the reason, once the connection is over
        self.left = False  # the peer ended it of its own will
        self.rtt = RoundTrip()
        self._sealing, self._opening = Sequence(keys.sending), Sequence(keys.receiving)
        self._keyed_at = now
        self._renew_at = now + KEYS_S
        self._asked: Initiator | None = None  # for new keys
        self._incoming = bytearray()  # less than a record, between two calls
        self._parts: dict[int, tuple[int, bytearray]] = {}  # by priority: size, what has come
        # Frames that go before all messages; with each the key that holds from the next record on.
        self._urgent: deque[tuple[bytes, Sequence | None]] = deque()
        self._waiting: tuple[deque[bytes], ...] = tuple(deque() for _ in Priority)
        self._sent_of_first = [0] * len(Priority)  # bytes of each priority's first message
        self.queued_bytes = 0
        self.unfinished = 0  # messages that have not been given out in full
        self._waiting_since: float | None = None  # for a sign of life, with messages under way
        self._pinged_at: float | None = None
        self._bytes_sent = self._bytes_received = 0
        self._records_sent = self._records_received = 0

    # What the layer above asks for

    def send(self, message: bytes, priority: Priority, now: float) -> None:
        """Queue a message; ends the connection when far too many wait already."""
        self._waiting[priority].append(message)
        self.queued_bytes += len(message)
        self.unfinished += 1
        if self._waiting_since is None:
            self._waiting_since = now
        if self.queued_bytes > QUEUED_BYTES_MAX or self.unfinished > QUEUED_MESSAGES_MAX:
            self.ended = "it takes messages too slowly"

    def ask_for_life(self, now: float) -> None:
        """Let a ping go out: the initiator's first record confirms the connection."""
        if self._pinged_at is None:
            self._pinged_at = now
            self._urgent.append((PING_FRAME, None))

    def close(self, code: CloseCode) -> None:
        """Let nothing but a close go out."""
        for waiting in self._waiting:
            waiting.clear()
        self._urgent.clear()
        self._urgent.append((pack_stream_close(code), None))

    def take_renewal(self, now: float) -> bool:
        """Return whether it is time to ask for new keys, and put the next time off."""
        records = max(self._sealing.records, self._opening.records)
        if not self.initiated or (now < self._renew_at and records < KEYS_PACKETS_MAX):
            return False
        self._renew_at = now + KEYS_RETRY_S
        return True

    def ask_for_keys(self, noise: Initiator) -> None:
        """Begin a handshake for new keys inside the connection."""
        self._asked = noise
        self._urgent.append((pack_keys_asked(noise.message), None))

    def counters(self) -> LinkCounters:
        """Return what has gone over the connection; its packets are records."""
        return LinkCounters(
            *(self._bytes_sent, self._bytes_received),
            *(self._records_sent, self._records_received, 0),
        )

    # Receiving

    def receive(self, data: bytes, opening: Opening, private: bytes, now: float) -> list[bytes]:
        """Take bytes of the stream; return the messages that they complete.

        ``opening`` and ``private`` answer a handshake for new keys. Raises WireError for bytes
        that are not the peer's, and then nothing further may be received.
        """
        self._incoming += data
        messages: list[bytes] = []
        while True:
            size = record_bytes(self._incoming)
            if not 0 < size <= len(self._incoming):
                return messages
            record = bytes(self._incoming[:size])
            del self._incoming[:size]
            frames = self._opening.open(record[LENGTH.size :], record[: LENGTH.size])
            if frames is None:
                raise WireError("a peer sent a record that is damaged or not its own")
            self._hear(size, now)
            for frame in parse_stream_frames(frames):
                message = self._take(frame, opening, private, now)
                if message is not None:
                    messages.append(message)

    def _hear(self, size: int, now: float) -> None:
        self.heard_at = now
        self._waiting_since = now if self.unfinished else None
        self._bytes_received += size
        self._records_received += 1

    def _take(
        self, frame: StreamFrame, opening: Opening, private: bytes, now: float
    ) -> bytes | None:
        """Do what a frame says; return the message that it completes."""
        match frame:
            case FirstPiece():
                if frame.priority in self._parts:
                    raise WireError("a peer began a message inside another")
                self._parts[frame.priority] = frame.message_bytes, bytearray(frame.piece)
                return self._whole(frame.priority)
            case NextPiece():
                if frame.priority not in self._parts:
                    raise WireError("a peer went on with a message that it has not begun")
                self._parts[frame.priority][1].extend(frame.piece)
                return self._whole(frame.priority)
            case Ping():
                if len(self._urgent) < PONGS_MAX:
                    self._urgent.append((PONG_FRAME, None))
            case Pong():
                if self._pinged_at is not None:
                    self.rtt.update(now - self._pinged_at, 0.0, now)
                    self._pinged_at = None
            case Close():
                self.ended = CLOSE_REASONS.get(frame.code, "it closed the connection")
                self.left = frame.code == CloseCode.LEAVING
            case _:
                self._take_keys(frame, opening, private, now)
        return None

    def _whole(self, priority: int) -> bytes | None:
        size, part = self._parts[priority]
        if len(part) > size:
            raise WireError("a peer sent more than a message's length")
        if len(part) < size:
            return None
        del self._parts[priority]
        return bytes(part)

    def _take_keys(
        self,
        frame: KeysAsked | KeysGiven | KeysUsed,
        opening: Opening,
        private: bytes,
        now: float,
    ) -> None:
        """Go through the handshake for new keys: each direction changes between two records."""
        if isinstance(frame, KeysAsked):
            question = opening.hear(frame.message)
            answered = None if question is None else question.answer(private, b"")
            if answered is None or self.initiated or self._next_opening is not None:
                return  # another mesh key by now: the keys that are used end with the connection
            self._next_opening = Sequence(answered[1].receiving)
            self._urgent.append((pack_keys_given(answered[0]), Sequence(answered[1].sending)))
        elif isinstance(frame, KeysGiven):
            finished = None if self._asked is None else self._asked.finish(frame.message)
            if finished is None:
                raise WireError("a peer gave keys that nobody asked for")
            self._asked = None
            self._opening = Sequence(finished[1].receiving)
            self._urgent.append((KEYS_USED_FRAME, Sequence(finished[1].sending)))
            self._rekeyed(now)
        else:
            if self._next_opening is None:
                raise WireError("a peer uses keys that it was not given")
            self._opening, self._next_opening = self._next_opening, None
            self._rekeyed(now)

    _next_opening: Sequence | None = None  # of the responder, until the initiator uses it

    def _rekeyed(self, now: float) -> None:
        self._keyed_at = now
        self._renew_at = now + KEYS_S

    # Sending

    @property
    def wants_to_send(self) -> bool:
        """Whether ``next_data`` has something."""
        return bool(self._urgent or self.unfinished)

    def next_data(self) -> bytes:
        """Return the next record to write, empty when there is none."""
        frames: list[bytes] = []
        room = RECORD_BYTES_MAX
        following: Sequence | None = None
        while self._urgent and following is None:
            frame, following = self._urgent.popleft()
            frames.append(frame)
            room -= len(frame)
        if following is None:
            self._add_pieces(frames, room)
        if not frames:
            return b""
        record = pack_record(b"".join(frames), self._sealing)
        self._bytes_sent += len(record)
        self._records_sent += 1
        self._sealing = following or self._sealing
        return record

    def _add_pieces(self, frames: list[bytes], room: int) -> None:
        """Fill a record with pieces of messages, in strict order of priority."""
        for priority, waiting in enumerate(self._waiting):
            while waiting and room > FIRST_PIECE_BYTES:
                message, sent = waiting[0], self._sent_of_first[priority]
                head = NEXT_PIECE_BYTES if sent else FIRST_PIECE_BYTES
                past = min(len(message), sent + room - head)
                piece = memoryview(message)[sent:past]
                if sent:
                    frames.append(pack_next_piece(priority, piece))
                else:
                    frames.append(pack_first_piece(priority, len(message), piece))
                room -= len(frames[-1])
                self.queued_bytes -= len(piece)
                self._sent_of_first[priority] = past
                if past == len(message):
                    waiting.popleft()
                    self._sent_of_first[priority] = 0
                    self.unfinished -= 1

    # Time

    def next_timer(self) -> float:
        """Return when ``handle_timer`` has something to do at the latest."""
        timer = min(self._deadline(), self._keyed_at + KEYS_S_MAX)
        if self._pinged_at is None:
            timer = min(timer, self._ping_at())
        return min(timer, self._renew_at) if self.initiated else timer

    def _deadline(self) -> float:
        if self._waiting_since is None:
            return self.heard_at + IDLE_DEATH_S
        return max(self.heard_at, self._waiting_since) + GIVE_UP_S

    def _ping_at(self) -> float:
        return max(self.heard_at, self._waiting_since or 0.0) + KEEPALIVE_S

    def handle_timer(self, now: float) -> None:
        """Do what has become due: give up, ask for a sign of life."""
        if now - self._keyed_at >= KEYS_S_MAX:
            self.ended = "its keys could not be renewed"
        elif self._deadline() <= now:
            self.ended = f"nothing came from it for {now - self.heard_at:.1f} s"
        elif self._ping_at() <= now:
            self.ask_for_life(now)
