"""Offers of memory that make a mesh split the model as a test wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.mesh.wishes import CONTEXT_DEFAULT
from edgellama.model.cost import model_facts
from edgellama.model.gguf import GgufFile
from edgellama.node.member import SESSIONS_MAX
from edgellama.plan.ram import Requirements, stage_bytes
from edgellama.values import Span

if TYPE_CHECKING:
    from pathlib import Path


def offer_for_two_bytes(model: Path) -> int:
    """Return an offer of which two hold the model and one cannot, not even beside a bare home."""
    with GgufFile.open(model) as gguf:
        facts = model_facts(gguf, "00" * 32, model.stem)
    context = min(facts.context_max, CONTEXT_DEFAULT)
    requirements = Requirements(context, SESSIONS_MAX)

    def stage(first: int, past: int) -> int:
        return stage_bytes(facts, Span(first, past), first == 0, requirements)

    def beside_bare_home(past: int) -> int:
        return stage_bytes(facts, Span(0, past), False, requirements)

    cuts = range(1, facts.layers)
    shares = min(max(stage(0, cut), stage(cut, facts.layers)) for cut in cuts)
    return (shares + beside_bare_home(facts.layers)) // 2
