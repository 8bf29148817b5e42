"""How each link of a plan carries hidden states: exactly, unless a person wants it otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.values import WIRE_F16, WIRE_Q8

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgellama.values import NodeId, StagePlacement


def wires_of(stages: Sequence[StagePlacement], asked: Mapping[NodeId, str]) -> tuple[str, ...]:
    """Return for each stage how it sends its rows on to the next one; empty where all are exact.

    ``asked`` is what a person said on each device, empty where nobody did. A link is q8 where one
    of its ends asks for it and the other does not insist on f16.
    """
    if len(stages) < 2:
        return ()  # nothing travels
    wires = tuple(
        wire_between(asked.get(stage.node, ""), asked.get(following.node, ""))
        for stage, following in zip(stages, [*stages[1:], stages[0]], strict=True)
    )
    return wires if WIRE_Q8 in wires else ()


def wire_between(one: str, other: str) -> str:
    """Return what a link carries whose ends ask for ``one`` and ``other``."""
    said = {one, other}
    return WIRE_Q8 if WIRE_Q8 in said and WIRE_F16 not in said else WIRE_F16
