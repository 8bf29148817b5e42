"""The kinds of weights, and what a GGUF block of each says: integers, scales and minimums.

A quantised weight is ``scale * factor * (quant - offset)``, to which some kinds add ``minimum *
minimum factor``. Scale and minimum are fp16, one of each for a GGUF block of 32 or 256 columns;
factors are small integers for 16 or 32 columns of a block of 256, and 1 elsewhere. Source:
ggml/src/ggml-common.h and ggml-quants.c, compared with the gguf package by the tests.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_COLUMNS = 32  # columns that share an activation scale; GGUF's blocks are one or eight of it
HALF_COLUMNS = 16  # the fewest columns that share a factor
SIGN_OF_HALF = np.uint16(0x8000)


class WeightKind(enum.Enum):
    """How a weight is stored; the value is GGUF's name of the tensor type."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q2_K = "Q2_K"
    Q3_K = "Q3_K"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"

    @property
    def block_size(self) -> int:
        """Weights in one GGUF block."""
        return FORMATS[self].columns if self.quantized else 1

    @property
    def block_bytes(self) -> int:
        """Bytes of one GGUF block, its scale included."""
        return sum(FORMATS[self].fields.values()) if self.quantized else _ELEMENT_BYTES[self]

    @property
    def quantized(self) -> bool:
        """Whether the weights are small integers with a scale a block."""
        return self in FORMATS


# Numbers for compiled code, in the order above.
F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = range(len(WeightKind))
KIND_CODES = dict(zip(WeightKind, range(len(WeightKind)), strict=True))

_ELEMENT_BYTES = {WeightKind.F32: 4, WeightKind.F16: 2, WeightKind.BF16: 2}


class Factors(enum.Enum):
    """What the two bytes of factors of 32 columns are."""

    NONE = "there are none: every factor is 1"
    SCALES = "a signed scale of each 16 columns"
    SCALE_AND_MINIMUM = "the scale and the minimum of all 32"
    NIBBLES = "scale (low nibble) and minimum (high nibble) of each 16"


class Spread(NamedTuple):
    """How ``width`` bits of each quant lie in a field: its bytes come in runs of ``run``.

    A run's lowest bits belong to as many columns, the bits above them to the columns that follow.
    """

    width: int
    run: int


class BlockFormat(NamedTuple):
    """One GGUF block. ``fields``: name and bytes in the order of the file."""

    columns: int
    fields: dict[str, int]
    low: Spread
    high: Spread | None = None
    offset: int = 0
    factors: Factors = Factors.NONE

    @property
    def bits(self) -> int:
        """Bits of a quant."""
        return self.low.width + (self.high.width if self.high else 0)

    @property
    def minimums(self) -> bool:
        """Whether weights have a minimum added."""
        return "minimum" in self.fields


FORMATS: dict[WeightKind, BlockFormat] = {
    WeightKind.Q8_0: BlockFormat(32, {"scale": 2, "low": 32}, Spread(8, 32)),
    WeightKind.Q4_0: BlockFormat(32, {"scale": 2, "low": 16}, Spread(4, 16), offset=8),
    WeightKind.Q4_1: BlockFormat(32, {"scale": 2, "minimum": 2, "low": 16}, Spread(4, 16)),
    WeightKind.Q5_0: BlockFormat(
        32, {"scale": 2, "high": 4, "low": 16}, Spread(4, 16), Spread(1, 1), offset=16
    ),
    WeightKind.Q5_1: BlockFormat(
        32, {"scale": 2, "minimum": 2, "high": 4, "low": 16}, Spread(4, 16), Spread(1, 1)
    ),
    WeightKind.Q2_K: BlockFormat(
        256,
        {"factors": 16, "low": 64, "scale": 2, "minimum": 2},
        Spread(2, 32),
        factors=Factors.NIBBLES,
    ),
    WeightKind.Q3_K: BlockFormat(
        256,
        {"high": 32, "low": 64, "factors": 12, "scale": 2},
        Spread(2, 32),
        Spread(1, 32),
        offset=4,
        factors=Factors.SCALES,
    ),
    WeightKind.Q4_K: BlockFormat(
        256,
        {"scale": 2, "minimum": 2, "factors": 12, "low": 128},
        Spread(4, 32),
        factors=Factors.SCALE_AND_MINIMUM,
    ),
    WeightKind.Q5_K: BlockFormat(
        256,
        {"scale": 2, "minimum": 2, "factors": 12, "high": 32, "low": 128},
        Spread(4, 32),
        Spread(1, 32),
        factors=Factors.SCALE_AND_MINIMUM,
    ),
    WeightKind.Q6_K: BlockFormat(
        256,
        {"low": 128, "high": 64, "factors": 16, "scale": 2},
        Spread(4, 64),
        Spread(2, 32),
        offset=32,
        factors=Factors.SCALES,
    ),
}


