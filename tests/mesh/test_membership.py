"""The view of a mesh: merged in any order to the same, kept alive by connections."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_building import MODEL, A, B, C, D, node_id, of_kind, record, sent

from edgellama.mesh.effects import Dial, Outbox, Tell
from edgellama.mesh.membership import (
    HEARTBEAT_S,
    REDIAL_DEAD_S,
    REDIAL_RELAYED_S,
    REDIAL_S,
    Membership,
)
from edgellama.testing.fake_model import FakeModel
from edgellama.values import Address
from edgellama.wire.messages import (
    ALIVE,
    DEAD,
    LEFT,
    MEMBER_STATES,
    MEMBERS_MAX,
    MODELS_MAX,
    VERSION_PAST,
    Gossip,
    MemberRecord,
)


def view(*others: MemberRecord, me: MemberRecord | None = None) -> tuple[Membership, Outbox]:
    outbox = Outbox()
    membership = Membership(me or record(A), None, outbox)
    membership.receive_gossip(Gossip(others, ()), 0.0)
    outbox.drain()
    return membership, outbox


def connect(membership: Membership, *records: MemberRecord) -> None:
    for each in records:
        membership.peer_connected(each.node)


some_records = st.lists(
    st.builds(
        lambda node, incarnation, version, state: record(
            node, incarnation=incarnation, version=version, state=state
        ),
        st.sampled_from([B, C, D]),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from(MEMBER_STATES),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=200)
@given(some_records, st.integers(1, 4), st.data())
def test_the_order_of_gossip_does_not_matter(
    records: list[MemberRecord], batch: int, data: st.DataObject
) -> None:
    one, _ = view(*records)
    other, _ = view()
    shuffled = data.draw(st.permutations([*records, *records[:3]]))
    for first in range(0, len(shuffled), batch):
        other.receive_gossip(Gossip(tuple(shuffled[first : first + batch]), ()), 1.0)
    assert one.records() == other.records()
    assert one.heartbeat(0, 0) == other.heartbeat(0, 0)
    for node in {each.node for each in records}:
        greatest = max(
            (each.incarnation, each.version, MEMBER_STATES.index(each.state))
            for each in records
            if each.node == node
        )
        kept = one.record(node)
        assert kept is not None
        assert (kept.incarnation, kept.version, MEMBER_STATES.index(kept.state)) == greatest


def test_news_are_passed_on_once() -> None:
    membership, outbox = view(record(B), record(C))
    connect(membership, record(B), record(C))
    outbox.drain()
    gossip = Gossip((record(D),), ())
    membership.receive_gossip(gossip, 1.0)
    assert [node for node, _ in sent(outbox)] == [B, C]
    membership.receive_gossip(gossip, 2.0)
    assert sent(outbox) == []
    assert membership.changed_at == 1.0


@pytest.mark.parametrize("state", [DEAD, LEFT])
def test_a_member_refutes_what_is_said_of_its_own_life(state: str) -> None:
    membership, outbox = view()
    connect(membership, record(B))
    outbox.drain()
    membership.receive_gossip(Gossip((record(A, state=state, version=4),), ()), 1.0)
    assert membership.me == record(A, version=5)
    ((node, gossip),) = sent(outbox)
    assert node == B
    assert isinstance(gossip, Gossip)
    assert record(A, version=5) in gossip.members


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (record(A, incarnation=2, state=DEAD), "of a later life, which is another process's word"),
        (record(A, incarnation=0, version=9, state=DEAD), "of an earlier life"),
        (record(A, version=0, state=DEAD), "an old version"),
        (record(A, version=VERSION_PAST - 1, state=DEAD), "a version after which there is none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_refuted(said: MemberRecord, why: str) -> None:
    membership, outbox = view()
    connect(membership, record(B))
    outbox.drain()
    membership.receive_gossip(Gossip((said,), ()), 1.0)
    assert membership.me == record(A)
    assert sent(outbox) == []


def test_who_has_left_does_not_refute_it() -> None:
    membership, outbox = view(record(B))
    connect(membership, record(B))
    outbox.drain()
    membership.leave(1.0)
    ((_, gossip),) = sent(outbox)
    assert isinstance(gossip, Gossip)
    assert gossip.members[0] == record(A, version=2, state=LEFT)
    membership.receive_gossip(Gossip((record(A, version=3, state=DEAD),), ()), 2.0)
    assert membership.me.state == LEFT


@pytest.mark.parametrize(("state", "told"), [(LEFT, "left"), (DEAD, "lost")])
def test_the_end_of_a_member_is_told_to_all(state: str, told: str) -> None:
    membership, outbox = view(record(B), record(C))
    connect(membership, record(B), record(C))
    outbox.drain()
    membership.peer_disconnected(B, 5.0)
    assert membership.record(B) == record(B)  # that its link is down says nothing yet
    membership.declare(B, 1, state, 5.0)
    effects = outbox.drain()
    assert membership.record(B) == record(B, state=state)
    assert [node for node, _ in sent(effects)] == [C]
    assert [tell.text.split()[-1] for tell in of_kind(effects, Tell)] == [told]
    assert [each.node for each in membership.living()] == [A, C]


@pytest.mark.parametrize("state", [LEFT, DEAD])
def test_the_end_of_an_old_life_says_nothing_of_the_new_life(state: str) -> None:
    membership, _ = view(record(B))
    connect(membership, record(B))
    membership.receive_gossip(Gossip((record(B, incarnation=2),), ()), 1.0)
    membership.peer_disconnected(B, 2.0)
    membership.declare(B, 1, state, 2.0)
    assert membership.record(B) == record(B, incarnation=2)


def test_a_heartbeat_is_answered_where_the_views_differ() -> None:
    one, outbox = view(record(B))
    same, _ = view(record(A), me=record(B))
    one.receive_heartbeat(B, same.heartbeat(0, 0))
    assert sent(outbox) == []
    different, _ = view(record(A), record(C), me=record(B))
    one.receive_heartbeat(B, different.heartbeat(0, 0))
    ((node, gossip),) = sent(outbox)
    assert (node, gossip) == (B, Gossip((record(A), record(B)), ()))


def test_models_are_known_by_gossip_up_to_a_limit() -> None:
    membership, _ = view()
    models = [FakeModel(f"model {number}").facts for number in range(MODELS_MAX + 3)]
    membership.receive_gossip(Gossip((), tuple(models[:1])), 3.0)
    assert membership.changed_at == 3.0
    membership.receive_gossip(Gossip((), tuple(models[:1])), 4.0)
    assert membership.changed_at == 3.0
    membership.receive_gossip(Gossip((), tuple(models)), 5.0)
    assert list(membership.models) == [model.root for model in models[:MODELS_MAX]]


def test_a_model_offered_here_is_known() -> None:
    membership = Membership(record(A, model_root=MODEL.facts.root), MODEL.facts, Outbox())
    assert membership.models == {MODEL.facts.root: MODEL.facts}


def test_there_is_a_limit_to_members_that_no_known_one_feels() -> None:
    membership, _ = view(*(record(node_id(n)) for n in range(2, MEMBERS_MAX + 50)))
    assert len(membership.records()) == MEMBERS_MAX
    last = membership.records()[-1]
    membership.receive_gossip(Gossip((last._replace(state=DEAD),), ()), 1.0)
    assert membership.records()[-1].state == DEAD


def dials(membership: Membership, outbox: Outbox, seconds: float) -> list[tuple[float, Address]]:
    """Let timers run for a while; return who was dialled and when."""
    done = []
    while (now := membership.next_timer()) <= seconds:
        membership.handle_timer(now)
        done += [(now, dial.address) for dial in of_kind(outbox.drain(), Dial)]
    return done


def test_living_members_without_a_link_are_dialled_again_and_again() -> None:
    membership, outbox = view(record(B), record(C))
    connect(membership, record(C))
    outbox.drain()
    assert dials(membership, outbox, 5.0) == [
        (at * REDIAL_S, Address("10.0.0.2", 7711)) for at in range(3)
    ]
    connect(membership, record(B))
    assert dials(membership, outbox, 20.0) == []


def test_who_is_dead_is_dialled_rarely_and_who_left_never() -> None:
    membership, outbox = view(record(B), record(C))
    connect(membership, record(B), record(C))
    for node, state in ((B, DEAD), (C, LEFT)):
        membership.peer_disconnected(node, 100.0)
        membership.declare(node, 1, state, 100.0)
    outbox.drain()
    assert dials(membership, outbox, 125.0) == [
        (at, Address("10.0.0.2", 7711))
        for at in (100.0, 100.0 + REDIAL_DEAD_S, 100.0 + 2 * REDIAL_DEAD_S)
    ]


def test_whom_another_member_reaches_is_dialled_seldom_until_there_is_a_link() -> None:
    membership, outbox = view(record(B), record(C))
    connect(membership, record(C))
    membership.peer_disconnected(B, 100.0)
    membership.peer_connected(B, relayed=True)
    assert membership.connected() == [B, C]
    outbox.drain()
    assert dials(membership, outbox, 125.0) == [
        (at, Address("10.0.0.2", 7711))
        for at in (100.0, 100.0 + REDIAL_RELAYED_S, 100.0 + 2 * REDIAL_RELAYED_S)
    ]
    connect(membership, record(B))
    assert dials(membership, outbox, 160.0) == []


def test_heartbeats_are_a_second_apart() -> None:
    membership, _ = view()
    assert membership.is_heartbeat_due(0.0)
    membership.handle_timer(0.0)
    assert not membership.is_heartbeat_due(HEARTBEAT_S - 0.01)
    assert membership.next_timer() == HEARTBEAT_S


def test_names_for_people() -> None:
    membership, _ = view(record(B))
    assert membership.name(B) == "n2"
    assert membership.name("0123456789abcdef" * 2) == "01234567"


def test_joining_is_told_once() -> None:
    outbox = Outbox()
    membership = Membership(record(A), None, outbox)
    for now, said in enumerate(
        [record(B), record(B, version=2), record(B, incarnation=2), record(B, incarnation=2)]
    ):
        membership.receive_gossip(Gossip((said,), ()), float(now))
    texts = [tell.text for tell in of_kind(outbox.drain(), Tell)]
    assert texts == ["n2 joined from 10.0.0.2"]
    assert [each.state for each in membership.living()] == [ALIVE] * 2


def test_a_device_elsewhere_with_the_same_identity_is_told_of_once() -> None:
    me = record(A, incarnation=7)
    membership, outbox = view(record(B), me=me)
    copied = record(A, incarnation=3, host="10.9.9.9")
    quiet = [
        me,
        copied._replace(state=DEAD),
        copied._replace(host=me.host),  # this device itself, before it started again
        record(A, incarnation=9, host="10.9.9.9"),  # that one is told, and ends
    ]
    membership.receive_gossip(Gossip(tuple(quiet), ()), 1.0)
    assert of_kind(outbox.drain(), Tell) == []
    for _ in range(2):
        membership.receive_gossip(Gossip((copied,), ()), 2.0)
    (told,) = of_kind(outbox.drain(), Tell)
    assert "10.9.9.9:7711" in told.text
    assert membership.me == me
