"""A model of 1.1 billion parameters on three devices of which none may hold it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hosts import Host, Mesh, Status
from network import best_network, memory_controller

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
OPTIONS = ("--json", "--raw", "-n", 6, "--temperature", 0, "--ignore-eos")
PROMPT = "one two three"

RAM = "300M"  # the share that a node offers; the file has about 620 MB
CONTEXT = 256
OVERHEAD_BYTES = 150 * 10**6  # interpreter, kernels, scratch: docs/measurements/mesh.md
LIMIT_BYTES = 512 * 2**20  # of the whole process: share, interpreter, kernels, transfer


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the random model; it is large, so it goes as soon as the tests are over."""
    path = tmp_path_factory.mktemp("large") / "random-1.1b.gguf"
    make = [sys.executable, ROOT / "tools" / "make_random_model.py"]
    shape = ["--shape", "tinyllama-1.1b", "--type", "Q4_0"]
    subprocess.run([*make, *shape, path], check=True, capture_output=True)
    yield path
    path.unlink()


@pytest.fixture
def limited(tmp_path: Path, expected: object) -> Iterator[Mesh]:
    """Return a mesh; the hosts of these tests have a limit on their memory."""
    if memory_controller() is None:
        pytest.skip("memory limits need root and a cgroup version 1 memory controller")
    with Mesh(best_network(), tmp_path / "mesh") as mesh:
        yield mesh


def test_one_device_alone_refuses(limited: Mesh, large_model: Path) -> None:
    member = limited.join("--model", large_model, "--ram", RAM, memory_bytes=LIMIT_BYTES)
    guest = limited.host()
    limited.wait(guest, lambda status: len(status["nodes"]) == 1)
    limited.ask(guest, PROMPT).refuses(3, "bytes")
    assert member.leave().code == 0


def test_three_devices_answer(
    limited: Mesh,
    large_model: Path,
    alone: Host,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The text is that of a device with memory for all; no node holds weights twice."""
    members = [
        limited.join(*options, "--ram", RAM, "--context", CONTEXT, memory_bytes=LIMIT_BYTES)
        for options in (("--model", large_model), (), ())
    ]
    guest = limited.host()
    status = limited.wait_ready(guest, 3)
    assert status["model"]["bytes"] > LIMIT_BYTES
    answer = limited.ask(guest, PROMPT, *OPTIONS).json
    assert len({stage["node"] for stage in answer["route"]}) == 3
    shares, overheads = shares_bytes(alone, large_model), []
    for host, node in zip(members, members_nodes(members, status), strict=True):
        memory, share = host.memory_bytes(), shares[tuple(node["layers"])]
        with capsys.disabled():
            figures = {"weights and KV cache": share, **memory}
            sizes = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in figures.items())
            sys.stdout.write(f"\nlayers {node['layers']}: {sizes}")
        overheads.append(memory["VmRSS"] - share)
    assert max(overheads) < OVERHEAD_BYTES
    one = alone.run("ask", "--model", large_model, *OPTIONS, PROMPT).json
    assert answer["tokens"] == one["tokens"]
    for host in members:
        assert host.leave().code == 0


def members_nodes(members: list[Host], status: Status) -> list[dict[str, Any]]:
    """Return what the status says of each member, in their order."""
    nodes = status["nodes"]
    if len({host.place.address for host in members}) < len(members):
        return sorted(nodes, key=lambda node: int(node["address"].rpartition(":")[2]))
    by_address = {node["address"].partition(":")[0]: node for node in nodes}
    return [by_address[host.place.address] for host in members]


def shares_bytes(alone: Host, model: Path) -> dict[tuple[int, ...], int]:
    """Return what each device's weights and KV cache take, by its layers."""
    ram = ",".join([RAM] * 3)
    options = ("--model", model, "--ram", ram, "--context", CONTEXT, "--json")
    stages = alone.run("plan", *options).json["stages"]
    return {tuple(stage["layers"]): stage["weights_bytes"] + stage["kv_bytes"] for stage in stages}
