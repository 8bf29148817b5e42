"""Strike devices of a real mesh in the middle of answers, and see what askers notice of it.

Real processes in network namespaces: four devices hold a model, a fifth asks. Each device of the
ring in turn (home, a middle stage, the last one, the one that was asked) is killed, cut off the
network, suspended, or told to leave; then come worse things. Every answer must have the tokens of
one device alone; the table shows the longest wait between two tokens. Needs root, Linux and some
minutes.

    sudo python tools/chaos.py                       # everything, with the demo model
    sudo python tools/chaos.py --model random        # a slower one, of random weights
    sudo python tools/chaos.py --case kill --case cut --role home --rounds 5
    sudo python tools/chaos.py --case storm --seed 7 # twenty kills in one answer
    sudo python tools/chaos.py --json faults.json

The exit code is 1 when a promise was broken. Ctrl-C ends everything and removes the namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "end_to_end"))

from faults import FAULTS, OFFERS, ROLES, STAGES, Devices, parts
from hosts import Host, Mesh
from network import Bridge, Place, no_bridge_because
from offers import offer_for_two_bytes

from edgellama.demo import demo_model_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROMPT = "Once upon a time"
GREEDY = ("--temperature", 0)
SAMPLED = ("--temperature", 0.9, "--top-k", 40, "--seed", 7)
WAYS = {"greedy": GREEDY, "sampled": SAMPLED}
WARM, COLD = "warm", "cold"  # whoever takes layers over has had them before, or has not
TOKENS = 200  # of an answer that is struck once
LONG_TOKENS = 800  # of one in which a device hands over first
STRUCK_AT = 25  # tokens
AWAY_S = 6.0  # a device that is needed comes back after so long
AWAY_MAX_S = 2.0  # in a storm
RANDOM_SHAPE = ("--shape", "smollm-135m", "--layers", "12", "--type", "Q8_0")
CASES = (*FAULTS, "two", "owner", "scarce", "storm")


@dataclass(frozen=True)
class Trial:
    """One answer that something happened to."""

    model: str
    case: str
    struck: str
    way: str
    weights: str
    equal: bool
    gap_s: float
    gap_token: int
    tokens: int
    problem: str
    notices: tuple[str, ...]  # with the time since the longest wait began


class Chaos:
    """The trials with one model."""

    def __init__(self, model: Path, name: str, folder: Path, options: argparse.Namespace) -> None:
        self.model = model
        self.name = name
        self.folder = folder
        self.options = options
        self.trials: list[Trial] = []
        self._alone = Host(Place("127.0.0.1", None, ()), folder / f"alone-{name}")
        self._expected: dict[tuple[object, ...], list[int]] = {}
        self._meshes = 0

    def expected(self, *asked: object) -> list[int]:
        """Return the tokens of one device alone."""
        if asked not in self._expected:
            answer = self._alone.run("ask", "--model", self.model, "--json", *asked, PROMPT).json
            self._expected[asked] = answer["tokens"]
        return self._expected[asked]

    @contextmanager
    def devices(self, *offers: object, backend: str = "auto") -> Iterator[Devices]:
        """Run a mesh whose first device has the model's file, each with memory as it offers."""
        pace = ("--threads", 1, "--backend", backend)
        self._meshes += 1
        with Mesh(Bridge(), self.folder / f"mesh-{self.name}-{self._meshes}") as mesh:
            options: list[list[object]] = [["--ram", each, *pace] for each in offers]
            options[0] += ["--model", self.model]
            yield Devices(mesh, options)
            for host in mesh.hosts:
                assert host.joined is None or "Traceback" not in host.said(), host.said()

    def trial(
        self,
        devices: Devices,
        gateway: Host,
        labels: tuple[str, str, str, str],
        strike: Callable[[Any], None],
        tokens: int = TOKENS,
    ) -> None:
        """Ask, let ``strike`` happen in the middle, and take note of what came of it."""
        case, struck, way, weights = labels
        asked = ("-n", tokens, "--ignore-eos", *WAYS[way])
        expected = self.expected(*asked)
        asking = devices.ask(gateway, PROMPT, *asked)
        problem = ""
        try:
            asking.wait_for(STRUCK_AT)
            strike(asking)
            if asking.heard.reason:
                problem = "the answer had ended before it happened"
            heard = asking.end()
            if heard.code != 0:
                problem = heard.stderr.strip()
        except AssertionError as failure:
            problem = str(failure)
        finally:
            asking.kill()
        heard = asking.heard
        equal = heard.tokens == expected
        gap = heard.longest_gap()
        since = heard.times[gap.token - 1] if gap.token else 0.0
        notices = tuple(f"{at - since:+.2f} s: {text}" for at, text in heard.notices)
        trial = Trial(
            *(self.name, case, struck, way, weights, equal and not problem),
            *(round(gap.seconds, 3), gap.token, len(heard.tokens), problem, notices),
        )
        self.trials.append(trial)
        say(trial)

    # Cases

    def one_at_a_time(self, cases: list[str]) -> None:
        """Strike each role in each way, killed with cold layers first."""
        self._one_mesh("kill", "greedy", COLD)
        for _ in range(self.options.rounds):
            for case in cases:
                for way in self.options.way or WAYS:
                    self._one_mesh(case, way, WARM)

    def _one_mesh(self, case: str, way: str, weights: str) -> None:
        """Strike each role once: a device that is lost again has to wait before it holds layers."""
        with self.devices(*OFFERS) as devices:
            if weights == WARM:
                self._warm_up(devices)
            for role in self.options.role or ROLES:
                self._strike(devices, case, role, way, weights)

    def _warm_up(self, devices: Devices) -> None:
        """Let each leave in its turn, so that the others have had its layers."""
        for role in ROLES:
            host, _ = parts(devices.ring(devices.ready(STAGES)), role)
            FAULTS["leave"].strike(devices, host)
            FAULTS["leave"].undo(devices, host)

    def _strike(self, devices: Devices, case: str, role: str, way: str, weights: str) -> None:
        fault = FAULTS[case]
        host, gateway = parts(devices.ring(devices.ready(STAGES)), role)
        self.trial(
            *(devices, gateway, (case, role, way, weights)),
            lambda _: fault.strike(devices, host),
            LONG_TOKENS if case == "leave" else TOKENS,
        )
        fault.undo(devices, host)

    def two_at_once(self) -> None:
        """Let two of four devices lose their power at the same moment."""
        pairs = {"home and last": (0, 3), "both middle": (1, 2), "home and asked": (0, 2)}
        for weights in (COLD, *[WARM] * self.options.rounds):
            for name, places in pairs.items():
                with self.devices(*OFFERS) as devices:
                    if weights == WARM:
                        self._warm_up(devices)
                    ring = devices.ring(devices.ready(STAGES))
                    hosts = [ring[place] for place in places]

                    def strike(_: Any, hosts: list[Host] = hosts) -> None:
                        for host in hosts:
                            host.kill()

                    self.trial(devices, ring[2], ("two", name, "greedy", weights), strike)

    def owner(self) -> None:
        """Let the only device with the model's file die for good, and home after it."""
        with self.devices(*OFFERS) as devices:
            self._warm_up(devices)
            ring = devices.ring(devices.ready(STAGES))
            owner = devices.members[0]
            strikes: dict[str, Callable[[Any], None]] = {
                "the file's": lambda _: owner.kill(),
                "nobody, asked at once": lambda _: None,
                "home as well": lambda _: ring[0].kill(),
                "nobody, asked then": lambda _: None,
            }
            for struck, strike in strikes.items():
                self.trial(devices, ring[2], ("owner", struck, "greedy", WARM), strike)

    def scarce(self) -> None:
        """Let what is left be too little: the answer waits for a device, others hear why."""
        offer = offer_for_two_bytes(self.model)
        for struck, place in (("other", 1), ("owner", 0)):
            with self.devices(offer, offer) as devices:
                devices.ready(2)
                host, left = devices.members[place], devices.members[1 - place]
                go_and_come = partial(self._go_and_come, devices, host, left)

                self.trial(devices, left, ("scarce", struck, "greedy", WARM), go_and_come)

    def _go_and_come(self, devices: Devices, host: Host, left: Host, _: Any) -> None:
        host.kill()
        time.sleep(AWAY_S)
        refused = devices.guest.run("ask", *devices.mesh.of(left), "-n", 4, PROMPT)
        print(f"    asked meanwhile: {refused.code}, {refused.stderr.strip()}")
        refused.refuses(3, "bytes", "missing")
        devices.start(host)

    def storm(self) -> None:
        """Kill devices by chance in one long answer; each comes back while the next ones die.

        They compute slowly, or the answer would have ended before the last one dies.
        """
        dice = random.Random(self.options.seed)
        tokens = self.options.kills * self.options.spacing + 2 * STRUCK_AT
        with self.devices(*OFFERS, backend="numpy") as devices:
            ring = devices.ring(devices.ready(STAGES))
            told: list[str] = []
            returns: list[threading.Timer] = []

            def strike(asking: Any) -> None:
                for number in range(self.options.kills):
                    asking.wait_for(STRUCK_AT + number * self.options.spacing)
                    while len(running := [host for host in devices.members if host.joined]) < 3:
                        time.sleep(0.05)
                    host = dice.choice(running)
                    host.kill()
                    told.append(devices.name(host))
                    returns.append(
                        threading.Timer(dice.uniform(0.0, AWAY_MAX_S), devices.start, [host])
                    )
                    returns[-1].start()

            struck = f"{self.options.kills} of seed {self.options.seed}"
            self.trial(devices, ring[1], ("storm", struck, "sampled", "mixed"), strike, tokens)
            for each in returns:
                each.join()
            print(f"    killed: {' '.join(told)}")


