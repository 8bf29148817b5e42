"""What was said on both sides, as a model reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.values import SYSTEM, USER, Turn

if TYPE_CHECKING:
    from collections.abc import Sequence


def conversation(system: str, history: Sequence[Turn], prompt: str) -> list[Turn]:
    """Return the messages that a chat template is given; an empty ``system`` is left out."""
    return [*([Turn(SYSTEM, system)] if system else []), *history, Turn(USER, prompt)]


def continued(history: Sequence[Turn], prompt: str) -> str:
    """Return the text that a model without a chat template continues: a line for each turn."""
    return "\n".join([*(turn.content for turn in history), prompt])
