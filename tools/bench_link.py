"""Compare the link with kernel TCP under packet loss.

Two network namespaces, a veth pair, and nftables that drops a random share of the packets in each
direction. For each share ours and TCP run one after the other, several times in turn: request and
reply of 4 and 8 KiB, and a transfer of 4 MiB. Prints Markdown tables. Linux, root, nft.

    python tools/bench_link.py                        # everything; some minutes
    python tools/bench_link.py --losses 0,5 --rounds 200 --repeats 3
    python tools/bench_link.py --beside 50            # requests beside a transfer at 50 Mbit/s

The veth's own segmentation is switched off, so that every packet is dropped or not by itself;
``--offloads`` leaves it on (then a whole burst is lost or none of it).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from slow_switch import inside, run

ENDS = Path(__file__).with_name("bench_link_ends.py")
ASKER, ANSWERER = "10.98.0.1", "10.98.0.2"
BULK_BYTES = 4 << 20

SIOCETHTOOL = 0x8946
ETHTOOL_SETTERS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C, "tx checksum": 0x17}


class Pair:
    """Two namespaces joined by a veth pair; removed at the end."""

    def __init__(self, *, offloads: bool, rate_mbit: float | None = None) -> None:
        self.names = [f"elbench{os.getpid()}{letter}" for letter in "ab"]
        first, second = self.names
        for name in self.names:
            run(f"ip netns add {name}")
        run(f"ip -n {first} link add eth0 type veth peer name eth0 netns {second}")
        for name, address in zip(self.names, (ASKER, ANSWERER), strict=True):
            run(f"ip -n {name} addr add {address}/24 dev eth0")
            run(f"ip -n {name} link set lo up")
            run(f"ip -n {name} link set eth0 up")
            if not offloads:
                with inside(name):
                    _switch_offloads_off("eth0")
            if rate_mbit:
                # A queue of 1000 packets, as an access point may have: nothing is dropped for long.
                run(
                    f"ip netns exec {name} tc qdisc add dev eth0 root tbf rate {rate_mbit}mbit"
                    " burst 4kb limit 1500000"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            run(f"ip netns del {name}")

    def lose(self, percent: float) -> None:
        """Drop this share of the packets in each direction."""
        rule = f'iifname "eth0" numgen random mod 100000 < {round(percent * 1000)} drop'
        chain = f"chain input {{\n type filter hook input priority 0\n {rule}\n }}\n"
        table = f"table inet loss\ndelete table inet loss\ntable inet loss {{\n {chain} }}\n"
        for name in self.names:
            run(f"ip netns exec {name} nft -f -", table)

    def measure(self, kind: str, task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the asking and the answering end measured."""
        ends = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, sys.executable, str(ENDS)),
                    *(role, kind, ANSWERER, json.dumps(task)),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for name, role in zip(self.names[::-1], ("answer", "ask"), strict=True)
            if role == "answer" or self._answers(kind)
        ]
        answered, asked = (json.loads(end.communicate()[0]) for end in ends)
        return asked, answered

    def _answers(self, kind: str) -> bool:
        """Wait until the answering end has its socket."""
        table = "udp" if kind == "ours" else "tcp"
        wanted = f":{47_711:04X} "
        with inside(self.names[1]):
            for _ in range(1000):
                if wanted in Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii"):
                    return True
                subprocess.run(["sleep", "0.02"], check=True)
        raise SystemExit("the answering end did not start")


def _switch_offloads_off(interface: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for setter in ETHTOOL_SETTERS.values():
            value = bytearray(struct.pack("II", setter, 0))
            buffer = (ctypes.c_char * len(value)).from_buffer(value)
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(buffer))
            with contextlib.suppress(OSError):
                fcntl.ioctl(control, SIOCETHTOOL, request)


