"""Where what llama.cpp publishes lies, if it is at hand: vocabularies with texts, templates."""

from __future__ import annotations

import os
from pathlib import Path

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "vocabs"
SUITE = Path(os.environ.get("EDGELLAMA_VOCAB_SUITE") or _BESIDE_THE_CHECKOUT)
