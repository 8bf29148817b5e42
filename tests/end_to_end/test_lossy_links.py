"""Hidden states in half of their bytes: the answer is that of the split, whoever computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hosts import PROMPT, Mesh
from lossy_answers import DRAWN, INT8, LOSSY, answer_by_hand

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_two_devices_answer_as_their_split_does(
    loopback_mesh: Mesh, model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    mesh = loopback_mesh
    options = ("--ram", "500M", "--name")
    own = mesh.join("--model", model, *options, "laptop", "--backend", "numba", *LOSSY)
    mesh.join(*options, "pi", "--backend", "numpy", *LOSSY)
    status = mesh.wait_ready(own, 2)
    assert not status["exact"]
    home = next(node["name"] for node in status["nodes"] if node["home"])
    answer = mesh.ask(own, PROMPT, "--json", *DRAWN).json
    assert len(answer["route"]) == 2
    prompt = answer["prompt_tokens"]
    assert answer["tokens"] == answer_by_hand(model, home, answer["route"], prompt)
    alone = expected(*INT8, *DRAWN)["tokens"]
    assert answer["tokens"] != alone, "nothing was lost, and so nothing is shown"
