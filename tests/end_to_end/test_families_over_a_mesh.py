"""A model of every family, split over two or three devices, answers as one device does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf_writing
import pytest
from hosts import GREEDY, PROMPT, SAMPLED, Host, Mesh
from network import Loopback

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = [
    ("tiny-llama-3.1", "Q4_K_M", 2),
    ("tiny-qwen2", "Q8_0", 2),
    ("tiny-qwen3", "Q4_0", 2),
    ("small-qwen3moe", "Q4_K_M", 3),
    ("tiny-gemma3", "Q8_0", 3),
    ("tiny-phi3-long", "F16", 2),
]


@pytest.mark.parametrize(("shape", "kind", "devices"), FAMILIES, ids=[x[0] for x in FAMILIES])
def test_a_split_family_answers_as_one_device(
    tmp_path: Path, alone: Host, shape: str, kind: str, devices: int
) -> None:
    """The other devices have no file: header, layers and RoPE's factors reach them by the mesh."""
    path = gguf_writing.random_model(tmp_path / f"{shape}.gguf", shape, kind)
    prompt = (PROMPT + " ") * 6  # beyond a window, and some tokens for each expert
    one = [
        alone.run("ask", "--model", path, "--json", *how, prompt).json for how in (GREEDY, SAMPLED)
    ]
    with Mesh(Loopback(), tmp_path / "mesh") as mesh:
        first = mesh.join("--model", path, "--ram", "300M")
        others = [mesh.join("--ram", "300M") for _ in range(devices - 1)]
        guest = mesh.host()
        mesh.wait_ready(guest, devices)
        for expected, how in zip(one, (GREEDY, SAMPLED), strict=True):
            answer = mesh.ask(guest, prompt, "--json", *how).json
            assert answer["tokens"] == expected["tokens"]
            assert answer["text"] == expected["text"]
        for host in (*others, first):
            assert host.leave().code == 0
