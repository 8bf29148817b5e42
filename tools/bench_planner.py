"""Measure how long planning by speed takes, and how far from the best it is.

Makes up home networks from seeds: computers on cables, others on Wi-Fi, and phones, each of which
has measured its links to sixteen others. Prints a table for docs/measurements/planner.md: the
processor's seconds that a plan takes, the distance from the bound where the best is not found, and
where it is how far from it the quick search alone is. Medians over the seeds.

    python tools/bench_planner.py            # some minutes
    python tools/bench_planner.py --seeds 1  # a look
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Final

from edgellama.plan.bounds import Outlook
from edgellama.plan.costs import Costs, ring_times
from edgellama.plan.exact import quickest_ring
from edgellama.plan.ram import Requirements
from edgellama.plan.search import likely_ring
from edgellama.plan.speed import EXACT_DEVICES_MAX, place_by_speed
from edgellama.values import BATCH, CHAT, DeviceFacts, DeviceSpeed, LinkFacts, ModelFacts

MIB: Final = 1 << 20
SIZES: Final = ((3, 32), (6, 32), (12, 32), (12, 80), (12, 200), (100, 80), (1000, 32), (1000, 200))
SESSIONS: Final = 4  # and --sessions
LINKS: Final = 16
# One way to the router in microseconds, bytes a second, nanoseconds a KiB of weights.
KINDS: Final = ((150, 100_000_000, 60), (1500, 20_000_000, 100), (4000, 5_000_000, 250))


def made_up_network(
    seed: int, count: int, layers: int, sessions: int = SESSIONS
) -> tuple[Costs, float]:
    """Return the costs of a network whose devices hold the model one and a half times together.

    Also the seconds that it took to make them of the facts.
    """
    dice = random.Random(f"{seed} {count} {layers}")
    sizes = tuple(dice.choice((24 * MIB, 28 * MIB)) for _ in range(layers))
    model = ModelFacts("0" * 64, "", 1, 4096, 4096, sizes, 300 * MIB, 4096, 8 * MIB, 2048)
    requirements = Requirements(2048, sessions)
    share = max(2.0, 1.5 * layers / count) * 60 * MIB
    devices, trips, rates = [], [], []
    for number in range(count):
        trip, rate, kib_ns = dice.choice(KINDS)
        trips.append(trip * dice.randint(80, 150) // 100)
        rates.append(rate * dice.randint(60, 150) // 100)
        kib_ns = kib_ns * dice.randint(60, 200) // 100
        ram = int(share * dice.uniform(0.5, 1.6)) + dice.choice((0, 320 * MIB))
        speed = DeviceSpeed(dice.randint(10_000, 60_000), kib_ns, kib_ns)
        devices.append(DeviceFacts(f"{dice.getrandbits(128):032x}", f"{number}", ram, speed))
    links = [
        LinkFacts(devices[i].node, devices[j].node, trips[i] + trips[j], min(rates[i], rates[j]))
        for i in range(count)
        for j in dice.sample(range(count), min(count, LINKS + 1))
        if i != j
    ]
    started = time.process_time()
    costs = Costs(model, devices, links, requirements)
    return costs, time.process_time() - started


def row(count: int, layers: int, goal: str, seeds: int, sessions: int) -> str:
    """Return a line of the table."""
    seconds, gaps, searches = [], [], []
    for seed in range(seeds):
        costs, facts_s = made_up_network(seed, count, layers, sessions)
        started = time.process_time()
        found = place_by_speed(costs, goal)
        seconds.append(facts_s + time.process_time() - started)
        if found is None:
            continue
        gaps.append(found.prediction.objective_ns(goal) / found.bound_ns - 1)
        if count <= EXACT_DEVICES_MAX and goal == CHAT:
            likely, best = likely_ring(costs, Outlook(costs)), quickest_ring(costs)
            if likely is not None and best is not None:
                searches.append(ring_times(costs, likely).token / ring_times(costs, best).token - 1)
    cells = [
        *(str(count), str(layers), goal, f"{len(gaps)} of {seeds}"),
        *(f"{statistics.median(seconds):.3f}", f"{max(seconds):.3f}"),
        "the best" if not any(gaps) else f"{100 * statistics.median(gaps):.0f} %",
        f"{100 * statistics.median(searches):.1f} %" if searches else "",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    arguments = parser.parse_args()
    print(
        "| devices | layers | for | placed | seconds | at most | above the bound | quick search |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for count, layers in SIZES:
        for goal in (CHAT, BATCH):
            print(row(count, layers, goal, arguments.seeds, arguments.sessions), flush=True)


if __name__ == "__main__":
    main()
