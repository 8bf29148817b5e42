"""Whole models on one machine: ``model_exchange.py BACKEND FILE...`` prints hashes of their logits.

The models run as stages do, by recorded programs, with either kind of KV cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import edgellama_kernels
from model_running import Ring, packed_model

from edgellama.values import KV_KINDS

TOKENS = [number * 37 % 500 for number in range(150)]  # in the third tile of attention
CHUNKS = (100, 1, 49)


def logit_hashes(backend: str, paths: list[str]) -> dict[str, str]:
    """Return SHA-256 of the float32 logits of ``TOKENS``, by model and kind of cache."""
    kernels = edgellama_kernels.load(backend, 2)
    assert kernels.name == backend
    found = {}
    for path in map(Path, paths):
        model = packed_model(path)
        for kv_kind in KV_KINDS:
            kept = dataclasses.replace(model, kv_kind=kv_kind)
            ring = Ring(kept, kernels, (1, model.config.layers - 1))
            logits = ring.prefill(TOKENS, CHUNKS)
            found[f"{path.stem} {kv_kind}"] = hashlib.sha256(logits.tobytes()).hexdigest()
    kernels.close()
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(logit_hashes(sys.argv[1], sys.argv[2:])))
