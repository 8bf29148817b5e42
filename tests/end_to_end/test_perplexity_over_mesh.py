"""Perplexity over a mesh: the very numbers of a single device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from hosts import Host, Mesh

TEXT = "Once upon a time, there was a little girl named Lily. She loved to play outside. " * 20


def measured(host: Host, *options: object) -> dict[str, Any]:
    outcome = host.run("perplexity", "--json", *options)
    result: dict[str, Any] = outcome.json
    return result


def test_the_numbers_of_a_mesh_are_those_of_a_device(
    mesh: Mesh, alone: Host, model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    first = mesh.join("--model", model, "--ram", "300M", "--context", 200)
    mesh.join("--ram", "300M")
    mesh.wait_ready(first, 2)
    guest = mesh.host()
    for options in (("--context", 100, "--chunks", 3), ("--context", 200)):
        over_mesh = measured(guest, *mesh.towards(), *options, text)
        assert over_mesh == measured(alone, "--model", model, *options, text)
        assert over_mesh["chunks"] >= 2
    # Without --context it is the mesh's, as that is below 512.
    assert measured(guest, *mesh.towards(), "--chunks", 1, text)["context"] == 200

    perplexity = ("perplexity", *mesh.towards())
    guest.run(*perplexity, "--context", 201, text).refuses(2, "201 tokens", "context of 200")
    guest.run(*perplexity, "--kv", "q8", text).refuses(2, "--kv", "--model")
    short = tmp_path / "short.txt"
    short.write_text("Once")
    guest.run(*perplexity, short).refuses(2, "less than one chunk of 200")


def test_without_a_mesh(alone: Host, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    alone.run("perplexity", "--peer", "127.0.0.1:9", text).refuses(3, "no device of a mesh")
