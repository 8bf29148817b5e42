"""Is this checkout fit to be committed? The one loop of everyone who works on edgellama.

    python tools/check.py            every check, then every test
    python tools/check.py --quick    without whole meshes and emulated CPUs
    python tools/check.py --fix      let ruff mend what it can before it looks
    python tools/check.py --no-tests the checks alone

Needs ``pip install -e ".[test]"``. One line a check; what a failed one printed follows it; all
checks run whatever fails, and the exit code is 1 when any did.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))  # beside this interpreter, activated or not


def checks(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Return the name and the command line of every check that was asked for, in order."""
    fix = ["--fix"] if options.fix else []
    found = [
        ("lint", ["ruff", "check", *fix]),
        ("format", ["ruff", "format", *([] if options.fix else ["--check"])]),
        ("types", ["mypy"]),
        ("floors", ["lint-imports"]),
        ("tidy", ["pytest", "-q", "tests/test_tidy.py"]),
    ]
    if not options.no_tests:
        selection = ["-m", "not end_to_end and not aarch64"] if options.quick else []
        found.append(("tests", ["pytest", "-q", *selection]))
    return found


def passes(name: str, command: list[str]) -> bool:
    """Run one check and print its line, and what it said when it failed."""
    started = time.monotonic()
    program = str(SCRIPTS / command[0])
    try:
        done = subprocess.run(
            [program, *command[1:]],
            cwd=ROOT,
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        code, output = done.returncode, done.stdout
    except FileNotFoundError:
        code, output = 1, f'{command[0]} is not installed: pip install -e ".[test]"\n'
    closing = output.strip().splitlines()[-1] if output.strip() else ""
    verdict = "ok" if code == 0 else "FAILED"
    print(f"{name:8} {verdict:6} {time.monotonic() - started:6.1f} s  {closing}", flush=True)
    if code != 0:
        print(output, flush=True)
    return code == 0


def main() -> int:
    """Run the checks; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="skip whole meshes and emulated CPUs")
    parser.add_argument("--no-tests", action="store_true", help="run the checks alone")
    parser.add_argument("--fix", action="store_true", help="let ruff mend what it can")
    options = parser.parse_args()
    results = [passes(name, command) for name, command in checks(options)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
