"""Hidden state in half of its bytes: what a q8 link carries, checked where it comes in.

A payload is, each over all rows: exponents (one byte), columns of the outliers (16 bits), their
fp16 bits, the blocks' fp16 scales, and the quants (64 bytes a block). All is little-endian, and
the length follows from the rows and the width alone. What the numbers mean is the row codec's
business, ``edgellama_kernels.row_codec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from edgellama_kernels import HiddenRows
from edgellama_kernels.row_codec import BLOCK_COLUMNS, PackedRows, RowCodec, blocks, outliers

from edgellama.errors import WireError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXPONENT_BITS: Final = 0x7C00  # all set in an fp16 infinity or NaN
_SIGN_BIT: Final = 0x8000


def row_bytes(width: int) -> int:
    """Return how many bytes of the payload a row takes."""
    return 1 + 4 * outliers(width) + 2 * blocks(width) + BLOCK_COLUMNS * blocks(width)


def encode_lossy(hidden: HiddenRows, codec: RowCodec) -> bytes:
    """Return the payload of ``hidden``, whose numbers are finite."""
    packed = codec.pack(hidden.halves)
    numbers = (part.astype("<u2", copy=False) for part in packed[:3])
    parts = [hidden.exponents, *numbers, packed.quants]
    return b"".join(part.tobytes() for part in parts)


def decode_lossy(rows: int, width: int, payload: bytes | memoryview, codec: RowCodec) -> HiddenRows:
    """Return ``rows`` rows of ``width``; WireError for a payload that no sender makes."""
    size = rows * row_bytes(width)
    if len(payload) != size:
        raise WireError(f"q8 activations of {len(payload)} bytes where {size} belong")
    exponents = np.frombuffer(payload, np.uint8, rows)
    at = rows
    parts: list[NDArray[np.uint16]] = []
    for count in (outliers(width), outliers(width), blocks(width)):
        part = np.frombuffer(payload, "<u2", rows * count, offset=at).reshape(rows, count)
        parts.append(part.astype(np.uint16, copy=False))
        at += part.nbytes
    quants = np.frombuffer(payload, np.int8, offset=at).reshape(rows, blocks(width) * BLOCK_COLUMNS)
    columns, taken, scales = parts
    if bool((columns >= width).any()) or bool((columns[:, 1:] <= columns[:, :-1]).any()):
        raise WireError("q8 activations with outliers out of their order")
    for halves, forbidden in ((taken, 0), (scales, _SIGN_BIT)):
        infinite = (halves & _EXPONENT_BITS) == _EXPONENT_BITS
        if bool(infinite.any()) or bool((halves & forbidden).any()):
            raise WireError("q8 activations with a number that is infinite or no number")
    return HiddenRows(codec.unpack(PackedRows(columns, taken, scales, quants), width), exponents)
