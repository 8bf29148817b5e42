"""What does it bring to go on from what was computed? Waiting times of each turn of a conversation.

    python tools/measure_conversation.py [MODEL] [--turns 6] [--tokens 40] [--rounds 5]

A conversation with one device. Each turn is asked twice: as it comes, when the cache of the turn
before is there; and again after a question about something else, which takes the cache's place, so
that the whole prompt is read. The answers must be equal. The table on stdout stands in
docs/measurements/conversation.md.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgellama.demo import demo_model_path
from edgellama.net.paths import StatePaths
from edgellama.node.asking import LocalSettings, device_asker
from edgellama.node.mesh_benchmark import benchmark_ask
from edgellama.values import ASSISTANT, USER, Turn
from edgellama.wire.messages import Finished, Piece

if TYPE_CHECKING:
    from edgellama.node.asking import Asker

QUESTION = "And then the little girl saw"
OTHER = "42"


def asked(asker: Asker, prompt: str, history: list[Turn], tokens_max: int) -> tuple[str, Finished]:
    """Return the text of an answer, and its end."""
    told = benchmark_ask(tokens_max)
    ask = replace(told, raw=False, history=tuple(history), prompt=prompt)
    text, end = "", None
    for message in asker.answer(ask):
        if isinstance(message, Piece | Finished):
            text += message.text
        if isinstance(message, Finished):
            end = message
    assert end is not None
    return text, end


def conversation(asker: Asker, turns: int, tokens_max: int) -> list[tuple[int, int, int]]:
    """Return for each turn the prompt's tokens, and microseconds with and without the cache."""
    history: list[Turn] = []
    rows = []
    for _ in range(turns):
        text, warm = asked(asker, QUESTION, history, tokens_max)
        asked(asker, OTHER, [], 1)
        again, cold = asked(asker, QUESTION, history, tokens_max)
        assert text == again
        rows.append((len(warm.prompt_tokens), warm.prompt_us, cold.prompt_us))
        history += [Turn(USER, QUESTION), Turn(ASSISTANT, text)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, default=demo_model_path())
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=40, help="in each answer")
    parser.add_argument("--rounds", type=int, default=5, help="conversations, for the medians")
    arguments = parser.parse_args()
    local = LocalSettings(2, "numba", None)
    with device_asker(arguments.model, local, StatePaths.locate(), print) as asker:
        rounds = [
            conversation(asker, arguments.turns, arguments.tokens) for _ in range(arguments.rounds)
        ]
    print("| turn | tokens of the prompt | first token, cache kept | read anew | ratio |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for turn, rows in enumerate(zip(*rounds, strict=True), 1):
        warm, cold = (statistics.median(row[column] for row in rows) for column in (1, 2))
        times = f"{warm / 1e3:.1f} ms | {cold / 1e3:.1f} ms | {cold / warm:.1f}"
        print(f"| {turn} | {rows[0][0]} | {times} |")


if __name__ == "__main__":
    main()
