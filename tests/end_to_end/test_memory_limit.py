"""A model of 1.1 billion parameters on three devices of which none may hold it alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hosts import Host, Mesh
from network import best_network, memory_controller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
OPTIONS = ("--json", "--raw", "-n", 6, "--temperature", 0, "--ignore-eos")
PROMPT = "one two three"

RAM = "300M"  # the share that a node offers; the file has about 620 MB
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
    record_property: Callable[[str, object], None],
) -> None:
    members = [
        limited.join(*options, "--ram", RAM, "--context", 256, memory_bytes=LIMIT_BYTES)
        for options in (("--model", large_model), (), ())
    ]
    guest = limited.host()
    status = limited.wait_ready(guest, 3)
    answer = limited.ask(guest, PROMPT, *OPTIONS).json
    assert len({stage["node"] for stage in answer["route"]}) == 3
    one = alone.run("ask", "--model", large_model, *OPTIONS, PROMPT).json
    assert answer["tokens"] == one["tokens"]
    assert status["model"]["bytes"] > LIMIT_BYTES
    for host in members:
        peak_bytes = host.peak_resident_bytes()
        record_property(f"{host.folder.name}_resident_bytes", peak_bytes)
        assert peak_bytes < LIMIT_BYTES
    for host in members:
        assert host.leave().code == 0
