"""Run or replay seeded simulations: the production link and mesh on a virtual network.

    python tools/simulate.py --seed 268                 # replay one, told in lines; packets, too:
    python tools/simulate.py --seed 268 --packets
    python tools/simulate.py --kind lives --seed 7      # connections that end
    python tools/simulate.py --kind mesh --seed 7       # a mesh that answers; a rough one:
    python tools/simulate.py --kind rough --seed 7      # devices sleep, clocks jump, strangers talk
    python tools/simulate.py --kind crowd --seed 7      # three to nine that hand over, too
    python tools/simulate.py --kind link --seeds 1000 --first 5000
    python tools/simulate.py --soak 1000000             # link and lives, until so many packets

A seed gives the same run to the last datagram, on every machine. The exit code is 1 when a promise
was broken; the line that says so names the seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from edgellama.testing import cluster_scenario, link_lives_scenario, link_scenario
from edgellama.testing.narrator import Narrator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgellama.testing.network import Watcher

REPORT_S = 20.0


def run_one(kind: str, seed: int, watch: Watcher | None = None) -> tuple[int, str]:
    """Return how many packets were delivered, and the trace; raises when a promise is broken."""
    if kind in cluster_scenario.KINDS:
        outcome = cluster_scenario.run_cluster_scenario(seed, kind, watch)
        return outcome.delivered, outcome.trace
    if kind == "lives":
        lives = link_lives_scenario.run_link_lives_scenario(seed, watch=watch)
        return lives.delivered, lives.trace
    link = link_scenario.run_link_scenario(seed, watch=watch)
    return link.delivered, link.trace


def replay(kind: str, seed: int, *, packets: bool) -> bool:
    """Tell one run in lines; return whether it kept its promises."""
    narrator = Narrator(print, packets=packets)
    try:
        delivered, trace = run_one(kind, seed, narrator.watch)
    except AssertionError as failure:
        print(f"BROKEN  {kind} {failure}")
        return False
    print(f"kept  {kind} seed {seed}: {delivered} packets delivered, trace {trace}")
    return True


def run_many(runs: Iterable[tuple[str, int]], enough: Callable[[int], bool]) -> bool:
    """Run until it is enough; return whether every promise was kept."""
    began = reported = time.monotonic()
    delivered = scenarios = broken = 0
    for kind, seed in runs:
        if enough(delivered):
            break
        try:
            delivered += run_one(kind, seed)[0]
        except AssertionError as failure:
            broken += 1
            print(f"BROKEN  {kind} {failure}", flush=True)
        scenarios += 1
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            print(f"{scenarios} scenarios, {delivered} packets, {broken} broken", flush=True)
    seconds = time.monotonic() - began
    print(f"{scenarios} scenarios, {delivered} packets delivered, {broken} broken; {seconds:.0f} s")
    return not broken


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = ["link", "lives", *cluster_scenario.KINDS]
    parser.add_argument("--kind", choices=kinds, default="link")
    parser.add_argument("--seed", type=int, help="replay this one in lines")
    parser.add_argument("--packets", action="store_true", help="tell of every datagram")
    parser.add_argument("--seeds", type=int, default=200, help="how many to run, without lines")
    parser.add_argument("--first", type=int, default=0, help="the first seed of many")
    parser.add_argument("--soak", type=int, help="link and lives in turn, until so many packets")
    options = parser.parse_args()
    if options.seed is not None:
        return 0 if replay(options.kind, options.seed, packets=options.packets) else 1
    if options.soak:
        turns = (("link", "link", "link", "lives")[number % 4] for number in range(1 << 30))
        runs = ((kind, options.first + number) for number, kind in enumerate(turns))
        return 0 if run_many(runs, lambda delivered: delivered >= options.soak) else 1
    last = options.first + options.seeds
    chosen = ((options.kind, seed) for seed in range(options.first, last))
    return 0 if run_many(chosen, lambda _: False) else 1


if __name__ == "__main__":
    sys.exit(main())