def say(trial: Trial) -> None:
    """Print the line of a trial."""
    verdict = "equal" if trial.equal else "BROKEN"
    print(
        f"{trial.model:7} {trial.case:8} {trial.struck:22} {trial.way:8} {trial.weights:6} "
        f"{verdict:7} longest wait {trial.gap_s:6.2f} s before token {trial.gap_token}",
        flush=True,
    )
    if trial.problem or not trial.equal:
        print("   ", "\n    ".join([trial.problem, *trial.notices]), flush=True)


def table(trials: list[Trial]) -> str:
    """Return the trials as a Markdown table, medians of equal ones."""
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for each in trials:
        groups.setdefault((each.model, each.case, each.struck, each.weights), []).append(each)
    lines = [
        "| model | what | to whom | weights | answers | equal | median wait | longest |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for key, group in groups.items():
        waits = [trial.gap_s for trial in group]
        equal = sum(trial.equal for trial in group)
        middle, longest = median(waits), max(waits)
        counts = f"{len(group)} | {equal} | {middle:.2f} s | {longest:.2f} s"
        lines.append(f"| {' | '.join(key)} | {counts} |")
    return "\n".join(lines)


def model_of(name: str, folder: Path) -> Path:
    """Return the demo model, a random one, or the file of that name."""
    if name == "demo":
        return demo_model_path()
    if name != "random":
        return Path(name)
    path = folder / "random.gguf"
    tool = Path(__file__).with_name("make_random_model.py")
    subprocess.run([sys.executable, tool, *RANDOM_SHAPE, path], check=True, capture_output=True)
    return path


def run_cases(chaos: Chaos) -> None:
    """Run what was asked for."""
    cases = chaos.options.case or list(CASES)
    single = [case for case in cases if case in FAULTS]
    if single:
        chaos.one_at_a_time(single)
    others = {
        "two": chaos.two_at_once,
        "owner": chaos.owner,
        "scarce": chaos.scarce,
        "storm": chaos.storm,
    }
    for case in cases:
        if case in others:
            others[case]()


def options_of() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", help="demo, random or a GGUF file; several")
    parser.add_argument("--case", action="append", choices=CASES, help="several; all by default")
    parser.add_argument("--role", action="append", choices=ROLES, help="several; all by default")
    parser.add_argument("--way", action="append", choices=sorted(WAYS), help="both by default")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is tried")
    parser.add_argument("--kills", type=int, default=20, help="of a storm")
    parser.add_argument("--spacing", type=int, default=20, help="tokens between two of them")
    parser.add_argument("--seed", type=int, default=1, help="of a storm")
    parser.add_argument("--json", type=Path, help="write every trial to this file")
    return parser.parse_args()


def main() -> int:
    """Run the trials; return the exit code."""
    options = options_of()
    if reason := no_bridge_because():
        print(f"chaos needs network namespaces: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="edgellama-chaos-") as folder:
        os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(folder) / "kernels"))
        try:
            for name in options.model or ["demo"]:
                model = model_of(name, Path(folder))
                chaos = Chaos(model, model.stem[:7], Path(folder), options)
                chaos.trials = trials
                run_cases(chaos)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        finally:
            if options.json:
                options.json.write_text(json.dumps([asdict(each) for each in trials], indent=1))
            if trials:
                print(f"\n{table(trials)}")
    return 0 if trials and all(each.equal for each in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
