"""Who is not heard: others are asked, one that hears it passes messages on, or it is dead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mesh_building import A, B, C, D, of_kind, record, sent

from edgellama.link.endpoint import Identity
from edgellama.mesh.effects import Effect, HangUp, Outbox, Tell
from edgellama.mesh.liveness import (
    BUSY_DEAD_CONFIRMED_S,
    BUSY_DEAD_S,
    BUSY_HEARTBEAT_S,
    BUSY_SUSPECT_S,
    FINE_TICK_S,
    IDLE_DEAD_S,
)
from edgellama.mesh.membership import Membership
from edgellama.mesh.reachability import Reachability
from edgellama.wire.messages import (
    ALIVE,
    DEAD,
    LEFT,
    Doubt,
    Gossip,
    Heard,
    Heartbeat,
    Message,
    NotRelayed,
    Relayed,
    decode,
    encode,
)

if TYPE_CHECKING:
    from edgellama.values import NodeId

HEARTBEAT = Heartbeat("00" * 8, 1, 1)


class Desk:
    """A's reachability, in a mesh with B, C and D, that tells what it says here."""

    def __init__(self, *linked: NodeId) -> None:
        self.outbox = Outbox(A)
        self.membership = Membership(record(A), None, self.outbox)
        self.membership.receive_gossip(Gossip(tuple(map(record, (B, C, D))), ()), 0.0)
        self.heard: dict[NodeId, float] = dict.fromkeys(linked, 100.0)
        self.told: list[tuple[str, NodeId]] = []
        self.reach = Reachability(A, self.outbox, self.membership, self.heard.get, self)
        self.awaited: set[NodeId] = set()
        self.guests: set[NodeId] = set()
        self.now = 100.0
        self.timer()
        for node in linked:
            self.reach.link_up(Identity(node, 1), self.now)
        self.forget()

    def member_reached(self, node: NodeId) -> None:
        self.told.append(("reached", node))

    def member_unreached(self, node: NodeId) -> None:
        self.told.append(("unreached", node))

    def member_silent(self, node: NodeId) -> None:
        self.told.append(("silent", node))

    def forget(self) -> None:
        self.outbox.drain()
        self.told.clear()

    def timer(self) -> None:
        self.reach.handle_timer(self.now, self.awaited, self.guests, lambda: HEARTBEAT)

    def wait_on(self, *nodes: NodeId) -> None:
        self.awaited = set(nodes)
        self.timer()

    def until(self, now: float, *speaking: NodeId) -> list[Effect]:
        """Let time pass in which some are heard all along; return what is done meanwhile."""
        while self.now < now:
            self.now = min(now, max(self.now + 0.01, self.reach.next_timer()))
            self.heard |= dict.fromkeys(speaking, self.now)
            self.timer()
        return self.outbox.drain()

    def hear(self, node: NodeId, message: Doubt | Heard | NotRelayed) -> list[Effect]:
        self.reach.receive(node, message, lambda: HEARTBEAT, self.now)
        return self.outbox.drain()

    def send(self, node: NodeId) -> list[tuple[NodeId, Message]]:
        """Return how a message for a member leaves."""
        self.outbox.send(node, HEARTBEAT)
        return sent(self.outbox)

    def state(self, node: NodeId) -> str:
        found = self.membership.record(node)
        assert found is not None
        return found.state


def doubting() -> Desk:
    """Return a desk that waits on B and has just asked C and D about it."""
    desk = Desk(B, C, D)
    desk.wait_on(B)
    effects = desk.until(100.0 + BUSY_SUSPECT_S + 3 * FINE_TICK_S, C, D)
    asked = [(node, each) for node, each in sent(effects) if isinstance(each, Doubt)]
    assert asked == [(C, Doubt(B)), (D, Doubt(B))]
    assert desk.told == [("silent", B)]
    desk.told.clear()
    return desk


