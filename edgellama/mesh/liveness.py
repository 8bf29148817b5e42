"""Who is silent for too long: decided from when each member was last heard, and what others say.

Two speeds. A member on which no answer waits is suspected after 5 s of silence, and dead after 3 s
more. While an answer waits on it, it says something every quarter of a second, is suspected after
one, and is dead after three; or after half of that when another member says that it does not hear
it either, and it has never been nearly as silent of late. Whom another member still hears is not
dead: only the link between the two is broken.

A node that was asleep itself knows nothing of the others' silence, and begins to count anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.wire.messages import Doubt, Heard

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from edgellama.mesh.effects import Outbox
    from edgellama.values import NodeId

BUSY_HEARTBEAT_S: Final = 0.25
BUSY_SUSPECT_S: Final = 1.0
BUSY_DEAD_S: Final = 3.0
BUSY_DEAD_CONFIRMED_S: Final = 1.5  # where another member does not hear it either
IDLE_SUSPECT_S: Final = 5.0
IDLE_DEAD_S: Final = 8.0

STALL_FACTOR: Final = 3  # so many times the longest silence of late is no stall any more
STALL_WINDOW_S: Final = 60.0
STALL_USUAL_S: Final = 0.3  # of a member that nothing is known of yet

ASLEEP_S: Final = 1.0  # a timer so much too late: this node itself stood still
ASK_AGAIN_S: Final = 1.0
HEARD_S: Final = 0.6  # who was heard so lately is alive
ANSWER_WAIT_S: Final = 0.35  # for a sign of life of whom this node is asked about
ASKED_MAX: Final = 16  # members asked at once about one that is silent
QUESTIONS_MAX: Final = 256  # under way, of others
NEVER_MS: Final = (1 << 32) - 1  # of who has no link to the member in question
TICK_S: Final = 0.25
FINE_TICK_S: Final = 0.1  # while somebody is silent


class Verdict(NamedTuple):
    """A member is dead in this life, or else it can be reached by way of ``by``."""

    node: NodeId
    incarnation: int
    by: NodeId | None


@dataclass
class _Watched:
    """What is known of one living member."""

    incarnation: int
    heard_at: float
    since: float  # silence counts from here: when it became known, awaited, or this node awoke
    is_awaited: bool = False
    silence_s: float = 0.0  # under way, when it was last looked at
    # The longest silences that have ended, of this window and of the one before.
    stalls_s: tuple[float, float] = (STALL_USUAL_S, STALL_USUAL_S)
    stalls_since: float = 0.0
    asked_at: float | None = None  # others, whether they hear it; None while it is not suspected
    hearers: set[NodeId] = field(default_factory=set)
    deaf: set[NodeId] = field(default_factory=set)


class _Question(NamedTuple):
    asker: NodeId
    subject: NodeId
    answer_at: float


class Liveness:
    """Watches the members that are called alive.

    ``heard_at`` tells when anything last came over the link to a member, None where there is none.
    """

    def __init__(self, outbox: Outbox, heard_at: Callable[[NodeId], float | None]) -> None:
        self._outbox = outbox
        self._heard_at = heard_at
        self._relayed_at: dict[NodeId, float] = {}  # when anything last came by way of another
        self._watched: dict[NodeId, _Watched] = {}
        self._questions: list[_Question] = []
        self._due = 0.0

    def watch(self, living: Mapping[NodeId, int], awaited: Collection[NodeId], now: float) -> None:
        """Watch these members, in these lives, from now on; those of ``awaited`` more closely."""
        before, self._watched = self._watched, {}
        for node, incarnation in living.items():
            watched = before.get(node)
            if watched is None or watched.incarnation != incarnation:
                watched = _Watched(incarnation, now, now)
            self._watched[node] = watched
            if (node in awaited) != watched.is_awaited:
                watched.is_awaited = node in awaited
                watched.since, watched.silence_s = now, 0.0
        for node in [each for each in self._relayed_at if each not in self._watched]:
            del self._relayed_at[node]
        if any(watched.is_awaited for watched in self._watched.values()):
            self._due = min(self._due, now + TICK_S)

    def silence_s(self, node: NodeId, now: float) -> float:
        """Return for how long a member has been silent; 0 of one that is not watched."""
        watched = self._watched.get(node)
        if watched is None:
            return 0.0
        heard = self._heard_at(node), self._relayed_at.get(node), watched.heard_at
        watched.heard_at = max(each for each in heard if each is not None)
        return now - max(watched.heard_at, watched.since)

    def last_heard(self, node: NodeId) -> float:
        """Return when anything last came from a member, by whichever way; -inf if nothing did."""
        heard = self._heard_at(node), self._relayed_at.get(node)
        return max((each for each in heard if each is not None), default=-math.inf)

    def heard_by_way_of_another(self, node: NodeId, now: float) -> None:
        """Take note of what came from a member to which there may be no link."""
        if node in self._watched:
            self._relayed_at[node] = now

    def begin_anew(self, node: NodeId, now: float) -> None:
        """Count a member's silence from now on: it is to be heard on another way."""
        watched = self._watched.get(node)
        if watched is not None:
            watched.since, watched.asked_at = now, None
            watched.hearers.clear()

    def next_timer(self) -> float:
        """Return when ``handle_timer`` wants to be called."""
        return min([self._due, *(question.answer_at for question in self._questions)])

    def is_asleep(self, now: float) -> bool:
        """Return whether this node has stood still, so that its timers come far too late."""
        return now > self.next_timer() + ASLEEP_S

    def awake(self, now: float) -> None:
        """Count everybody's silence anew: nobody could be heard."""
        for watched in self._watched.values():
            watched.since = now
            watched.asked_at = None
        self._questions.clear()
        self._due = now

    def handle_timer(self, now: float, reachable: Collection[NodeId]) -> list[Verdict]:
        """Ask about who is silent, answer such questions, and return what has become certain.

        ``reachable`` are the members that this node has a link to.
        """
        self._answer_due(now)
        verdicts: list[Verdict] = []
        if now < self._due:
            return verdicts
        tick_s = 1.0
        for node, watched in self._watched.items():
            silence_s = self.silence_s(node, now)
            _note_stall(watched, silence_s, now)
            if watched.is_awaited:
                tick_s = min(tick_s, TICK_S)
            suspect_s = BUSY_SUSPECT_S if watched.is_awaited else IDLE_SUSPECT_S
            if silence_s < suspect_s:
                watched.asked_at = None
                if silence_s > suspect_s / 2:
                    tick_s = min(tick_s, FINE_TICK_S)
                continue
            tick_s = FINE_TICK_S
            self._ask(node, watched, now, reachable)
            verdict = _verdict(node, watched, silence_s)
            if verdict is not None:
                verdicts.append(verdict)
        self._due = now + tick_s
        return verdicts

    def is_suspected(self, node: NodeId) -> bool:
        """Return whether others are being asked about a member."""
        watched = self._watched.get(node)
        return watched is not None and watched.asked_at is not None

    def receive_doubt(self, asker: NodeId, doubt: Doubt, now: float) -> None:
        """Tell whether the member in question is heard here, after a moment if that is unknown."""
        if len(self._questions) < QUESTIONS_MAX:
            silence_s = self._silence_here_s(doubt.subject, now)
            wait_s = ANSWER_WAIT_S if silence_s is not None and silence_s > HEARD_S / 2 else 0.0
            self._questions.append(_Question(asker, doubt.subject, now + wait_s))

    def receive_heard(self, node: NodeId, heard: Heard) -> None:
        """Take what another member says of one that is silent here."""
        watched = self._watched.get(heard.subject)
        if watched is None or watched.asked_at is None:
            return
        is_heard = heard.silence_ms <= HEARD_S * 1000
        (watched.hearers if is_heard else watched.deaf).add(node)
        (watched.deaf if is_heard else watched.hearers).discard(node)

    def _silence_here_s(self, subject: NodeId, now: float) -> float | None:
        heard_at = self._heard_at(subject)
        return None if heard_at is None else now - heard_at

    def _answer_due(self, now: float) -> None:
        due = [each for each in self._questions if each.answer_at <= now]
        self._questions = [each for each in self._questions if each.answer_at > now]
        for question in due:
            silence_s = self._silence_here_s(question.subject, now)
            silence_ms = NEVER_MS if silence_s is None else min(round(silence_s * 1000), NEVER_MS)
            self._outbox.send(question.asker, Heard(question.subject, silence_ms))

    def _ask(
        self, node: NodeId, watched: _Watched, now: float, reachable: Collection[NodeId]
    ) -> None:
        if watched.asked_at is not None and now < watched.asked_at + ASK_AGAIN_S:
            return
        if watched.asked_at is None:
            watched.deaf.clear()
        watched.asked_at = now
        watched.hearers.clear()
        others = [each for each in sorted(reachable) if each != node]
        for other in others[:ASKED_MAX]:
            self._outbox.send(other, Doubt(node))


def _note_stall(watched: _Watched, silence_s: float, now: float) -> None:
    """Keep the longest silence of the last one to two windows in which it should say something."""
    latest, before = watched.stalls_s
    if now >= watched.stalls_since + STALL_WINDOW_S:
        watched.stalls_since = now
        latest, before = STALL_USUAL_S, latest
    if watched.is_awaited and silence_s < watched.silence_s:  # it was heard again
        latest = max(latest, watched.silence_s)
    watched.stalls_s = latest, before
    watched.silence_s = silence_s


def _verdict(node: NodeId, watched: _Watched, silence_s: float) -> Verdict | None:
    if watched.hearers:
        return Verdict(node, watched.incarnation, min(watched.hearers))
    dead = Verdict(node, watched.incarnation, None)
    if not watched.is_awaited:
        return dead if silence_s >= IDLE_DEAD_S else None
    dead_s = BUSY_DEAD_S
    if watched.deaf:
        dead_s = max(STALL_FACTOR * max(watched.stalls_s), BUSY_DEAD_CONFIRMED_S)
        dead_s = min(dead_s, BUSY_DEAD_S)
    return dead if silence_s >= dead_s else None
