"""Measure what a token costs on the wire and what a node holds in memory.

Starts real ``edgellama join`` processes on this device's loopback addresses, asks one of them,
and prints two Markdown tables: bytes and packets a token and hop, and each node's resident memory
beside its own weights and KV cache. Linux only (reads /proc).

    python tools/measure_mesh.py --model MODEL.gguf --ram 300M,200M,200M [--backend numpy]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellama.mesh.planning import CONTEXT_DEFAULT
from edgellama.model.cost import model_facts
from edgellama.model.gguf import GgufFile
from edgellama.plan.ram import Requirements, layer_kv_bytes

if TYPE_CHECKING:
    from edgellama.values import ModelFacts

READY_WAIT_S = 600.0
FIRST_PORT = 17_711


@dataclass
class Node:
    """One running ``join``."""

    process: subprocess.Popen[bytes]
    peer: str


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    command = [sys.executable, "-m", "edgellama"]
    with tempfile.TemporaryDirectory() as folder:
        nodes = _start(command, arguments, Path(folder))
        try:
            status = _ready(command, nodes)
            answer = _ask(command, nodes[-1].peer, arguments.tokens)
            _print_wire(answer, len(status["nodes"]), arguments.model)
            _print_memory(status, nodes, arguments)
        finally:
            for node in nodes:
                node.process.send_signal(signal.SIGTERM)
            for node in nodes:
                node.process.wait(30)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--ram", required=True, help="what each node offers: 300M,200M,200M")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    return parser.parse_args()


def _start(command: list[str], arguments: argparse.Namespace, folder: Path) -> list[Node]:
    """Start a node for each offer; the first has the model, the others know its address."""
    nodes: list[Node] = []
    for index, ram in enumerate(arguments.ram.split(",")):
        peer = f"127.0.0.1:{FIRST_PORT + index}"
        options = ["--name", f"node{index}", "--ram", ram, "--backend", arguments.backend]
        options += ["--listen", "127.0.0.1", "--port", str(FIRST_PORT + index), "--no-mdns"]
        options += ["--threads", "1", "--context", str(arguments.context)]
        options += ["--model", str(arguments.model)] if index == 0 else ["--peer", nodes[0].peer]
        home = folder / f"node{index}"
        process = subprocess.Popen(
            [*command, "join", *options],
            env={**os.environ, "EDGELLAMA_HOME": str(home)},
            stdout=subprocess.DEVNULL,
        )
        nodes.append(Node(process, peer))
    return nodes


def _ready(command: list[str], nodes: list[Node]) -> dict[str, Any]:
    """Return the status once every node is in the mesh and the plan is in force."""
    deadline_s = time.monotonic() + READY_WAIT_S
    while time.monotonic() < deadline_s:
        run = subprocess.run(
            [*command, "status", "--json", "--peer", nodes[-1].peer],
            capture_output=True,
            check=False,
        )
        if run.returncode == 0:
            status: dict[str, Any] = json.loads(run.stdout)
            if status["ready"] and len(status["nodes"]) == len(nodes):
                return status
        time.sleep(1)
    raise SystemExit("the mesh did not become ready")


def _ask(command: list[str], peer: str, tokens: int) -> dict[str, Any]:
    run = subprocess.run(
        [*command, "ask", "--json", "--peer", peer, "-n", str(tokens), "--ignore-eos", "Hello"],
        capture_output=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def _print_wire(answer: dict[str, Any], nodes: int, model: Path) -> None:
    wire, route, tokens = answer["wire"], answer["route"], answer["tokens"]
    hops = max(1, len(route))
    with GgufFile.open(model) as gguf:
        width = model_facts(gguf, "00" * 32, model.stem).width
    per_token = [wire[name] / len(tokens) for name in ("bytes_sent", "packets_sent")]
    print(f"\n{nodes} nodes, {hops} stages, width {width}, {len(tokens)} tokens of one answer\n")
    print("| | a token | a token and hop |")
    print("|---|---|---|")
    print(f"| hidden state alone (fp16) | {2 * width * hops} B | {2 * width} B |")
    print(f"| all bytes sent | {per_token[0]:.0f} B | {per_token[0] / hops:.0f} B |")
    print(f"| all packets sent | {per_token[1]:.1f} | {per_token[1] / hops:.1f} |")
    print(f"| packets sent again, in all | {wire['packets_retransmitted']} | |")


def _print_memory(status: dict[str, Any], nodes: list[Node], arguments: argparse.Namespace) -> None:
    with GgufFile.open(arguments.model) as gguf:
        facts = model_facts(gguf, "00" * 32, arguments.model.stem)
    print("\n| node | layers | weights and KV cache | resident | over its own |")
    print("|---|---|---|---|---|")
    by_address = {member["address"]: member for member in status["nodes"]}
    for node in nodes:
        member = by_address[node.peer]
        own = _own_bytes(facts, member, arguments.context or CONTEXT_DEFAULT)
        resident = _resident_bytes(node.process.pid)
        print(
            f"| {member['name']} ({member['backend']}) | {member['layers'][0]} to "
            f"{member['layers'][1] - 1}{', home' if member['home'] else ''} | {own / 1e6:.0f} MB | "
            f"{resident / 1e6:.0f} MB | {(resident - own) / 1e6:.0f} MB |"
        )


def _own_bytes(facts: ModelFacts, member: dict[str, Any], context: int) -> int:
    first, past = int(member["layers"][0]), int(member["layers"][1])
    one_session = Requirements(context, 1)
    weights: int = sum(facts.layer_bytes[first:past]) + (facts.home_bytes if member["home"] else 0)
    return weights + (past - first) * layer_kv_bytes(facts, one_session)


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell resident memory")


if __name__ == "__main__":
    main()