def relayed_by_c() -> Desk:
    desk = doubting()
    desk.hear(C, Heard(B, 20))
    desk.until(desk.now + 2 * FINE_TICK_S, C, D)
    assert desk.outbox.routes == {B: C}
    return desk


def test_whom_another_hears_is_reached_by_way_of_it_and_not_dead() -> None:
    desk = doubting()
    desk.hear(C, Heard(B, 20))
    effects = desk.until(desk.now + 2 * FINE_TICK_S, C, D)
    assert HangUp(B) in effects
    assert [each.text for each in of_kind(effects, Tell)] == [
        "n2 is not heard here; it is reached by way of n3"
    ]
    assert desk.told == [("unreached", B), ("reached", B)]
    assert desk.state(B) == ALIVE
    ((node, message),) = desk.send(B)
    assert isinstance(message, Relayed)
    assert (node, message.origin, message.target) == (C, A, B)
    assert decode(bytes(message.message)) == HEARTBEAT
    assert desk.send(D) == [(D, HEARTBEAT)]
    assert B in desk.membership.connected()


def test_whom_nobody_hears_is_dead_and_sooner_when_they_say_so() -> None:
    for answers, dead_s in (((), BUSY_DEAD_S), ((C, D), BUSY_DEAD_CONFIRMED_S)):
        desk = doubting()
        for node in answers:
            desk.hear(node, Heard(B, 1500))
        desk.until(100.0 + dead_s - 2 * FINE_TICK_S, C, D)
        assert desk.state(B) == ALIVE
        effects = desk.until(100.0 + dead_s + 3 * FINE_TICK_S, C, D)
        assert HangUp(B) in effects
        assert desk.state(B) == DEAD
        assert desk.told == [("unreached", B)]
        assert B not in desk.membership.connected()


def test_who_is_asked_gives_the_silent_one_cause_to_be_heard() -> None:
    desk = Desk(B, C)
    assert sent(desk.hear(C, Doubt(B))) == [(B, HEARTBEAT)]
    assert desk.told == [("silent", B)]
    assert sent(desk.hear(C, Doubt(D))) == []  # nobody here is linked to D


def test_the_way_is_given_up_when_the_link_is_back() -> None:
    desk = relayed_by_c()
    desk.forget()
    desk.reach.link_up(Identity(B, 1), desk.now)
    assert desk.outbox.routes == {}
    assert desk.told == [("reached", B)]
    desk.forget()
    assert desk.send(B) == [(B, HEARTBEAT)]


@pytest.mark.parametrize("closed", ["said", "link"])
def test_a_way_that_is_closed_leads_nowhere(closed: str) -> None:
    desk = relayed_by_c()
    desk.forget()
    if closed == "said":
        desk.hear(D, NotRelayed(B))  # it is not by way of D
        assert desk.outbox.routes == {B: C}
        desk.hear(C, NotRelayed(B))
    else:
        desk.reach.link_down(C, desk.now, left=False)
    assert desk.outbox.routes == {}
    assert ("unreached", B) in desk.told
    assert B not in desk.membership.connected()


def test_where_the_relay_falls_silent_another_one_is_found() -> None:
    desk = relayed_by_c()
    effects = desk.until(desk.now + BUSY_SUSPECT_S + 3 * FINE_TICK_S, D)
    asked = {each.subject for node, each in sent(effects) if isinstance(each, Doubt) and node == D}
    assert asked == {B, C}
    desk.hear(D, Heard(B, 20))
    desk.hear(D, Heard(C, 1500))
    desk.until(desk.now + 2 * FINE_TICK_S, D)
    assert desk.outbox.routes == {B: D}
    desk.until(desk.now + BUSY_DEAD_S - 4 * FINE_TICK_S, D)
    assert desk.state(B) == ALIVE


def test_a_message_is_passed_on_only_over_a_link_and_only_from_its_origin() -> None:
    desk = Desk(B, C)
    message = Relayed(C, B, encode(HEARTBEAT))
    assert desk.reach.receive_relayed(C, message, desk.now) is None
    assert sent(desk.outbox) == [(B, message)]
    for refused in (Relayed(C, D, b""), Relayed(D, B, b"")):
        assert desk.reach.receive_relayed(C, refused, desk.now) is None
        assert sent(desk.outbox) == [(C, NotRelayed(refused.target))]


