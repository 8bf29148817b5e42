"""Measure what a token costs on the wire and what a node holds in memory.

Starts real ``edgellama join`` processes on this device's loopback addresses, asks one of them,
and prints two Markdown tables: bytes and packets a token and hop, and each node's resident memory
beside its own weights and KV cache. Linux only (reads /proc).

    python tools/measure_mesh.py --model MODEL.gguf --ram 300M,200M,200M [--backend numpy]

With ``--delays`` and ``--losses`` the nodes live in network namespaces behind a switch that delays
and loses packets (root), each has the model file, and a third table is printed: tokens a second and
the time between two tokens as home's own asker sees them, beside the arithmetic: the median gap
without delay and loss, and one delay a hop.

    python tools/measure_mesh.py --model MODEL.gguf --ram 200M,120M --delays 0,2,5 --losses 0,1,5
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slow_switch import SlowSwitch

from edgellama.mesh.wishes import CONTEXT_DEFAULT
from edgellama.model.cost import model_facts
from edgellama.model.gguf import GgufFile
from edgellama.net.paths import StatePaths
from edgellama.node.asking import mesh_asker
from edgellama.node.mesh_benchmark import benchmark_ask
from edgellama.plan.ram import Requirements, layer_kv_bytes
from edgellama.values import Address
from edgellama.wire.messages import Piece

if TYPE_CHECKING:
    from edgellama.values import ModelFacts

READY_WAIT_S = 600.0
FIRST_PORT = 17_711


@dataclass
class Node:
    """One running ``join``."""

    process: subprocess.Popen[bytes]
    peer: str
    command: list[str]  # begins every command that is run beside it


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    if arguments.gaps_at:
        _print_arrivals(arguments)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        switch = None
        if arguments.delays:
            hosts = len(arguments.ram.split(","))
            switch = stack.enter_context(SlowSwitch(hosts, arguments.seed))
        nodes = _start(arguments, folder, switch)
        stack.callback(_end, nodes)
        status = _ready(nodes)
        answer = _ask(nodes[-1], arguments.tokens)
        _print_wire(answer, len(status["nodes"]), arguments.model)
        _print_memory(status, nodes, arguments)
        if switch is not None:
            homes = {each["address"] for each in status["nodes"] if each["home"]}
            home = next(node for node in nodes if node.peer in homes)
            _print_gaps(arguments, switch, len(answer["route"]), home)


def _end(nodes: list[Node]) -> None:
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
    parser.add_argument("--delays", help="ms one way, each with each loss: 0,2,5")
    parser.add_argument("--losses", default="0", help="percent one way: 0,1,5")
    parser.add_argument("--repeats", type=int, default=3, help="answers under each, in turn")
    parser.add_argument("--seed", type=int, default=1, help="of the losses")
    parser.add_argument("--gaps-at", help=argparse.SUPPRESS)  # the part beside the asked node
    return parser.parse_args()


def _start(arguments: argparse.Namespace, folder: Path, switch: SlowSwitch | None) -> list[Node]:
    """Start a node for each offer; the first has the model, the others know its address."""
    nodes: list[Node] = []
    for index, ram in enumerate(arguments.ram.split(",")):
        entry = [] if switch is None else ["ip", "netns", "exec", switch.names[index]]
        address = "127.0.0.1" if switch is None else switch.addresses[index]
        command = [*entry, sys.executable]
        peer = f"{address}:{FIRST_PORT + index}"
        options = ["--name", f"node{index}", "--ram", ram, "--backend", arguments.backend]
        options += ["--listen", address, "--port", str(FIRST_PORT + index), "--no-mdns"]
        options += ["--threads", "1", "--context", str(arguments.context)]
        if index == 0 or switch is not None:
            options += ["--model", str(arguments.model)]
        if index:
            options += ["--peer", nodes[0].peer]
        home = folder / f"node{index}"
        process = subprocess.Popen(
            [*command, "-m", "edgellama", "join", *options],
            env={**os.environ, "EDGELLAMA_HOME": str(home)},
            stdout=subprocess.DEVNULL,
        )
        nodes.append(Node(process, peer, command))
    return nodes


def _ready(nodes: list[Node]) -> dict[str, Any]:
    """Return the status once every node is in the mesh and the plan is in force."""
    deadline_s = time.monotonic() + READY_WAIT_S
    trouble = "no node answers"
    while time.monotonic() < deadline_s:
        run = subprocess.run(
            [*nodes[-1].command, "-m", "edgellama", "status", "--json", "--peer", nodes[-1].peer],
            capture_output=True,
            check=False,
        )
        if run.returncode == 0:
            status: dict[str, Any] = json.loads(run.stdout)
            if status["ready"] and len(status["nodes"]) == len(nodes):
                return status
            trouble = str(status["trouble"])
        time.sleep(1)
    raise SystemExit(f"the mesh did not become ready: {trouble}")


def _ask(node: Node, tokens: int) -> dict[str, Any]:
    options = ["--json", "--peer", node.peer, "-n", str(tokens), "--ignore-eos"]
    run = subprocess.run(
        [*node.command, "-m", "edgellama", "ask", *options, "Hello"],
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


def _print_gaps(
    arguments: argparse.Namespace,
    switch: SlowSwitch,
    hops: int,
    home: Node,
) -> None:
    """Print one line for each delay and loss; repeats go round all of them, for drifts' sake."""
    delays, losses = (
        [float(each) for each in text.split(",")] for text in (arguments.delays, arguments.losses)
    )
    gaps: dict[tuple[float, float], list[list[float]]] = {}
    for _ in range(arguments.repeats):
        for delay, loss in itertools.product(delays, losses):
            switch.set(delay, loss)
            gaps.setdefault((delay, loss), []).append(_gaps_ms(home, arguments.tokens))
    print(f"\n{hops} stages, {arguments.repeats} answers of {arguments.tokens} tokens\n")
    print("| delay one way, loss | tokens/s | gap p50 | p99 | longest | arithmetic |")
    print("|---|---|---|---|---|---|")
    computing = statistics.median(itertools.chain(*gaps[delays[0], losses[0]]))
    for (delay, loss), answers in gaps.items():
        every = sorted(itertools.chain(*answers))
        rate = statistics.median(1e3 / statistics.fmean(each) for each in answers)
        print(
            f"| {delay:g} ms, {loss:g} % | {rate:.1f} | {statistics.median(every):.1f} ms |"
            f" {every[int(0.99 * len(every))]:.1f} ms | {every[-1]:.1f} ms |"
            f" {computing + hops * (delay - delays[0]):.1f} ms |"
        )


def _gaps_ms(home: Node, tokens: int) -> list[float]:
    options = ["--model", "", "--ram", "", "--gaps-at", home.peer, "--tokens", str(tokens)]
    asked = subprocess.run(
        [*home.command, __file__, *options], capture_output=True, text=True, check=True
    )
    arrivals: list[float] = json.loads(asked.stdout)
    return [1e3 * (after - before) for before, after in itertools.pairwise(arrivals)]


def _print_arrivals(arguments: argparse.Namespace) -> None:
    """Ask the node at ``--gaps-at`` and print when each token came, in seconds, as JSON."""
    host, _, port = arguments.gaps_at.rpartition(":")
    ask = benchmark_ask(arguments.tokens)
    with mesh_asker([Address(host, int(port))], b"", StatePaths.locate()) as asker:
        pieces = (each for each in asker.answer(ask) if isinstance(each, Piece))
        print(json.dumps([time.perf_counter() for each in pieces for _ in each.tokens]))


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
