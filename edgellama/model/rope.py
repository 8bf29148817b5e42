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

    from edgellama.model.rope_settings import Rope

DECIMAL_DIGITS = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
CHUNK_POSITIONS = 256  # computed at a time: about 1 ms and 128 KiB for heads of 128
CHUNKS_MAX = 16  # kept: as many sessions at unlike positions do not make each other recompute

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
    """Cosines and sines of any position, computed in chunks, of which the latest are kept."""

    def __init__(self, rope: Rope, head_width: int) -> None:
        # Pairs beyond its dimensions stay as they are: cosine 1, sine 0.
        self._turns = np.zeros(head_width // 2, np.uint64)
        self._turns[: rope.dimensions // 2] = turns_per_position(rope)
        self._magnitudes = np.ones(head_width // 2, np.float64)
        self._magnitudes[: rope.dimensions // 2] = rope.magnitude
        self._chunks: dict[int, NDArray[np.float32]] = {}

    def rows(self, position: int, count: int) -> NDArray[np.float32]:
        """Return float32 [count, 2, head_width // 2]: cosines, then sines, from ``position`` on."""
        assert position >= 0
        assert count >= 1
        past = position + count
        first_chunk = position // CHUNK_POSITIONS
        past_chunk = -(-past // CHUNK_POSITIONS)
        chunks = [self._chunk(index) for index in range(first_chunk, past_chunk)]
        table = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        start = first_chunk * CHUNK_POSITIONS
        return table[position - start : past - start]

    def _chunk(self, index: int) -> NDArray[np.float32]:
        chunk = self._chunks.get(index)
        if chunk is None:
            first = index * CHUNK_POSITIONS
            positions = np.arange(first, first + CHUNK_POSITIONS, dtype=np.uint64)
            angles = positions[:, None] * self._turns[None, :]  # modulo 2^64 on purpose
            chunk = np.stack(cosine_and_sine(angles, self._magnitudes), axis=1)
            if len(self._chunks) >= CHUNKS_MAX:
                del self._chunks[next(iter(self._chunks))]
            self._chunks[index] = chunk
        return chunk


def turns_per_position(rope: Rope) -> NDArray[np.uint64]:
    """Return uint64 [dimensions // 2]: 2^64 base^(-2i/dimensions) / (2 pi scale factors[i])."""
    turns = []
    with localcontext(Context(prec=DECIMAL_DIGITS, rounding=ROUND_HALF_EVEN)):
        logarithm = Decimal(rope.base).ln()
        for index, factor in enumerate(rope.factors):
            radians = (-logarithm * 2 * index / rope.dimensions).exp()
            fraction = radians / (2 * PI) / Decimal(rope.scale) / Decimal(factor)
            turns.append(int((fraction * 2**64).to_integral_value()) % 2**64)
    return np.array(turns, np.uint64)


def cosine_and_sine(
    angles: NDArray[np.uint64], magnitudes: NDArray[np.float64] | float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosine and sine of angles given in turns / 2^64, times ``magnitudes``, as float32.

    The last step rounds a product of float64 to float32.
    """
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
        (np.where(negative_cosine, -turned_cosine, turned_cosine) * magnitudes).astype(np.float32),
        (np.where(negative_sine, -turned_sine, turned_sine) * magnitudes).astype(np.float32),
    )


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result
