"""A model of 1.1 billion parameters on three devices of which none may hold it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hosts import Host, Mesh, Status
from network import best_network, memory_controller
from timed_asking import TimedAsking

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
OPTIONS = ("--json", "--raw", "-n", 6, "--temperature", 0, "--ignore-eos")
PROMPT = "one two three"

RAM = "300M"  # the share that a node offers; the file has about 620 MB
CONTEXT = 256
OVERHEAD_BYTES = 150 * 10**6  # interpreter, kernels, scratch: docs/measurements/mesh.md
TIGHT_RAM = "245M"
TIGHT_BYTES = 400 * 2**20  # the share and the interpreter: less than the layers of two plans
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
    assert [host.kills_for_memory() for host in members] == [0] * 3
    one = alone.run("ask", "--model", large_model, *OPTIONS, PROMPT).json
    assert answer["tokens"] == one["tokens"]
    for host in members:
        assert host.leave().code == 0


def test_a_change_of_plans_in_the_middle_of_an_answer_takes_no_more_than_was_offered(
    limited: Mesh, large_model: Path, alone: Host
) -> None:
    """A device leaves, the others prepare its layers while they compute with what they have."""
    members = [
        limited.join(*options, "--ram", TIGHT_RAM, "--context", CONTEXT, memory_bytes=TIGHT_BYTES)
        for options in (("--model", large_model), (), (), ())
    ]
    guest = limited.host()
    four = members_nodes(members, limited.wait_ready(guest, 4))
    asked = ("-n", 220, "--temperature", 0, "--ignore-eos")
    asking = TimedAsking(guest, *limited.of(members[0]), *asked, PROMPT)
    try:
        asking.wait_for(10)
        outcome = members[-1].leave()
        assert "leaving at once" not in outcome.stdout
        assert not asking.heard.reason, "the answer was done before the others had taken over"
        heard = asking.end()
    finally:
        asking.kill()
    assert heard.code == 0, heard
    one = alone.run("ask", "--model", large_model, "--json", *asked, PROMPT).json
    assert heard.tokens == one["tokens"]
    three = members_nodes(members[:-1], limited.wait_ready(guest, 3))
    assert layers_of(three) == layers_of(four)
    assert [host.kills_for_memory() for host in members[:-1]] == [0] * 3
    for host in members[:-1]:
        assert host.leave().code == 0


def layers_of(nodes: list[dict[str, Any]]) -> int:
    """Return how many layers these hold together."""
    return sum(past - first for first, past in (node["layers"] for node in nodes))


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
