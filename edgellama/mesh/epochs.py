"""The numbers of plans, and what they say for people.

No two plans share a number, and a later plan has the greater.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.values import NodeId, Plan
    from edgellama.wire.messages import MemberRecord

LEADER_BITS: Final = 24  # of an epoch: whose it is; the bits above them count


def plan_number(epoch: int) -> int:
    """Return the number of a plan for a person: it counts up from 1."""
    return epoch >> LEADER_BITS


def epoch_after(seen: int, leader: MemberRecord) -> int:
    """Return an epoch above ``seen`` that no other leader, and no other life of it, would take.

    Steps are told apart by their epoch alone, so two plans must never share one.
    """
    return (plan_number(seen) + 1) << LEADER_BITS | _tag(leader)


def is_epoch_of(epoch: int, leader: MemberRecord) -> bool:
    """Return whether a plan's epoch was taken by this leader, in this life of it."""
    return epoch & ((1 << LEADER_BITS) - 1) == _tag(leader)


def _tag(leader: MemberRecord) -> int:
    life = f"{leader.node} {leader.incarnation}".encode()
    return int.from_bytes(hashlib.blake2b(life, digest_size=LEADER_BITS // 8).digest(), "big")


def plan_text(plan: Plan, name: Callable[[NodeId], str]) -> str:
    """Return who holds which layers, for people."""
    return ", ".join(
        f"{name(each.node)} layers {each.span.first} to {each.span.past - 1}"
        if each.span.layers
        else f"{name(each.node)} no layers"
        for each in plan.stages
    )
