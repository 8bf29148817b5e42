"""Real links of a known width: the mesh finds out what they carry, and says so."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hosts import GREEDY, PROMPT, Mesh
from network import Bridge
from offers import offer_for_two_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEGABITS = 16
BYTES_PER_S = MEGABITS * 125_000
NARROWER = pytest.approx(BYTES_PER_S, rel=0.25)  # headers below UDP do not count


def rates(status: dict[str, Any]) -> list[int | None]:
    stages = [node for node in status["nodes"] if node["layers"][0] < node["layers"][1]]
    return [node["measured"]["link_bytes_per_s"] for node in stages]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root and tc")
def test_a_mesh_by_speed_finds_out_what_its_links_carry(
    tmp_path: Path, model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    bridge = Bridge()
    with Mesh(bridge, tmp_path) as mesh:
        one, two, guest = mesh.host(), mesh.host(), mesh.host()
        for host in (one, two):
            bridge.narrow(host.place, MEGABITS)
        options = ["--ram", offer_for_two_bytes(model), "--threads", 1]
        one.join(*mesh.at(one), *options, "--model", model, "--split", "speed")
        two.join(*mesh.at(two), *options)
        status = mesh.wait(guest, lambda status: len(rates(status)) == 2 and all(rates(status)))
        assert rates(status) == [NARROWER, NARROWER]
        answer = mesh.ask(guest, PROMPT, "--json", *GREEDY).json
        assert answer["tokens"] == expected(*GREEDY)["tokens"]
        plan = guest.run("plan", *mesh.towards(), "--json").json
        assert [stage["link_bytes_per_s"] for stage in plan["stages"]] == [NARROWER, NARROWER]
        shown = guest.run("status", *mesh.towards()).stdout
        assert shown.count("Mbit/s") == 2, shown
        assert "Mbit/s" in guest.run("plan", *mesh.towards()).stdout
        bench = guest.run("bench", "--mesh", "--tokens", 8, "--json", *mesh.towards()).json
        assert [stage["megabits_per_second"] for stage in bench["stages"]] == [
            pytest.approx(MEGABITS, rel=0.25)
        ] * 2
