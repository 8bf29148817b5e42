"""The receiving half of messages: fragments in, each whole message out exactly once."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.link.ranges import Ranges
from edgellama.wire.frames import fragment_bytes, parity_of

if TYPE_CHECKING:
    from edgellama.wire.frames import Fragment, Parity

STARTED_MESSAGES_MAX = 256
"""How many messages a sender may have under way at once."""

LARGE_BYTES_MIN = 65_536
"""From so many bytes on a message is large."""

LARGE_MESSAGES_MAX = 2
"""How many of the messages under way may be large: bounds a peer's share of memory to
two of 64 MiB and 254 of 64 KiB."""


class Fate(Enum):
    """What became of a fragment or parity that did not complete its message."""

    KEPT = "kept"
    DUPLICATE = "duplicate"
    REFUSED = "refused"  # over a limit: its packet must not be acknowledged


_KEPT = Fate.KEPT  # an enum's members are slow to read


class _Incoming:
    """A message of which some fragments have come, or the parity."""

    __slots__ = ("message_bytes", "missing", "parity", "parts")

    def __init__(self, message_bytes: int, fragment_count: int) -> None:
        self.message_bytes = message_bytes
        self.parts: list[bytes | None] = [None] * fragment_count
        self.missing = fragment_count
        self.parity: bytes | None = None

    @property
    def large(self) -> bool:
        return self.message_bytes >= LARGE_BYTES_MIN

    def repair(self) -> None:
        """Make the one missing fragment from the parity and the others."""
        assert self.parity is not None
        count = len(self.parts)
        size = fragment_bytes(self.message_bytes, count)
        index = self.parts.index(None)
        last_size = self.message_bytes - (count - 1) * size
        others = [part for part in self.parts if part is not None]
        lost = parity_of([self.parity, *others], size)
        self.parts[index] = lost[:last_size] if index + 1 == count else lost
        self.missing = 0


class Reassembly:
    """Puts one peer's messages together, in bounded memory.

    A sender keeps the same limits over the messages that are not fully acknowledged, and those
    hold every message that is incomplete here: an honest sender is never refused.
    """

    def __init__(self) -> None:
        self._incomplete: dict[int, _Incoming] = {}
        self._complete = Ranges()
        self.repaired = 0  # messages that parity completed

    def accept(self, fragment: Fragment) -> bytes | Fate:
        """Take a fragment and return the message when it is now whole.

        Raises WireError when two fragments of a message disagree about its length.
        """
        incoming = self._incomplete.get(fragment.message_id)
        if (
            incoming is None
            or incoming.message_bytes != fragment.message_bytes
            or len(incoming.parts) != fragment.fragment_count
        ):
            place = self._place_for(fragment)
            if isinstance(place, Fate):
                return place
            incoming = place
        index = fragment.fragment_index
        if incoming.parts[index] is not None:
            return Fate.DUPLICATE
        incoming.parts[index] = fragment.payload
        incoming.missing -= 1
        if incoming.missing > 1:
            return _KEPT
        return self._finished(fragment.message_id, incoming)

    def accept_parity(self, parity: Parity) -> bytes | Fate:
        """Take a message's parity and return the message when that completes it.

        Raises WireError as ``accept`` does.
        """
        incoming = self._place_for(parity)
        if isinstance(incoming, Fate):
            return incoming
        if incoming.parity is not None:
            return Fate.DUPLICATE
        incoming.parity = parity.payload
        return self._finished(parity.message_id, incoming)

    def _place_for(self, frame: Fragment | Parity) -> _Incoming | Fate:
        """Return where the frame belongs, or why it belongs nowhere."""
        incoming = self._incomplete.get(frame.message_id)
        if incoming is None:
            if frame.message_id in self._complete:
                return Fate.DUPLICATE
            if not self._room_for(frame.message_bytes):
                return Fate.REFUSED
        else:
            if incoming.message_bytes != frame.message_bytes:
                raise WireError(f"a peer gave message {frame.message_id} two lengths")
            count = len(incoming.parts)
            if count == frame.fragment_count:
                return incoming
            if count > frame.fragment_count:
                return Fate.DUPLICATE  # late, of a cut that the sender has given up
        # New, or cut anew into more fragments since the path takes no such long datagrams.
        incoming = _Incoming(frame.message_bytes, frame.fragment_count)
        self._incomplete[frame.message_id] = incoming
        return incoming

    def _finished(self, message_id: int, incoming: _Incoming) -> bytes | Fate:
        if incoming.missing == 1 and incoming.parity is not None:
            incoming.repair()
            self.repaired += 1
        if incoming.missing:
            return _KEPT
        del self._incomplete[message_id]
        self._complete.add(message_id)
        return b"".join(incoming.parts)  # type: ignore[arg-type]  # none is missing

    def _room_for(self, message_bytes: int) -> bool:
        # Every gap among the complete messages is one that an honest sender has under way.
        if len(self._complete) > STARTED_MESSAGES_MAX + 1:
            return False
        if message_bytes < LARGE_BYTES_MIN:
            return len(self._incomplete) < STARTED_MESSAGES_MAX
        large = sum(incoming.large for incoming in self._incomplete.values())
        return large < LARGE_MESSAGES_MAX
