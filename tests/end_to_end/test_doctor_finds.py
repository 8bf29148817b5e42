"""What doctor says of faults that are really there: each device is a network namespace."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hosts import Host, Mesh
from network import Bridge, no_bridge_because, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(bool(no_bridge_because()), reason=str(no_bridge_because()))

DEAF = """table netdev deaf {
 chain input {
  type filter hook ingress device "wlan0" priority 0
  ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 meta protocol ip drop
 }
}
"""
SHUT = """table inet shut {
 chain input {
  type filter hook input priority 0; policy drop;
  ct state established accept
  iifname "lo" accept
 }
}
"""


@pytest.fixture(scope="module")
def network(
    tmp_path_factory: pytest.TempPathFactory, model: Path, expected: object
) -> Iterator[Mesh]:
    """Two devices in a mesh."""
    with Mesh(Bridge(), tmp_path_factory.mktemp("doctor")) as mesh:
        one, two = mesh.host(), mesh.host()
        one.join("--model", model, "--ram", "12M", "--name", "one")
        two.join("--ram", "11M", "--name", "two")
        mesh.wait_ready(one, 2)
        yield mesh


def rules(mesh: Mesh, host: Host, text: str) -> None:
    name = mesh.network.hosts[mesh.hosts.index(host)]  # type: ignore[attr-defined]
    run(f"ip netns exec {name} nft flush ruleset")
    if text:
        run(f"ip netns exec {name} nft -f -", input=text)


def visit(host: Host, code: int, *options: str) -> dict[str, dict[str, Any]]:
    """Return the worst finding of each check; the exit code must be this."""
    outcome = host.run("doctor", "--json", *options)
    assert outcome.code == code, outcome
    checks = outcome._replace(code=0).json["checks"]
    order = ["ok", "warn", "fail"]
    return {each["check"]: each for each in sorted(checks, key=lambda e: order.index(e["level"]))}


def test_a_sound_mesh_is_well_beside_join(network: Mesh) -> None:
    checks = visit(network.hosts[0], 0)
    assert checks["multicast"]["level"] == "ok"
    assert checks["mesh"]["level"] == "ok"
    assert "two" in checks["mesh"]["text"]
    assert checks["clock"]["level"] == checks["versions"]["level"] == "ok"


def test_multicast_that_is_filtered(network: Mesh) -> None:
    two = network.hosts[1]
    rules(network, two, DEAF)
    checks = visit(two, 1)
    rules(network, two, "")
    assert checks["multicast"]["level"] == "fail"
    assert "multicast" in checks["firewall"]["text"]
    assert checks["mesh"]["level"] == "ok"  # unicast goes through


def test_a_firewall_that_is_shut(network: Mesh) -> None:
    two = network.hosts[1]
    rules(network, two, SHUT)
    checks = visit(two, 1)
    rules(network, two, "")
    assert checks["firewall"]["level"] == "fail"
    assert "drops by default" in checks["firewall"]["text"]


def test_a_copied_home_folder_is_seen_by_doctor_and_by_the_mesh(
    tmp_path: Path, model: Path
) -> None:
    with Mesh(Bridge(), tmp_path / "copies") as mesh:
        one, other = mesh.host(), mesh.host()
        one.join("--model", model, "--ram", "12M", "--name", "one")
        mesh.wait_ready(one, 1)
        ignored = shutil.ignore_patterns("lock", "run.json", "data", "cache")
        shutil.copytree(one.folder / "home", other.folder / "home", ignore=ignored)
        other.join("--ram", "11M", "--name", "copy")
        outcome = one.ended(60)
        outcome.refuses(1, "has this device's identity")
        assert visit(one, 1)["identity"]["level"] == "fail"


def test_a_copied_home_folder_is_seen_without_multicast(tmp_path: Path, model: Path) -> None:
    with Mesh(Bridge(), tmp_path / "far") as mesh:
        hub, one, other = (mesh.host() for _ in range(3))
        hub.join("--model", model, "--ram", "12M", "--name", "hub", "--no-mdns")
        by_hub = ["--no-mdns", "--peer", hub.place.address]
        one.join("--ram", "11M", "--name", "one", *by_hub)
        mesh.wait(hub, lambda status: len(status["nodes"]) == 2)
        ignored = shutil.ignore_patterns("lock", "run.json", "data", "cache")
        shutil.copytree(one.folder / "home", other.folder / "home", ignore=ignored)
        other.join("--ram", "11M", "--name", "copy", *by_hub)
        one.ended(60).refuses(1, "has this device's identity")
        mesh.wait(hub, lambda status: "copy" in [node["name"] for node in status["nodes"]])
        assert f"a device at {one.place.address}:7711 took part with this" in other.said()
        assert visit(one, 1, *by_hub[1:])["identity"]["level"] == "fail"
