"""What a mesh with q8 links has to answer: its split in one process, each link's loss by hand."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import edgellama_kernels
from edgellama_kernels.row_codec import REFERENCE
from model_running import SESSION, Ring, packed_model

from edgellama.model.hidden import take_rows
from edgellama.model.sampling import sample
from edgellama.values import KV_Q8, SamplingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgellama_kernels import HiddenRows

INT8 = ("--kv", "q8")
LOSSY = (*INT8, "--wire", "q8")
COUNT = 60
SETTINGS = SamplingSettings(temperature=1.5, top_k=40, top_p=0.95, seed=7)  # so that a loss shows
DRAWN = ("-n", COUNT, "--temperature", 1.5, "--top-k", 40, "--top-p", 0.95, "--seed", 7)


def over_a_link(hidden: HiddenRows) -> HiddenRows:
    """Return what comes out of a q8 link."""
    halves = REFERENCE.unpack(REFERENCE.pack(hidden.halves), hidden.halves.shape[1])
    return hidden._replace(halves=halves)


def answer_by_hand(
    model: Path, home: str, route: list[dict[str, Any]], prompt: Sequence[int]
) -> list[int]:
    """Return the tokens of ``DRAWN`` by a route as ``ask --json`` tells it; NumPy computes.

    ``home`` is a node's name. Keys and values are kept as int8.
    """
    packed = dataclasses.replace(packed_model(model), kv_kind=KV_Q8)
    stages = [stage for stage in route if stage["layers"][0] < stage["layers"][1]]
    counts = [past - first for first, past in (stage["layers"] for stage in stages)]
    ring = Ring(packed, edgellama_kernels.load("numpy"), counts)
    names = [home, *(stage["name"] for stage in stages), home]
    crossed = [one != other for one, other in itertools.pairwise(names)]
    text = list(prompt)
    step = text
    for _ in range(COUNT):
        position = len(text) - len(step)
        hidden = ring.head.embed(step)
        for stage, crosses in zip(ring.stages, crossed[:-1], strict=True):
            hidden = stage.forward(SESSION, over_a_link(hidden) if crosses else hidden, position)
        if crossed[-1]:
            hidden = over_a_link(hidden)
        logits = ring.head.logits(take_rows(hidden, len(step) - 1, len(step)))
        text.append(sample(logits[0], SETTINGS, len(text), text))
        step = text[-1:]
    return text[-COUNT:]