class BlockScales(NamedTuple):
    """What multiplies the quants of GGUF blocks, and what is added; None where there is none.

    ``scales``, ``minimums``: fp16 bits [...]. ``factors``: uint8 [..., columns // 32, 2].
    """

    scales: NDArray[np.uint16]
    minimums: NDArray[np.uint16] | None
    factors: NDArray[np.uint8] | None


def block_quants(kind: WeightKind, blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the quants, uint8 [..., columns], of GGUF blocks, uint8 [..., bytes of a block]."""
    format_, fields = FORMATS[kind], block_fields(kind, blocks)
    quants = _gathered(fields["low"], format_.low)
    if format_.high:
        quants |= _gathered(fields["high"], format_.high) << np.uint8(format_.low.width)
    return quants


def block_scales(kind: WeightKind, blocks: NDArray[np.uint8]) -> BlockScales:
    """Return scales, minimums and factors of GGUF blocks, uint8 [..., bytes of a block]."""
    format_, fields = FORMATS[kind], block_fields(kind, blocks)
    minimums = _halves(fields["minimum"]) if format_.minimums else None
    factors = None
    if format_.factors is not Factors.NONE:
        factors = _factor_pairs(kind, fields["factors"])
        if minimums is not None:
            minimums = minimums ^ SIGN_OF_HALF  # the file's are to be taken away
    return BlockScales(_halves(fields["scale"]), minimums, factors)


def block_fields(kind: WeightKind, blocks: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Return views of the fields of GGUF blocks, uint8 [..., bytes of the field], by name."""
    fields, start = {}, 0
    for name, size in FORMATS[kind].fields.items():
        fields[name] = blocks[..., start : start + size]
        start += size
    return fields


def factor_numbers(
    kind: WeightKind, factors: NDArray[np.uint8]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the factors of scales and of minimums of each 16 columns, from pairs [..., 2]."""
    match FORMATS[kind].factors:
        case Factors.SCALES:
            return factors.view(np.int8).astype(np.int32), np.zeros(factors.shape, np.int32)
        case Factors.SCALE_AND_MINIMUM:
            wide = factors.astype(np.int32)
            return wide[..., [0, 0]], wide[..., [1, 1]]
        case Factors.NIBBLES:
            wide = factors.astype(np.int32)
            return wide & 15, wide >> 4
        case Factors.NONE:
            raise AssertionError("this kind has no factors")


def _halves(field: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return np.ascontiguousarray(field).view("<u2")[..., 0]


def _gathered(field: NDArray[np.uint8], spread: Spread) -> NDArray[np.uint8]:
    """Return the bits of a field, one number a column."""
    count = 8 // spread.width
    runs = field.reshape(*field.shape[:-1], -1, 1, spread.run)
    shifts = (spread.width * np.arange(count, dtype=np.uint8))[:, None]
    numbers = (runs >> shifts) & np.uint8((1 << spread.width) - 1)
    return numbers.reshape(*field.shape[:-1], field.shape[-1] * count)


def _factor_pairs(kind: WeightKind, field: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return factors as bytes [..., 8, 2]; in 12 bytes lie sixteen of six bits each."""
    if kind is WeightKind.Q3_K:
        low = _gathered(field[..., :8], Spread(4, 8))
        numbers = low | _gathered(field[..., 8:], Spread(2, 4)) << np.uint8(4)
        return (numbers - np.uint8(32)).reshape(*field.shape[:-1], -1, 2)
    if kind in (WeightKind.Q4_K, WeightKind.Q5_K):
        first, second, rest = (field[..., i : i + 4] for i in (0, 4, 8))
        low_bits, high_bits = np.uint8(0x3F), np.uint8(0x30)
        late_scales = rest & np.uint8(15) | first >> np.uint8(2) & high_bits
        late_minimums = rest >> np.uint8(4) | second >> np.uint8(2) & high_bits
        scales = np.concatenate([first & low_bits, late_scales], axis=-1)
        minimums = np.concatenate([second & low_bits, late_minimums], axis=-1)
        return np.stack([scales, minimums], axis=-1)
    return field.reshape(*field.shape[:-1], -1, 2)