def percentile(samples: list[float], share: float) -> float:
    """Return the sample below which that share of them lies."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def milliseconds(seconds: float) -> str:
    """Return a time as a cell of a table."""
    return f"{1e3 * seconds:.2f}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def requests_table(pair: Pair, size: int, arguments: argparse.Namespace) -> None:
    """Print one line for each share of loss and kind."""
    print(
        f"\nRequest and reply of {size} bytes, {arguments.rounds} in each of "
        f"{arguments.repeats} runs in turn; ms\n"
    )
    print("| loss each way | | p50 | p99 | mean | CPU a packet, both ends |")
    print("|---|---|---|---|---|---|")
    for loss in arguments.losses:
        pair.lose(loss)
        samples: dict[str, list[list[float]]] = {kind: [] for kind in arguments.kinds}
        costs: dict[str, list[str]] = {kind: [] for kind in arguments.kinds}
        for _ in range(arguments.repeats):
            for kind in arguments.kinds:
                asked, answered = pair.measure(kind, {"bytes": size, "rounds": arguments.rounds})
                samples[kind].append(asked["samples"])
                costs[kind].append(_cost(asked, answered))
        for kind in arguments.kinds:
            runs = samples[kind]
            cells = [
                milliseconds(statistics.median(figure(each) for each in runs))
                for figure in (
                    statistics.median,
                    lambda each: percentile(each, 0.99),
                    statistics.fmean,
                )
            ]
            middle = sorted(costs[kind])[len(costs[kind]) // 2]
            print(f"| {loss:g} % | {kind} | {' | '.join(cells)} | {middle} |", flush=True)


def _cost(asked: dict[str, Any], answered: dict[str, Any]) -> str:
    seconds = asked["cpu_s"] + answered["cpu_s"]
    if "packets" in asked:
        return f"{1e6 * seconds / (asked['packets'] + answered['packets']):.1f} us"
    return f"({1e6 * seconds / len(asked['samples']):.0f} us a request)"


def transfers_table(pair: Pair, arguments: argparse.Namespace) -> None:
    """Print one line for each share of loss and kind."""
    print(
        f"\nOne message of {BULK_BYTES >> 20} MiB, {arguments.transfers} in each of "
        f"{arguments.repeats} runs in turn\n"
    )
    print("| loss each way | | MB/s, median | least | CPU a MB, both ends | CPU a packet |")
    print("|---|---|---|---|---|---|")
    task = {"bytes": BULK_BYTES, "rounds": arguments.transfers}
    for loss in arguments.losses:
        pair.lose(loss)
        rates: dict[str, list[float]] = {kind: [] for kind in arguments.kinds}
        costs: dict[str, list[float]] = {kind: [] for kind in arguments.kinds}
        packet: dict[str, str] = {}
        for _ in range(arguments.repeats):
            for kind in arguments.kinds:
                asked, answered = pair.measure(kind, task)
                rates[kind] += [BULK_BYTES / 1e6 / each for each in asked["samples"]]
                moved = len(asked["samples"]) * BULK_BYTES / 1e6
                costs[kind].append((asked["cpu_s"] + answered["cpu_s"]) / moved)
                packet[kind] = _cost(asked, answered) if kind == "ours" else ""
        for kind in arguments.kinds:
            print(
                f"| {loss:g} % | {kind} | {statistics.median(rates[kind]):.1f} |"
                f" {min(rates[kind]):.1f} | {1e3 * statistics.median(costs[kind]):.1f} ms |"
                f" {packet[kind]} |",
                flush=True,
            )


def beside_table(arguments: argparse.Namespace) -> None:
    """Print what a transfer without end does to requests beside it."""
    print(f"\nRequest and reply of 4096 bytes every 25 ms, {arguments.beside:g} Mbit/s; ms\n")
    print("| loss | | p50 | p99 | mean | transfer MB/s |")
    print("|---|---|---|---|---|---|")
    with Pair(offloads=False, rate_mbit=arguments.beside) as pair:
        for loss in arguments.losses:
            pair.lose(loss)
            for name, beside in (("alone", 0), ("beside a transfer", BULK_BYTES)):
                task = {"bytes": 4096, "rounds": arguments.rounds, "paused": 1, "beside": beside}
                asked, _ = pair.measure("ours", task)
                samples = asked["samples"]
                figures = (
                    statistics.median(samples),
                    percentile(samples, 0.99),
                    statistics.fmean(samples),
                )
                cells = " | ".join(map(milliseconds, figures))
                rate = asked["bytes_sent"] / 1e6 / asked["seconds"] if beside else 0.0
                print(f"| {loss:g} % | {name} | {cells} | {rate:.1f} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--losses", default="0,1,5,10,20", help="percent each way")
    parser.add_argument("--sizes", default="4096,8192", help="bytes of a request and its reply")
    parser.add_argument("--rounds", type=int, default=400, help="requests a run")
    parser.add_argument("--transfers", type=int, default=3, help="transfers a run; 0: none")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind, in turn")
    parser.add_argument("--kinds", default="ours,tcp")
    parser.add_argument("--offloads", action="store_true", help="leave the veth's segmentation on")
    parser.add_argument("--beside", type=float, help="Mbit/s: requests beside a transfer instead")
    arguments = parser.parse_args()
    arguments.losses = [float(loss) for loss in arguments.losses.split(",")]
    arguments.kinds = arguments.kinds.split(",")
    if arguments.beside:
        beside_table(arguments)
        return
    with Pair(offloads=arguments.offloads) as pair:
        for size in filter(None, arguments.sizes.split(",")):
            requests_table(pair, int(size), arguments)
        if arguments.transfers:
            transfers_table(pair, arguments)


if __name__ == "__main__":
    main()
