"""The receiving half of messages: fragments in, each whole message out exactly once."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.link.ranges import Ranges

if TYPE_CHECKING:
    from edgellama.wire.frames import Fragment

STARTED_MESSAGES_MAX = 256
"""How many messages a sender may have under way at once."""

LARGE_FRAGMENTS_MIN = 64
"""From so many fragments on (about 72 KiB) a message is large."""

LARGE_MESSAGES_MAX = 2
"""How many of the messages under way may be large: bounds a peer's share of memory to
two of 64 MiB and 254 of 72 KiB."""


class Fate(Enum):
    """What became of a fragment that did not complete its message."""

    KEPT = "kept"
    DUPLICATE = "duplicate"
    REFUSED = "refused"  # over a limit: its packet must not be acknowledged


class _Incoming:
    """A message of which some fragments have come."""

    __slots__ = ("message_bytes", "missing", "parts")

    def __init__(self, fragment: Fragment) -> None:
        self.message_bytes = fragment.message_bytes
        self.parts: list[bytes | None] = [None] * fragment.fragment_count
        self.missing = fragment.fragment_count

    @property
    def large(self) -> bool:
        return len(self.parts) >= LARGE_FRAGMENTS_MIN


class Reassembly:
    """Puts one peer's messages together, in bounded memory.

    A sender keeps the same limits over the messages that are not fully acknowledged, and those
    hold every message that is incomplete here: an honest sender is never refused.
    """

    def __init__(self) -> None:
        self._incomplete: dict[int, _Incoming] = {}
        self._complete = Ranges()

    def accept(self, fragment: Fragment) -> bytes | Fate:
        """Take a fragment and return the message when it is now whole.

        Raises WireError when two fragments of a message disagree about its length.
        """
        incoming = self._incomplete.get(fragment.message_id)
        if incoming is None:
            if fragment.message_id in self._complete:
                return Fate.DUPLICATE
            if not self._room_for(fragment):
                return Fate.REFUSED
            incoming = self._incomplete[fragment.message_id] = _Incoming(fragment)
        elif (
            len(incoming.parts) != fragment.fragment_count
            or incoming.message_bytes != fragment.message_bytes
        ):
            raise WireError(f"a peer gave message {fragment.message_id} two lengths")
        if incoming.parts[fragment.fragment_index] is not None:
            return Fate.DUPLICATE
        incoming.parts[fragment.fragment_index] = fragment.payload
        incoming.missing -= 1
        if incoming.missing:
            return Fate.KEPT
        del self._incomplete[fragment.message_id]
        self._complete.add(fragment.message_id)
        return b"".join(part for part in incoming.parts if part is not None)

    def _room_for(self, fragment: Fragment) -> bool:
        # Every gap among the complete messages is one that an honest sender has under way.
        if len(self._complete) > STARTED_MESSAGES_MAX + 1:
            return False
        if fragment.fragment_count < LARGE_FRAGMENTS_MIN:
            return len(self._incomplete) < STARTED_MESSAGES_MAX
        large = sum(incoming.large for incoming in self._incomplete.values())
        return large < LARGE_MESSAGES_MAX
