"""Measure what cutting a model into stages costs in one process, and that it changes no bit.

    python tools/bench_stages.py MODEL.gguf [--stages 4] [--threads 1] [--rounds 15]

The whole and the cut model take turns, a few tokens each, so that a machine whose speed drifts
slows both alike: the ratios are medians over rounds of two times side by side.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from edgellama_kernels import load

from edgellama.model.head import Head
from edgellama.model.hidden import take_rows
from edgellama.model.stage import Stage
from edgellama.net.paths import StatePaths
from edgellama.node.scoring import measured_model
from edgellama.values import KV_F16, Span

if TYPE_CHECKING:
    from edgellama_kernels import Kernels
    from numpy.typing import NDArray

    from edgellama.node.engine import LoadedSpan

SESSION = 1
PROMPT_TOKENS, ANSWER_TOKENS = 128, 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    paths = StatePaths.locate()
    with measured_model(asked.model, None, 1, "numba", paths, print, kv_kind=KV_F16) as measured:
        home = measured.loaded.home
        assert home is not None
        kernels = load("numba", asked.threads, adapt=False)
        head = Head(kernels, measured.loaded.config, home)
        whole, cut = (_stages(kernels, measured.loaded, count) for count in (1, asked.stages))
        prompts, answers = [], []
        for turn in range(asked.rounds):
            order = (whole, cut) if turn % 2 else (cut, whole)
            times = {id(stages): _round(head, stages) for stages in order}
            (a, b, first), (c, d, second) = times[id(whole)], times[id(cut)]
            assert np.array_equal(first, second), "a cut has changed a bit"
            prompts.append((a, c))
            answers.append((b, d))
        kernels.close()
    print(f"{asked.stages} stages beside one, {asked.threads} threads, {asked.rounds} rounds:")
    for name, pairs in (("prompt", prompts), ("answer", answers)):
        ratio = statistics.median(cut_s / whole_s for whole_s, cut_s in pairs)
        best = min(cut_s for _, cut_s in pairs) / min(whole_s for whole_s, _ in pairs)
        print(f"  {name}: {ratio:.3f} times as long (of the best times {best:.3f})")


def _stages(kernels: Kernels, loaded: LoadedSpan, count: int) -> list[Stage]:
    layers, context = loaded.span.layers, PROMPT_TOKENS + ANSWER_TOKENS
    cuts = [layers * n // count for n in range(count + 1)]
    return [
        Stage(kernels, loaded.config, Span(first, past), loaded.layers[first:past], context, 1)
        for first, past in itertools.pairwise(cuts)
    ]


def _round(head: Head, stages: list[Stage]) -> tuple[float, float, NDArray[np.float32]]:
    """Return the seconds of a prompt and of an answer, and the last logits."""
    for stage in stages:
        if SESSION in stage.sessions():
            stage.close(SESSION)
        stage.open(SESSION)
    started_s = time.perf_counter()
    logits = _pass(head, stages, [7 * n % 1000 for n in range(PROMPT_TOKENS)], 0)
    read_s = time.perf_counter()
    for position in range(PROMPT_TOKENS, PROMPT_TOKENS + ANSWER_TOKENS):
        logits = _pass(head, stages, [int(logits.argmax())], position)
    return read_s - started_s, time.perf_counter() - read_s, logits


def _pass(head: Head, stages: list[Stage], tokens: list[int], position: int) -> NDArray[np.float32]:
    hidden = head.embed(tokens)
    for stage in stages:
        hidden = stage.forward(SESSION, hidden, position)
    logits: NDArray[np.float32] = head.logits(take_rows(hidden, len(tokens) - 1, len(tokens)))[-1]
    return logits


if __name__ == "__main__":
    main()
