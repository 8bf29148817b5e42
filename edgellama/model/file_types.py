"""What a whole GGUF file is called by its tensors' types: ``general.file_type``.

Source: ``enum llama_ftype`` in llama.cpp's include/llama.h.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgellama.model.gguf import GgufFile

FILE_TYPES: Final[dict[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    21: "Q2_K_S",
    32: "BF16",
}

FILE_TYPE_NUMBERS: Final[dict[str, int]] = {
    "F32": 0,
    "F16": 1,
    "BF16": 32,
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
}
"""By the type that most of the tensors have; a file of one K type is the small mixture, ``_S``."""


def file_type_name(gguf: GgufFile) -> str:
    """Return what the file calls its type, else the type that most of its bytes have."""
    stated = gguf.metadata.get("general.file_type")
    if isinstance(stated, int) and stated in FILE_TYPES:
        return FILE_TYPES[stated]
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        sizes[tensor.kind_name] += tensor.bytes
    return sizes.most_common(1)[0][0] if sizes else ""


def family_name(gguf: GgufFile) -> str:
    """Return the architecture that the file names, such as ``qwen2``; empty where it is none."""
    name = gguf.metadata.get("general.architecture")
    return name if isinstance(name, str) and name.isprintable() else ""
