"""Keys and values as int8: the whole mesh keeps them alike, and answers as one device would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hosts import GREEDY, PROMPT, SAMPLED, Mesh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Q8 = ("--kv", "q8")


def test_one_device_decides_for_all(
    mesh: Mesh, model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    """Neither backend nor split shows; a device that wants it otherwise is told."""
    mesh.join("--model", model, "--ram", "500M", *Q8, "--backend", "numba")
    mesh.join("--ram", "500M", "--backend", "numpy")
    guest = mesh.host()
    mesh.wait_ready(guest, 2)
    late = mesh.join("--ram", "500M", "--kv", "f16")
    status = mesh.wait_ready(guest, 3)
    assert status["kv"] == "q8"
    for options in (GREEDY, SAMPLED):
        answer = mesh.ask(guest, PROMPT, "--json", *options).json
        assert answer["tokens"] == expected(*options, *Q8)["tokens"]
        assert len(answer["route"]) == 3
    assert "keeps keys and values as q8" in late.leave().stdout


def test_the_kind_shows_in_an_answer(expected: Callable[..., dict[str, Any]]) -> None:
    """Else the test above would prove nothing."""
    assert expected(*SAMPLED, *Q8)["tokens"] != expected(*SAMPLED)["tokens"]
