"""Rotary position embedding: a table of cosines and sines that every node computes alike.

No libm: the turns that a pair makes per position are a fraction of 2^64 computed in decimal,
the angle of a position is an exact product modulo 2^64, and cosine and sine of what is left after
splitting off the nearest quarter turn are polynomials of float64 ``+`` and ``*`` alone (Cephes
coefficients, Moshier 1989). Each operation is one rounded IEEE operation, so the table has the
same bits on every machine; its error is below 3.1e-8 at every position.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellama.model.config import LlamaConfig

DECIMAL_DIGITS = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
TABLE_CHUNK_POSITIONS = 256  # computed at a time: 16 KiB to 128 KiB of table, well under 1 ms

_SINE = (
    1.58962301576546568060e-10,
    -2.50507477628578072866e-8,
    2.75573136213857245213e-6,
    -1.98412698295895385996e-4,
    8.33333333332211858878e-3,
    -1.66666666666666307295e-1,
)
_COSINE = (
    -1.13585365213876817300e-11,
    2.08757008419747316778e-9,
    -2.75573141792967388112e-7,
    2.48015872888517045348e-5,
    -1.38888888888730564116e-3,
    4.16666666666665929218e-2,
)
_RADIANS_PER_UNIT = 6.283185307179586 * 2.0**-53  # one unit is a turn / 2^53


class RopeTable:
    """Cosines and sines for positions 0 up to ``positions_max``, filled in as they are needed."""

    def __init__(self, config: LlamaConfig, positions_max: int) -> None:
        pairs = config.head_width // 2
        # Pairs beyond rope_dimensions do not turn: cosine 1, sine 0.
        self._turns = np.zeros(pairs, np.uint64)
        turns = turns_per_position(
            config.rope_base, config.rope_dimensions, config.rope_scale, config.rope_factors
        )
        self._turns[: len(turns)] = turns
        self._table = np.zeros((positions_max, 2, pairs), np.float32)
        self._filled = 0

    def rows(self, position: int, count: int) -> NDArray[np.float32]:
        """Return float32 [count, 2, head_width // 2]: cosines, then sines, from ``position`` on."""
        past = position + count
        assert 0 <= position < past <= len(self._table)
        while self._filled < past:
            first = self._filled
            self._filled = min(first + TABLE_CHUNK_POSITIONS, len(self._table))
            positions = np.arange(first, self._filled, dtype=np.uint64)
            angles = positions[:, None] * self._turns[None, :]  # modulo 2^64 on purpose
            cosines, sines = cosine_and_sine(angles)
            self._table[first : self._filled, 0] = cosines
            self._table[first : self._filled, 1] = sines
        return self._table[position:past]


def turns_per_position(
    base: float, dimensions: int, scale: float, factors: tuple[float, ...]
) -> NDArray[np.uint64]:
    """Return uint64 [dimensions // 2]: 2^64 base^(-2i/dimensions) / (2 pi scale factors[i])."""
    turns = []
    with localcontext(Context(prec=DECIMAL_DIGITS, rounding=ROUND_HALF_EVEN)):
        logarithm = Decimal(base).ln()
        for index in range(dimensions // 2):
            radians = (-logarithm * 2 * index / dimensions).exp()
            fraction = radians / (2 * PI) / Decimal(scale) / Decimal(factors[index])
            turns.append(int((fraction * 2**64).to_integral_value()) % 2**64)
    return np.array(turns, np.uint64)


def cosine_and_sine(angles: NDArray[np.uint64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosine and sine of angles given in turns / 2^64, each rounded to float32 once."""
    quarter = (angles + np.uint64(1 << 61)) >> np.uint64(62)  # the nearest quarter turn, 0 to 3
    rest = (angles - (quarter << np.uint64(62))).view(np.int64)  # within an eighth of a turn
    x = (rest >> 11).astype(np.float64) * _RADIANS_PER_UNIT  # 53 bits: the conversion is exact
    square = x * x
    sine = x + x * (square * _polynomial(_SINE, square))
    cosine = (1.0 - square * 0.5) + square * (square * _polynomial(_COSINE, square))
    odd = (quarter & np.uint64(1)).astype(bool)
    turned_cosine = np.where(odd, sine, cosine)
    turned_sine = np.where(odd, cosine, sine)
    negative_cosine = (quarter == 1) | (quarter == 2)
    negative_sine = quarter >= 2
    return (
        np.where(negative_cosine, -turned_cosine, turned_cosine).astype(np.float32),
        np.where(negative_sine, -turned_sine, turned_sine).astype(np.float32),
    )


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result
