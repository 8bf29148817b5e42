"""tools/simulate.py replays a seed in lines that a person can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "simulate.py"


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", ["link", "lives", "mesh", "rough"])
def test_a_seed_is_told_in_lines_the_same_each_time(kind: str) -> None:
    done = simulate("--kind", kind, "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert all(" s  ** " in line for line in lines)
    assert any("all is well again" in line for line in lines)
    assert last.startswith(f"kept  {kind} seed 3: ")
    assert simulate("--kind", kind, "--seed", "3").stdout == done.stdout


def test_every_datagram_can_be_told() -> None:
    told = simulate("--seed", "3", "--packets").stdout
    for words in ("initiation, 1200 bytes", "response", "ping", "acknowledges", "part 1/", "lost"):
        assert words in told
    assert "Traceback" not in told


def test_many_seeds_are_counted_and_a_soak_ends() -> None:
    done = simulate("--seeds", "3", "--first", "7")
    assert "3 scenarios" in done.stdout
    assert "0 broken" in done.stdout
    soaked = simulate("--soak", "3000")
    assert soaked.returncode == 0
    assert int(soaked.stdout.split("scenarios, ")[1].split()[0]) >= 3000


def test_a_broken_promise_is_told_with_its_seed_and_exit_code_1() -> None:
    program = (
        "import sys; sys.argv = ['simulate.py', '--seed', '5'];"
        f"sys.path.insert(0, {str(TOOL.parent)!r});"
        "from edgellama.link.outbox import Outbox;"
        "Outbox.lost = lambda self, piece, packet_number: False;"
        "import simulate; sys.exit(simulate.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "BROKEN  link seed 5:" in done.stdout
    assert "Traceback" not in done.stderr
