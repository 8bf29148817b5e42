"""Who can be reached: over a link, or by way of a member that has a link to both.

Two members whose link is broken, while others hear both, go on by way of one of those. It passes
messages on as they are; members trust each other. When the link is back it is used again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Protocol

from edgellama.link.endpoint import Identity, Priority
from edgellama.mesh.effects import HangUp, Outbox, Send, Tell
from edgellama.mesh.liveness import (
    BUSY_DEAD_S,
    BUSY_HEARTBEAT_S,
    BUSY_SUSPECT_S,
    Liveness,
    Verdict,
)
from edgellama.wire.messages import DEAD, LEFT, Doubt, Heard, NotRelayed, Relayed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from edgellama.mesh.membership import Membership
    from edgellama.values import NodeId
    from edgellama.wire.messages import Heartbeat

RELAYED_PRIORITY: Final = Priority.DECODE
"""What goes by way of another may be a step; what else there is of it is little."""

HEARS_S: Final = 2.5  # everybody says something every second
ALL_GONE_S: Final = 10.0  # of silent members some are given up at once, others by IDLE_DEAD_S


class Reached(Protocol):
    """Whoever is told that a member can be reached, and that it cannot any more."""

    def member_reached(self, node: NodeId) -> None:
        """Say again what may have been lost."""

    def member_unreached(self, node: NodeId) -> None:
        """Take note that what is sent is lost."""

    def member_silent(self, node: NodeId) -> None:
        """Take note that a member is suspected, here or elsewhere."""


class Reachability:
    """The links and ways of one node, and the silence on them."""

    def __init__(
        self,
        me: NodeId,
        outbox: Outbox,
        membership: Membership,
        heard_at: Callable[[NodeId], float | None],
        told: Reached,
    ) -> None:
        self._me = me
        self._outbox = outbox
        self._membership = membership
        self._told = told
        self._links: dict[NodeId, int] = {}  # to members: node -> incarnation
        self._liveness = Liveness(outbox, heard_at)
        self._suspected: set[NodeId] = set()
        self._awaited: frozenset[NodeId] = frozenset()
        self._guests: frozenset[NodeId] = frozenset()
        self._next_heartbeat = 0.0
        self._cut_off_at = -math.inf

    def next_timer(self) -> float:
        """Return when ``handle_timer`` wants to be called."""
        timer = self._liveness.next_timer()
        return min(timer, self._next_heartbeat) if self._awaited or self._guests else timer

    # Links and ways

    def link_up(self, identity: Identity, now: float) -> None:
        """Take a link to a member into use."""
        node = identity.node
        self._links[node] = identity.incarnation
        self._outbox.routes.pop(node, None)
        self._liveness.begin_anew(node, now)
        self._reached(node, relayed=False)

    def link_down(self, node: NodeId, now: float, *, left: bool) -> None:
        """Take note of a link's end; the member is dead only when nobody hears it."""
        incarnation = self._links.pop(node, None)
        if incarnation is None:
            return
        for target in [each for each, by in self._outbox.routes.items() if by == node]:
            self._unroute(target, now)
        self._membership.peer_disconnected(node, now)
        self._told.member_unreached(node)
        if left:
            self._membership.declare(node, incarnation, LEFT, now)

    def _reached(self, node: NodeId, *, relayed: bool) -> None:
        self._membership.peer_connected(node, relayed=relayed)
        self._told.member_reached(node)

    def _hang_up(self, node: NodeId, now: float) -> None:
        if node in self._links:
            self._outbox.put(HangUp(node))
            self.link_down(node, now, left=False)

    def _route(self, node: NodeId, by: NodeId, now: float) -> None:
        """Send what is for a member by way of another from now on."""
        self._hang_up(node, now)
        if by not in self._links:
            return
        if node not in self._outbox.routes:
            names = self._membership.name(node), self._membership.name(by)
            self._outbox.put(
                Tell("{} is not heard here; it is reached by way of {}".format(*names))
            )
        self._outbox.routes[node] = by
        self._liveness.begin_anew(node, now)
        self._reached(node, relayed=True)

    def _unroute(self, node: NodeId, now: float) -> None:
        if self._outbox.routes.pop(node, None) is not None:
            self._membership.peer_disconnected(node, now)
            self._told.member_unreached(node)

    # Messages

    def receive_relayed(self, by: NodeId, relayed: Relayed, now: float) -> NodeId | None:
        """Pass a message on, or return whose it is when it is for this node."""
        if relayed.target != self._me:
            is_linked = relayed.target in self._links and relayed.origin == by
            to, message = (relayed.target, relayed) if is_linked else (by, None)
            self._outbox.put(Send(to, message or NotRelayed(relayed.target), RELAYED_PRIORITY))
            return None
        origin = relayed.origin
        record = self._membership.record(origin)
        if record is None or origin == self._me:
            return None
        # The other side has given the link up. Where it still carries something, this is an old
        # message, from before the link was back.
        if origin not in self._links or self._liveness.silence_s(origin, now) >= BUSY_SUSPECT_S:
            if origin not in self._outbox.routes:
                self._route(origin, by, now)
            self._liveness.heard_by_way_of_another(origin, now)
        return origin

    def receive(
        self,
        node: NodeId,
        message: Doubt | Heard | NotRelayed,
        heartbeat: Callable[[], Heartbeat],
        now: float,
    ) -> None:
        """Take a question after a silent member, an answer to one, or that a way is closed."""
        match message:
            case Doubt():
                self._told.member_silent(message.subject)
                if message.subject in self._links:
                    # What it acknowledges is a sign of life.
                    self._outbox.send(message.subject, heartbeat())
                self._liveness.receive_doubt(node, message, now)
            case Heard():
                self._liveness.receive_heard(node, message)
            case NotRelayed():
                if self._outbox.routes.get(message.target) == node:
                    self._unroute(message.target, now)

    # Time

    def handle_timer(
        self,
        now: float,
        awaited: Collection[NodeId],
        guests: Collection[NodeId],
        heartbeat: Callable[[], Heartbeat],
    ) -> None:
        """Act on the silence of others.

        Answers wait on the members ``awaited``, and ``guests`` wait for answers: both are given
        signs of life more often.
        """
        self._wake(now)
        living = {record.node: record.incarnation for record in self._membership.living()}
        living.pop(self._me, None)
        self._awaited = frozenset(node for node in awaited if node in living)
        self._guests = frozenset(guests)
        self._liveness.watch(living, self._with_relays(), now)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + BUSY_HEARTBEAT_S
            for node in sorted(self._awaited | self._guests):
                self._outbox.send(node, heartbeat())
        for verdict in self._liveness.handle_timer(now, self._links):
            self._act_on(verdict, now)
        self._tell_suspected(living)

    def _with_relays(self) -> frozenset[NodeId]:
        """Return whom answers wait on: relays as well."""
        relays = (self._outbox.routes.get(node) for node in self._awaited)
        return self._awaited | {node for node in relays if node is not None}

    def _wake(self, now: float) -> None:
        """Where this node stood still, count all silence anew; after long, begin its links anew.

        The others have given it up by then, whatever its own end of the links looks like.
        """
        if not self._liveness.is_asleep(now):
            return
        asleep_s = now - self._liveness.next_timer()
        self._liveness.awake(now)
        if asleep_s >= BUSY_DEAD_S and self._links:
            self._outbox.put(Tell(f"this device stood still for {asleep_s:.0f} s; it joins again"))
            for node in list(self._links):
                self._hang_up(node, now)

    def _act_on(self, verdict: Verdict, now: float) -> None:
        node = verdict.node
        if verdict.by is None:
            self._hang_up(node, now)
            self._unroute(node, now)
            self._membership.declare(node, verdict.incarnation, DEAD, now)
            if self._is_cut_off(now):
                self._membership.steadiness.excuse(node)
        elif self._outbox.routes.get(node) != verdict.by:
            self._route(node, verdict.by, now)

    def _is_cut_off(self, now: float) -> bool:
        """Whether nobody at all is heard here, or was lately of whoever else was there."""
        others = [each.node for each in self._membership.living() if each.node != self._me]
        if not others:
            return now < self._cut_off_at + ALL_GONE_S
        if max(map(self._liveness.last_heard, others)) > now - HEARS_S:
            return False
        self._cut_off_at = now
        return True

    def _tell_suspected(self, living: Collection[NodeId]) -> None:
        suspected = {node for node in living if self._liveness.is_suspected(node)}
        for node in sorted(suspected - self._suspected):
            self._told.member_silent(node)
        self._suspected = suspected
