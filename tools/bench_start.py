"""Measure how long a person waits: for --help, for the first answer ever, for later ones, for join.

Medians of several runs of each, beside a bare start of the same Python in the same minute, so that
a slow or busy machine shows as such. The first answer uses an empty cache (kernels compile beside
it), later ones find them compiled.

    python tools/bench_start.py [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EDGELLAMA = [sys.executable, "-m", "edgellama"]
ASK = [*EDGELLAMA, "ask", "-n", "16", "--seed", "1", "Once upon a time"]
COMPILE_WAIT_S = 300.0


def _as_installed(environment: dict[str, str]) -> None:
    """Take out what developers set: an installation keeps its byte code and its kernels."""
    for name in ("NUMBA_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)


def seconds(command: list[str], home: Path) -> float:
    """Return how long the command takes from start to end."""
    started = time.monotonic()
    environment = {**os.environ, "EDGELLAMA_HOME": str(home), "EDGELLAMA_KEY": ""}
    _as_installed(environment)
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.monotonic() - started


def seconds_to_ready(model: Path, home: Path) -> float:
    """Return how long ``join`` takes until it says that it is ready."""
    environment = {**os.environ, "EDGELLAMA_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    _as_installed(environment)
    command = [*EDGELLAMA, "join", "--open", "--no-mdns", "--listen", "127.0.0.1"]
    started = time.monotonic()
    with subprocess.Popen(
        [*command, "--model", str(model)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        ready_s = next(
            time.monotonic() - started for line in process.stdout if line.startswith("ready")
        )
        process.terminate()
    return ready_s


def wait_for_kernels(home: Path) -> float:
    """Return how long it takes until the kernels are compiled in the background."""
    started = time.monotonic()
    while not list(home.glob("cache/kernels/*/compiled-*")):
        if time.monotonic() - started > COMPILE_WAIT_S:
            raise SystemExit("the kernels were not compiled in time")
        time.sleep(0.2)
    return time.monotonic() - started


def main() -> None:
    """Measure and print a table."""
    from edgellama.demo import demo_model_path

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = range(parser.parse_args().runs)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        rows = {"the first answer ever (16 tokens)": seconds(ASK, home)}
        rows["until the kernels are compiled, after it"] = wait_for_kernels(home)
        bare = [sys.executable, "-c", "pass"]
        for name, command in (
            ("a bare start of Python", bare),
            ("`edgellama --help`", [*EDGELLAMA, "--help"]),
            ("a later answer, compiled kernels", ASK),
            ("the same, `--backend numpy`", [*ASK, "--backend", "numpy"]),
        ):
            rows[name] = statistics.median(seconds(command, home) for _ in runs)
        rows["`join` until ready, warm"] = statistics.median(
            seconds_to_ready(demo_model_path(), home) for _ in runs
        )
    unit = rows["a bare start of Python"]
    print("| | seconds | bare starts |\n|---|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.2f} | {value / unit:.1f} |")


if __name__ == "__main__":
    main()