def test_what_comes_by_a_way_opens_the_way_back() -> None:
    desk = Desk(C)
    message = Relayed(B, A, encode(HEARTBEAT))
    assert desk.reach.receive_relayed(C, message, desk.now) == B
    assert desk.outbox.routes == {B: C}
    assert ("reached", B) in desk.told
    assert desk.reach.receive_relayed(C, Relayed("f" * 32, A, b""), desk.now) is None
    assert desk.reach.receive_relayed(C, Relayed(A, A, b""), desk.now) is None


def test_an_old_relayed_message_does_not_close_a_link_that_carries_something() -> None:
    desk = Desk(B, C)
    assert desk.reach.receive_relayed(C, Relayed(B, A, encode(HEARTBEAT)), desk.now) == B
    assert desk.outbox.routes == {}
    assert of_kind(desk.outbox.drain(), HangUp) == []


def test_who_leaves_has_left_and_who_is_lost_is_not_dead_yet() -> None:
    desk = Desk(B, C)
    desk.reach.link_down(B, desk.now, left=True)
    desk.reach.link_down(C, desk.now, left=False)
    desk.reach.link_down(D, desk.now, left=True)  # there was no link
    assert [desk.state(node) for node in (B, C, D)] == [LEFT, ALIVE, ALIVE]
    assert desk.told == [("unreached", B), ("unreached", C)]


def test_those_who_wait_are_given_signs_of_life_four_times_a_second() -> None:
    desk = Desk(B, C)
    desk.guests = {"e" * 32}
    desk.wait_on(B)
    desk.until(101.0, B, C)
    effects = desk.until(103.0, B, C)
    beats = [node for node, message in sent(effects) if message == HEARTBEAT]
    assert sorted(set(beats)) == [B, "e" * 32]
    assert abs(beats.count(B) - 2.0 / BUSY_HEARTBEAT_S) <= 1


def test_who_stood_still_for_long_begins_its_links_anew_and_accuses_nobody() -> None:
    desk = Desk(B, C)
    desk.wait_on(B)
    desk.until(101.0, B, C)
    desk.now += 60.0
    effects = desk.until(desk.now + 0.02)
    assert {each.node for each in of_kind(effects, HangUp)} == {B, C}
    assert [text for each in of_kind(effects, Tell) if "it joins again" in (text := each.text)]
    assert [desk.state(node) for node in (B, C, D)] == [ALIVE] * 3


def counted_as_gone(desk: Desk) -> set[NodeId]:
    return set(desk.membership.steadiness._gone_at)


def test_who_is_lost_while_others_are_heard_counts_as_gone() -> None:
    desk = Desk(B, C, D)
    desk.until(100.0 + IDLE_DEAD_S + 1.0, C)
    assert [desk.state(node) for node in (B, C, D)] == [DEAD, ALIVE, DEAD]
    assert counted_as_gone(desk) == {B, D}


@pytest.mark.parametrize("awaited", [(), (B,), (B, C)])
def test_who_hears_nobody_was_cut_off_and_counts_nobody_as_gone(
    awaited: tuple[NodeId, ...],
) -> None:
    desk = Desk(B, C, D)
    desk.wait_on(*awaited)
    desk.until(101.0, B, C, D)
    desk.until(101.0 + 2 * IDLE_DEAD_S)
    assert {desk.state(node) for node in (B, C, D)} == {DEAD}
    assert counted_as_gone(desk) == set()


def test_the_only_other_member_counts_as_gone() -> None:
    desk = Desk(B)
    for node in (C, D):
        desk.membership.declare(node, 1, LEFT, desk.now)
    desk.until(100.0 + IDLE_DEAD_S + 1.0)
    assert counted_as_gone(desk) == {B}
