"""``edgellama chat``: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from edgellama.cli.answering import Answering, answering, open_asker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellama.node.asking import Asker


@click.command(name="chat", short_help="Hold a conversation.")
@answering(None)
def command(answering: Answering) -> None:
    """Hold a conversation: each question brings along what was said before.

    A mesh is found by mDNS or --peer. With --model this device answers alone; without a mesh
    and a model, the little demo model inside the package does. /help lists what can be typed.
    Without a terminal each line of stdin is a question.
    """
    from edgellama.cli.dialogue import Dialogue
    from edgellama.cli.screen import Terminal, open_screen
    from edgellama.cli.typed_lines import TypedTexts, piped_texts
    from edgellama.net.paths import StatePaths

    screen = open_screen()
    is_terminal = isinstance(screen, Terminal)
    with open_asker(answering) as asker:
        dialogue = Dialogue(asker, answering, screen, is_patient=is_terminal)
        texts: Iterable[str] = piped_texts()
        if is_terminal:
            texts = TypedTexts(StatePaths.locate().typed, dialogue.commands, screen.note)
            screen.note(_welcome(asker))
        for text in texts:
            if not dialogue.take(text):
                return
    if is_terminal:
        sys.stdout.write("\n")


def _welcome(asker: Asker) -> str:
    status = asker.status()
    name = status.model[0].name if status.model else "no model yet"
    trouble = f" ({status.trouble})" if status.trouble else ""
    devices = sum(member.span.layers > 0 or member.home for member in status.members)
    where = f"on {devices} devices" if devices > 1 else "on one device"
    return f"{name} {where}, context {status.context}{trouble}; /help lists what can be typed"
