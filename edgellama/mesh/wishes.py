"""What members ask of a mesh when they join, and which of several wishes counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.plan.ram import Requirements
from edgellama.values import KV_F16

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.values import ModelFacts, NodeId
    from edgellama.wire.messages import MemberRecord

CONTEXT_DEFAULT: Final = 2048


def seniority(record: MemberRecord) -> tuple[int, NodeId]:
    """Return what is less for who has been here longer."""
    return record.incarnation, record.node


def wanted_split(staying: Sequence[MemberRecord], so_far: str) -> str:
    """Return what to split by: as the eldest member that asks for any, else as so far."""
    asked = [record for record in staying if record.split]
    return min(asked, key=seniority).split if asked else so_far


def wanted_kv_kind(living: Sequence[MemberRecord]) -> str:
    """Return how keys and values shall be kept: as the eldest member that asks for any."""
    asked = [record for record in living if record.kv_kind]
    return min(asked, key=seniority).kv_kind if asked else KV_F16


def wanted_room(
    staying: Sequence[MemberRecord], model: ModelFacts, sessions_usual: int, kv_kind: str
) -> Requirements:
    """Return for how much KV cache there must be room: what the most modest wish asks."""
    asked = [record.context for record in staying if record.context]
    context = min([*asked, model.context_max]) if asked else model.context_max
    context = context if asked else min(context, CONTEXT_DEFAULT)
    sessions_max = min(
        (record.sessions for record in staying if record.sessions), default=sessions_usual
    )
    return Requirements(context, sessions_max, kv_kind)
