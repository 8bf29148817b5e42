"""Whom devices have their weights from, in real meshes that change."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hosts import GREEDY, PROMPT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from hosts import Host, Mesh

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
SHARE = re.compile(r"([\d.]+) (B|KiB|MiB) from (\w+) \(")


def fetched(*hosts: Host) -> dict[str, float]:
    """Return how many bytes of layers these devices say they had from whom, in all their lives."""
    found: dict[str, float] = {}
    for host in hosts:
        for path in host.folder.glob("join-*.stdout"):
            for line in path.read_text().splitlines():
                for size, unit, name in SHARE.findall(line) if line.startswith("fetched ") else []:
                    found[name] = found.get(name, 0) + float(size) * UNITS[unit]
    return found


def test_the_model_leaves_the_device_with_the_file_once(
    mesh: Mesh, model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    """One device after the other comes: layers move, and go from peer to peer."""
    laptop = mesh.join("--model", model, "--ram", "300M", "--name", "laptop")
    guest = mesh.host()
    others = []
    for name, ram in (("pi", "900M"), ("phone", "600M"), ("tablet", "500M")):
        others.append(mesh.join("--ram", ram, "--name", name))
        mesh.wait_ready(guest, 1 + len(others))
    shares = fetched(*others)
    # Sizes are told in three digits.
    assert 0 < shares["laptop"] <= model.stat().st_size * 1.02
    assert sum(shares.values()) > shares["laptop"]
    assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["text"] == expected(*GREEDY)["text"]
    assert laptop.leave().code == 0
