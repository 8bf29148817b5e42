"""Measure what a token takes while a newcomer fetches its layers, beside what it takes alone.

Two devices answer, over and over, so that caches stay short and a token costs the same; then a
third one joins, gets layers and fetches them from the device with the file. Each is a real process
in a network namespace of its own, and sends no more than so many megabits a second. Prints one
Markdown line a rate. Linux, root, ``tc``.

    python tools/make_random_model.py --shape smollm-135m --type Q8_0 MODEL.gguf
    python tools/measure_beside.py --model MODEL.gguf --megabits 50,100,200,1000
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from edgellama.net.paths import StatePaths
from edgellama.node.asking import mesh_asker
from edgellama.node.mesh_benchmark import benchmark_ask
from edgellama.values import Address
from edgellama.wire.messages import Piece

NAME: Final = f"elbeside{os.getpid()}"
PORT: Final = 7711
READY_WAIT_S: Final = 120.0
FETCH_WAIT_S: Final = 120.0
FIRST_TOKENS: Final = 8  # of each answer: they follow the prompt
POLL_S: Final = 0.02
BLOCK_BYTES: Final = 512  # what st_blocks counts
HEADLINE: Final = (
    "| Mbit/s | fetched | in | alone p50, p99, longest | beside p50, p99, longest | ratios |"
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--ram", default="330M", help="what each device offers")
    parser.add_argument("--megabits", default="50,100,200,1000")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=300, help="of each answer")
    parser.add_argument("--alone", type=float, default=12.0, help="seconds before the third joins")
    parser.add_argument("--asks", action="store_true", help=argparse.SUPPRESS)  # the part that asks
    arguments = parser.parse_args()
    if arguments.asks:
        _print_gaps(arguments.tokens)
        return
    with tempfile.TemporaryDirectory(prefix="edgellama-kernels-") as compiled:
        # Devices share what is compiled: the third shall fetch layers, not compile meanwhile.
        os.environ.setdefault("NUMBA_CACHE_DIR", compiled)
        print(HEADLINE)
        print("|---|---|---|---|---|---|")
        for megabits in arguments.megabits.split(","):
            print(_line(arguments, int(megabits)), flush=True)


def _line(arguments: argparse.Namespace, megabits: int) -> str:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(_remove)
        for number in range(4):
            _add_host(number, megabits)
        nodes = [_join(arguments, folder, number) for number in (1, 2)]
        stack.callback(_end, nodes)
        _wait_ready()
        told = stack.enter_context((folder / "gaps").open("w"))
        asks = [sys.executable, __file__, "--asks", "--tokens", str(arguments.tokens)]
        asker = subprocess.Popen([*_inside(1), *asks], stdout=told)
        stack.callback(asker.wait)
        stack.callback(asker.kill)
        time.sleep(arguments.alone)
        joined_at = time.perf_counter()
        nodes.append(_join(arguments, folder, 3))
        began, ended, fetched = _fetch(folder / "3")
        lines = (folder / "gaps").read_text().splitlines()[:-1]  # the last may be half a line
    gaps = [(float(came), float(gap_ms)) for came, gap_ms in map(str.split, lines)]
    alone = _spread([gap_ms for came, gap_ms in gaps if came < joined_at])
    beside = _spread([gap_ms for came, gap_ms in gaps if began <= came <= ended])
    ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(alone, beside, strict=True))
    cells = (", ".join(f"{each:.1f}" for each in three) + " ms" for three in (alone, beside))
    columns = (f"{megabits}", f"{fetched / 1e6:.0f} MB", f"{ended - began:.1f} s", *cells, ratios)
    return f"| {' | '.join(columns)} |"


def _print_gaps(tokens: int) -> None:
    """Ask the first device without end; print when each token came and after how many ms."""
    with mesh_asker([Address(_address(1), PORT)], b"", StatePaths.locate()) as asker:
        while True:
            arrivals = [
                time.perf_counter()
                for message in asker.answer(benchmark_ask(tokens))
                if isinstance(message, Piece)
                for _ in message.tokens
            ]
            for before, after in itertools.pairwise(arrivals[FIRST_TOKENS:]):
                print(f"{after:.6f} {1e3 * (after - before):.3f}", flush=True)


def _spread(gaps_ms: list[float]) -> tuple[float, float, float]:
    """Return the median, the 99th percentile and the longest."""
    return statistics.median(gaps_ms), sorted(gaps_ms)[len(gaps_ms) * 99 // 100], max(gaps_ms)


def _fetch(home: Path) -> tuple[float, float, int]:
    """Wait for a fetch; return when its first and its last bytes came to the disk, and how many."""
    deadline = time.perf_counter() + FETCH_WAIT_S
    began = ended = 0.0
    size = 0
    while time.perf_counter() < deadline:
        now_there = sum(each.stat().st_blocks for each in home.rglob("*.gguf.partial"))
        now, size_now = time.perf_counter(), now_there * BLOCK_BYTES
        if size_now > size:
            began, ended, size = began or now, now, size_now
        elif any(home.rglob("layer-*.bin")) and now > ended + 1.0 and size:
            return began, ended, size
        time.sleep(POLL_S)
    raise SystemExit("the newcomer has not fetched its layers")


def _join(arguments: argparse.Namespace, folder: Path, number: int) -> subprocess.Popen[bytes]:
    options = ["--name", f"device{number}", "--ram", arguments.ram, "--threads", "1", "--no-mdns"]
    options += ["--context", str(arguments.context), "--listen", _address(number)]
    first = ["--model", str(arguments.model)]
    options += first if number == 1 else ["--peer", f"{_address(1)}:{PORT}"]
    return subprocess.Popen(
        [*_inside(number), sys.executable, "-m", "edgellama", "join", *options],
        env={**os.environ, "EDGELLAMA_HOME": str(folder / str(number))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait_ready() -> None:
    deadline = time.monotonic() + READY_WAIT_S
    status = [sys.executable, "-m", "edgellama", "status", "--json"]
    while time.monotonic() < deadline:
        run = subprocess.run(
            [*_inside(1), *status, "--peer", f"{_address(1)}:{PORT}"],
            capture_output=True,
            check=False,
        )
        if run.returncode == 0 and json.loads(run.stdout)["ready"]:
            stages = [each for each in json.loads(run.stdout)["nodes"] if each["layers"][1]]
            if len(stages) == 2 and all(each["backend"] == "numba" for each in stages):
                return
        time.sleep(0.5)
    raise SystemExit("two devices did not become ready with compiled kernels")


def _end(nodes: list[subprocess.Popen[bytes]]) -> None:
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    for node in nodes:
        node.wait(60)


# Host 0 is the switch; 1, 2 and 3 are devices.


def _address(number: int) -> str:
    return f"10.98.0.{number}"


def _inside(number: int) -> list[str]:
    return ["ip", "netns", "exec", f"{NAME}-{number}"]


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def _add_host(number: int, megabits: int) -> None:
    name = f"{NAME}-{number}"
    _run(f"ip netns add {name}")
    _run(f"ip -n {name} link set lo up")
    if number == 0:
        _run(f"ip -n {name} link add bridge0 type bridge")
        _run(f"ip -n {name} link set bridge0 up")
        return
    peer = f"type veth peer name port{number} netns {NAME}-0"
    _run(f"ip -n {name} link add eth0 {peer}")
    _run(f"ip -n {NAME}-0 link set port{number} master bridge0 up")
    _run(f"ip -n {name} addr add {_address(number)}/24 dev eth0")
    _run(f"ip -n {name} link set eth0 up")
    limit = f"tbf rate {megabits}mbit burst 16kb latency 50ms"
    _run(f"ip netns exec {name} tc qdisc add dev eth0 root {limit}")


def _remove() -> None:
    for number in range(4):
        subprocess.run(f"ip netns del {NAME}-{number}".split(), check=False, capture_output=True)


if __name__ == "__main__":
    main()
