"""Hidden states in half their bytes: said by the status, fewer on the wire, the same each time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_writing import random_model
from hosts import GREEDY, PROMPT, SAMPLED, Host, Mesh

if TYPE_CHECKING:
    from pathlib import Path

# The model needs 22.6 MiB with its KV cache: either offer is too small alone.
OFFERS = ("--ram", "22M")


def test_a_q8_link_carries_fewer_bytes_and_answers_alike_each_time(
    mesh: Mesh, alone: Host, tmp_path: Path
) -> None:
    model = random_model(tmp_path / "small.gguf", "small", "Q4_0")
    asking = ("--json", "--ignore-eos")
    first = mesh.join("--model", model, *OFFERS)
    second = mesh.join(*OFFERS)
    exact = mesh.wait_ready(first, 2)
    assert exact["exact"]
    assert [node["activations"] for node in exact["nodes"]] == ["f16", "f16"]
    whole: dict[str, Any] = mesh.ask(first, PROMPT, *asking, *GREEDY).json
    by_itself = alone.run("ask", "--model", model, *asking, *GREEDY, PROMPT).json
    assert whole["tokens"] == by_itself["tokens"]
    second.leave()
    second.join(*mesh.at(second), *OFFERS, "--wire", "q8")
    lossy = mesh.wait_ready(first, 2)
    assert not lossy["exact"]
    assert [node["activations"] for node in lossy["nodes"]] == ["q8", "q8"]
    assert "q8" in first.run("status", *mesh.towards()).stdout
    for options in (GREEDY, SAMPLED):
        answers = [mesh.ask(first, PROMPT, *asking, *options).json for _ in range(2)]
        assert answers[0]["tokens"] == answers[1]["tokens"]
        assert len(answers[0]["tokens"]) == 40
        assert len(answers[0]["route"]) == 2
        for answer in answers:
            assert answer["wire"]["bytes_sent"] < 0.85 * whole["wire"]["bytes_sent"]
