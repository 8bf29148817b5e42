"""Addresses that a person gave are dialled until somebody answers, and not after."""

from __future__ import annotations

from edgellama.mesh.effects import Dial, Outbox
from edgellama.mesh.membership import SEEDS_REDIAL_S, Membership
from edgellama.values import Address
from edgellama.wire.messages import ALIVE, MemberRecord

PEERS = [Address("10.0.0.2", 7711), Address("10.0.0.3", 7711)]


def record(node: str) -> MemberRecord:
    return MemberRecord(
        *(node * 32, 1, 1, ALIVE, node, "10.0.0.1", 7711, 7711, 1 << 20, 0, "numpy", "d"),
        *("", False, "0"),
    )


def dialled(outbox: Outbox) -> list[Address]:
    return [effect.address for effect in outbox.drain() if isinstance(effect, Dial)]


def test_a_peer_that_is_not_up_yet_is_dialled_again() -> None:
    outbox = Outbox()
    membership = Membership(record("a"), None, outbox)
    membership.seed([*PEERS, PEERS[0]])
    membership.handle_timer(100.0)
    assert dialled(outbox) == PEERS
    membership.handle_timer(100.0 + SEEDS_REDIAL_S - 0.1)
    assert dialled(outbox) == []
    assert membership.next_timer() <= 100.0 + SEEDS_REDIAL_S
    membership.handle_timer(100.0 + SEEDS_REDIAL_S)
    assert dialled(outbox) == PEERS


def test_a_node_with_a_link_dials_no_seeds() -> None:
    outbox = Outbox()
    membership = Membership(record("a"), None, outbox)
    membership.seed(PEERS)
    membership.peer_connected("b" * 32)
    membership.handle_timer(100.0)
    assert dialled(outbox) == []
