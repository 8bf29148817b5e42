"""The numbers of the GGUF format: value types, tensor types and the bounds on untrusted files.

Source: ggml/docs/gguf.md and docs/spec/gguf.md here, which says what each bound is for.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 3 differs from 2 only in allowing big-endian files, which are refused

HEADER_BYTES_MAX = 64 << 20  # 260,000 tokens with merges take about 15 MiB
TENSORS_MAX = 65_536
KEYS_MAX = 65_536
KEY_BYTES_MAX = 65_535
TENSOR_NAME_BYTES_MAX = 64
STRING_BYTES_MAX = 16 << 20
ARRAY_ITEMS_MAX = 4 << 20
ARRAY_DEPTH_MAX = 2  # an array of arrays
DIMENSIONS_MAX = 4
ALIGNMENT_DEFAULT = 32
ALIGNMENT_MIN = 8
ALIGNMENT_MAX = 65_536


class ValueType(enum.IntEnum):
    """The type of a metadata value, by its number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# The codes of the struct module; a BOOL is one byte that must hold 0 or 1.
SCALAR_CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


class TensorKind(NamedTuple):
    """How one type of tensor lies in the file: blocks of ``block_size`` weights."""

    name: str
    block_size: int
    block_bytes: int


# By number in the file. A type is added by a row here and a WeightKind in edgellama_kernels.
TENSOR_KINDS: dict[int, TensorKind] = {
    0: TensorKind("F32", 1, 4),
    1: TensorKind("F16", 1, 2),
    2: TensorKind("Q4_0", 32, 18),
    3: TensorKind("Q4_1", 32, 20),
    6: TensorKind("Q5_0", 32, 22),
    7: TensorKind("Q5_1", 32, 24),
    8: TensorKind("Q8_0", 32, 34),
    10: TensorKind("Q2_K", 256, 84),
    11: TensorKind("Q3_K", 256, 110),
    12: TensorKind("Q4_K", 256, 144),
    13: TensorKind("Q5_K", 256, 176),
    14: TensorKind("Q6_K", 256, 210),
    30: TensorKind("BF16", 1, 2),
}

# Known, so that an error can name them, and not supported yet.
UNSUPPORTED_TENSOR_KINDS: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
