"""A device under a memory limit that offers what it finds: a model that just fits, or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hosts import Host, Mesh
from network import best_network, memory_controller

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOL = Path(__file__).parents[2] / "tools" / "make_random_model.py"
MIB = 1 << 20
CONTEXT = 512
PROMPT = "one two three"
OPTIONS = ("--json", "--raw", "-n", 8, "--ignore-eos")
TRIAL_LIMIT = 600 * MIB
MARGIN = 32 * MIB  # what is found differs by up to 13 MiB from start to start on a busy machine


@pytest.fixture(scope="module")
def barely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("barely") / "random.gguf"
    make = [sys.executable, TOOL, "--shape", "smollm-135m", "--layers", "20", "--type", "Q8_0"]
    subprocess.run([*make, path], check=True, capture_output=True)
    yield path
    path.unlink()


@pytest.fixture
def limited(tmp_path: Path, expected: object) -> Iterator[Mesh]:
    if memory_controller() is None:
        pytest.skip("memory limits need root and a cgroup version 1 memory controller")
    with Mesh(best_network(), tmp_path / "mesh") as mesh:
        yield mesh


def joined(mesh: Mesh, model: Path, limit_bytes: int) -> tuple[Host, int]:
    """Return a device that has joined under the limit, and what it offers."""
    host = mesh.join("--model", model, "--context", CONTEXT, memory_bytes=limit_bytes)
    status = mesh.wait(host, lambda status: len(status["nodes"]) == 1)
    return host, int(status["nodes"][0]["ram_bytes"])


def test_what_just_fits_answers_and_what_just_does_not_is_refused(
    limited: Mesh, barely: Path, alone: Host
) -> None:
    plan = alone.run("plan", "--model", barely, "--ram", "4G", "--context", CONTEXT, "--json").json
    need_bytes = int(plan["stages"][0]["used_bytes"])
    trial, offer_bytes = joined(limited, barely, TRIAL_LIMIT)
    assert trial.leave().code == 0
    # Of a limit 0.8 are offered.
    exact = TRIAL_LIMIT + (need_bytes - offer_bytes) * 10 // 8
    answer = alone.run("ask", "--model", barely, "--context", CONTEXT, *OPTIONS, PROMPT).json

    fits, offer_bytes = joined(limited, barely, exact + MARGIN)
    assert need_bytes <= offer_bytes < need_bytes + 2 * MARGIN
    limited.wait_ready(fits, 1)
    for _ in range(2):
        given = fits.run("ask", *limited.of(fits), *OPTIONS, PROMPT).json
        assert given["tokens"] == answer["tokens"]
    assert fits.kills_for_memory() == 0
    assert fits.leave().code == 0

    lacks, offer_bytes = joined(limited, barely, exact - 2 * MARGIN)
    assert need_bytes - 4 * MARGIN < offer_bytes < need_bytes
    refused = lacks.run("ask", *limited.of(lacks), *OPTIONS, PROMPT)
    refused.refuses(3, "bytes", "missing")
    assert lacks.kills_for_memory() == 0
    assert lacks.leave().code == 0
