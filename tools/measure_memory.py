"""Measure whether a node keeps to the memory that its plan counts.

Makes random models of several shapes and types, lets one process answer with each in a context
that it fills nearly, and prints a Markdown table: what the plan counts (weights, KV cache and
scratch), the process's greatest resident memory, and the rest, beside what is taken off an offer
for the process itself. Linux only (reads /proc).

    python tools/measure_memory.py [--backend numpy] [--folder FOR_THE_MODELS]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgellama.net.facts import OVERHEAD_NUMBA_BYTES, OVERHEAD_NUMPY_BYTES
from edgellama.wire.messages import Finished, Notice, Piece

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.node.alone import AnswerMessage

HERE = Path(__file__).parent
MIB = 1 << 20
LEFT_TOKENS = 24  # of the context, for the answer


class Case(NamedTuple):
    """A model and the context that it is asked in."""

    shape: str
    layers: int
    kind: str
    context: int
    kv: str = "f16"


CASES = (
    Case("small", 8, "F32", 1024),
    Case("smollm-135m", 30, "Q8_0", 512),
    Case("smollm-135m", 30, "Q8_0", 2048),
    Case("smollm-135m", 30, "Q8_0", 2048, "q8"),
    Case("tinyllama-1.1b", 6, "Q4_0", 512),
    Case("tinyllama-1.1b", 6, "Q4_K_M", 2048),
    Case("llama-3.2-1b", 2, "Q4_0", 512),
    Case("llama-3.2-1b", 2, "Q6_K", 4096),
    Case("qwen2.5-0.5b", 4, "Q8_0", 2048),
    Case("small-qwen3moe", 6, "Q8_0", 1024),
)


def main() -> None:
    """Measure each case in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="numba", choices=("numba", "numpy"))
    parser.add_argument("--folder", type=Path, help="keeps the models for the next time")
    parser.add_argument("--answer", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        _answer(*arguments.answer)
        return
    overhead = OVERHEAD_NUMBA_BYTES if arguments.backend == "numba" else OVERHEAD_NUMPY_BYTES
    print(f"| {arguments.backend} | context | counted | resident at most | beside | allowed |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            model = _model(arguments.folder or Path(folder), case)
            told = _measured(model, case, arguments.backend, Path(folder))
            name = f"{case.shape}, {case.layers} layers, {case.kind}, KV {case.kv}"
            print(
                f"| {name} | {case.context} | {told['counted'] // MIB} MiB "
                f"| {told['resident'] // MIB} MiB "
                f"| {(told['resident'] - told['counted']) // MIB} MiB | {overhead // MIB} MiB |",
                flush=True,
            )


def _model(folder: Path, case: Case) -> Path:
    path = folder / f"{case.shape}-{case.layers}-{case.kind}.gguf"
    if not path.exists():
        make: list[str | Path] = [
            sys.executable,
            HERE / "make_random_model.py",
            "--shape",
            case.shape,
        ]
        make += ["--layers", str(case.layers), "--type", case.kind, path]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    return path


def _measured(model: Path, case: Case, backend: str, folder: Path) -> dict[str, int]:
    words = [model, str(case.context), case.kv, backend, folder / "home"]
    done = subprocess.run(
        [sys.executable, __file__, "--answer", *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "EDGELLAMA_HOME": str(folder / "home")},
    )
    told: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return told


def _answer(model: str, context: str, kv_kind: str, backend: str, _home: str) -> None:
    """Answer once; print what is counted and what was resident."""
    from edgellama.model.cost import model_facts
    from edgellama.model.gguf import GgufFile
    from edgellama.net.paths import StatePaths
    from edgellama.node.asking import LocalSettings, device_asker
    from edgellama.plan.ram import Requirements, stage_bytes
    from edgellama.values import SamplingSettings, Span
    from edgellama.wire.messages import Ask

    with GgufFile.open(model) as gguf:
        facts = model_facts(gguf, "00" * 32, "model")
    counted = stage_bytes(
        facts, Span(0, facts.layers), True, Requirements(int(context), 1, kv_kind)
    )
    local = LocalSettings(None, backend, int(context), kv_kind)
    sampling = SamplingSettings(temperature=1.0, top_p=0.95)
    with device_asker(Path(model), local, StatePaths.locate(), lambda _: None) as asker:
        words = int(context) - LEFT_TOKENS
        while True:  # words are of one token each, or nearly
            prompt = "e " * words
            ask = Ask(1, sampling, 0, True, True, (), "", 1, (), 0, 0, 0, prompt)
            tokens = len(_end(asker.answer(ask)).prompt_tokens)
            if tokens <= int(context) - LEFT_TOKENS:
                break
            words = words * (int(context) - LEFT_TOKENS) // tokens
        ask = Ask(2, sampling, 16, True, True, (), "", 1, (), 0, 0, 0, prompt)
        _end(asker.answer(ask))
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        resident = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"counted": counted, "resident": resident * 1024}))


def _end(messages: Iterator[AnswerMessage]) -> Finished:
    *_, end = messages
    assert not isinstance(end, Piece | Notice)
    return end


if __name__ == "__main__":
    main()
