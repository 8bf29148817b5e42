"""Do hostile bytes break anything? Coverage-guided fuzzing of everything that reads them.

    pip install -e ".[fuzz]"                     (Linux; atheris has no wheels elsewhere)
    python tools/fuzz.py run --seconds 60        every target in turn, or those that are named
    python tools/fuzz.py report                  executions and time so far, of every target
    python tools/fuzz.py keep                    small inputs with all coverage, for the tests
    python tools/fuzz.py show frames FILE        what a finding does, with its traceback

The targets stand in edgellama/testing/fuzzing; tests/fuzzing runs the kept inputs in every test
run, without atheris. What is found lies in ``--work``: inputs under corpus/TARGET, findings under
findings/TARGET-*. A finding becomes a test before it is mended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
KEPT: Final = ROOT / "tests" / "fuzzing" / "corpus"
KEPT_BYTES_MAX: Final = 60_000  # of one target: all together stay far below 1 MB
MEMORY_MIB_MAX: Final = 1024  # what a hostile input may make a process take, the interpreter too
INPUT_SECONDS_MAX: Final = 10
ZIP_DATE: Final = (2000, 1, 1, 0, 0, 0)  # the same inputs give the same file

_FINAL = re.compile(r"stat::number_of_executed_units:\s+(\d+)")


def names(chosen: list[str]) -> list[str]:
    """Return the targets that were named, or all."""
    from edgellama.testing.fuzzing import TARGETS

    unknown = set(chosen) - set(TARGETS)
    if unknown:
        sys.exit(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    return chosen or list(TARGETS)


def input_name(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def kept_inputs(target: str) -> list[bytes]:
    """Return the inputs that the tests run."""
    path = KEPT / f"{target}.zip"
    if not path.exists():
        return []
    with zipfile.ZipFile(path) as archive:
        return [archive.read(name) for name in archive.namelist()]


def corpus_folder(work: Path, target: str) -> Path:
    """Return the target's folder of inputs, with the kept ones and the seeds in it."""
    from edgellama.testing.fuzzing import TARGETS

    folder = work / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for data in [*kept_inputs(target), *TARGETS[target].seeds()]:
        (folder / input_name(data)).write_bytes(data)
    return folder


def libfuzzer(target: str, findings: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the target under atheris in a process of its own: libFuzzer ends its process."""
    command = [sys.executable, str(Path(__file__)), "one", target, str(findings), *arguments]
    return subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )


def run(targets: list[str], seconds: int, work: Path) -> bool:
    """Fuzz each target for so long; return whether nothing was found."""
    from edgellama.testing.fuzzing import TARGETS

    findings = work / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    sound = True
    for target in targets:
        folder = corpus_folder(work, target)
        started = time.monotonic()
        done = libfuzzer(
            target,
            findings / target,
            f"-max_total_time={seconds}",
            f"-max_len={TARGETS[target].bytes_max}",
            f"-rss_limit_mb={MEMORY_MIB_MAX}",
            f"-timeout={INPUT_SECONDS_MAX}",
            f"-artifact_prefix={findings / target}-",
            "-len_control=0",  # inputs as long as they need to be, from the start
            "-print_final_stats=1",
            str(folder),
        )
        spent = time.monotonic() - started
        counted = _FINAL.search(done.stdout)
        executions = int(counted[1]) if counted else 0
        with (work / "ledger.jsonl").open("a") as ledger:
            ledger.write(json.dumps([target, executions, round(spent, 1)]) + "\n")
        inputs = len(list(folder.iterdir()))
        print(
            f"{target:14} {executions:10} executions {spent:6.0f} s {inputs:6} inputs", flush=True
        )
        if done.returncode != 0:
            sound = False
            print(done.stdout[-4000:], flush=True)
    return sound


def report(work: Path) -> None:
    """Print a table of all that was run under this work folder."""
    totals: dict[str, tuple[int, float]] = {}
    for line in (work / "ledger.jsonl").read_text().splitlines():
        target, executions, seconds = json.loads(line)
        before = totals.get(target, (0, 0.0))
        totals[target] = before[0] + executions, before[1] + seconds
    print("| target | executions | minutes |\n| --- | --- | --- |")
    for target, (executions, seconds) in sorted(totals.items()):
        print(f"| {target} | {executions:,} | {seconds / 60:.1f} |")
    executions = sum(each for each, _ in totals.values())
    print(f"| in all | {executions:,} | {sum(s for _, s in totals.values()) / 60:.1f} |")


def keep(targets: list[str], work: Path) -> None:
    """Write for each target the smallest inputs that together reach what all inputs reach."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for target in targets:
        folder = corpus_folder(work, target)
        with tempfile.TemporaryDirectory() as merged:
            done = libfuzzer(target, work / target, "-merge=1", merged, str(folder))
            found = sorted((path.read_bytes() for path in Path(merged).iterdir()), key=len)
        if done.returncode != 0 or not found:
            sys.exit(f"{target}: the inputs could not be merged\n{done.stdout[-2000:]}")
        chosen, size = [], 0
        for data in found:
            size += len(data)
            if size > KEPT_BYTES_MAX:
                break
            chosen.append(data)
        with zipfile.ZipFile(KEPT / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for data in sorted(chosen, key=input_name):
                archive.writestr(zipfile.ZipInfo(input_name(data), ZIP_DATE), data)
        written = (KEPT / f"{target}.zip").stat().st_size
        print(f"{target:14} {len(chosen):5} of {len(found)} inputs, {written} bytes", flush=True)


def one(target: str, findings: str, arguments: list[str]) -> None:
    """Be libFuzzer's process; what fails is written to a file whose name begins as told."""
    import atheris

    with atheris.instrument_imports(include=["edgellama"]):
        from edgellama.testing.fuzzing import TARGETS
    # A merge starts this very command again, and puts its words together with spaces.
    command = f"{sys.executable} {Path(__file__)} one {target} {findings}"
    chosen = TARGETS[target]
    mutated = chosen.mutated

    def tried(data: bytes) -> None:
        try:
            chosen.run(data)
        except BaseException:
            Path(f"{findings}-{input_name(data)}").write_bytes(data)
            raise

    def mutate(data: bytes, bytes_max: int, seed: int) -> bytes:
        assert mutated is not None
        if seed % 4 == 0:
            changed: bytes = atheris.Mutate(data, bytes_max)
            return changed
        return mutated(data, bytes_max, seed)

    how = {"custom_mutator": mutate} if mutated else {}
    atheris.Setup([command, *arguments], tried, **how)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "report", "keep", "show", "one"])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzzing")
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    options = parser.parse_args()
    if options.verb == "run":
        sys.exit(not run(names(options.words), options.seconds, options.work))
    elif options.verb == "report":
        report(options.work)
    elif options.verb == "keep":
        keep(names(options.words), options.work)
    else:
        from edgellama.testing.fuzzing import TARGETS

        target, path = options.words
        TARGETS[target].run(Path(path).read_bytes())
        print("nothing happens")


if __name__ == "__main__":
    main()
