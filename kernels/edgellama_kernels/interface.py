"""What every backend offers and what it works on; the numbers are fixed by ``README.md``."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama_kernels.expert_layout import PackedExperts
    from edgellama_kernels.layout import PackedMatrix
    from edgellama_kernels.row_codec import RowCodec

Float32 = NDArray[np.float32]

TILE_POSITIONS = 64  # attention adds up values in tiles of this many absolute positions (rule 7)
LANE_POSITIONS = 16  # neighbouring positions of a key dimension lie together in the cache
GROUP_POSITIONS = 8  # of int8 keys: as the rows of a matrix in layout R8
QUAD_NUMBERS = 4  # neighbouring int8 of a key that lie together
QUANTIZED_WIDTH_MAX = 1024  # of a head: 1024 products of int8 add up to less than 2^24
ROW_EXPONENT_MAX = 113  # 2^-113 brings the largest float32 below 65504 (rule 8)


class BackendUnavailable(RuntimeError):  # noqa: N818 - a fact, not a fault
    """The backend that was asked for cannot run here."""


class NonFinite(ArithmeticError):  # noqa: N818 - names the number, not the fault
    """A kernel met infinity or NaN, or a value too large for where it must be kept."""


class Unrecordable(RuntimeError):  # noqa: N818 - a fact, not a fault
    """A program cannot be made of what was recorded; the verbs can be run one by one."""


class HiddenRows(NamedTuple):
    """The hidden state between layers (rule 8): ``halves`` times ``2^exponents``, row by row.

    halves: uint16 [T, width], fp16 bits; exponents: uint8 [T].
    """

    halves: NDArray[np.uint16]
    exponents: NDArray[np.uint8]


class CacheKind(enum.Enum):
    """How keys and values are kept; the value is how a person names it."""

    F16 = "f16"
    Q8 = "q8"


class CacheLayer(NamedTuple):
    """One layer's keys and values of one session, zero where nothing was stored.

    As fp16 bits: keys uint16 [kv_heads, capacity // 16, head_width, 16], so that the lane is the
    position; values uint16 [kv_heads, capacity, head_width]. As int8: keys int8 [kv_heads,
    capacity // 8, quads, 8, 4], a quad being four numbers of a head; values int8 [kv_heads,
    capacity, head_width]; scales float32 [2, kv_heads, capacity], of keys, then of values.
    """

    keys: NDArray[Any]
    values: NDArray[Any]
    scales: Float32 | None = None

    @property
    def kind(self) -> CacheKind:
        """How the numbers are kept."""
        return CacheKind.F16 if self.scales is None else CacheKind.Q8

    @property
    def kv_heads(self) -> int:
        """How many key and value heads there are."""
        return int(self.values.shape[0])

    @property
    def capacity(self) -> int:
        """How many positions fit, a multiple of 64."""
        return int(self.values.shape[1])

    @property
    def head_width(self) -> int:
        """Numbers in one head's key or value."""
        return int(self.values.shape[2])


def quads_of(head_width: int) -> int:
    """Return how many quads an int8 key takes; zeros fill up the last one."""
    return -(-head_width // QUAD_NUMBERS)


def cache_position_bytes(kv_heads: int, head_width: int, kind: CacheKind) -> int:
    """Return the bytes of one position in one layer's cache."""
    if kind is CacheKind.F16:
        return 4 * kv_heads * head_width
    return kv_heads * (QUAD_NUMBERS * quads_of(head_width) + head_width + 8)


def allocate_cache_layer(
    kv_heads: int, head_width: int, capacity: int, kind: CacheKind = CacheKind.F16
) -> CacheLayer:
    """Return a zeroed cache; ``capacity`` is rounded up to a multiple of 64 positions.

    Raises ValueError for heads that are too wide for int8.
    """
    positions = -(-capacity // TILE_POSITIONS) * TILE_POSITIONS
    if kind is CacheKind.Q8:
        if head_width > QUANTIZED_WIDTH_MAX:
            raise ValueError(f"heads of {head_width} are too wide for an int8 cache")
        groups, quads = positions // GROUP_POSITIONS, quads_of(head_width)
        return CacheLayer(
            np.zeros((kv_heads, groups, quads, GROUP_POSITIONS, QUAD_NUMBERS), np.int8),
            np.zeros((kv_heads, positions, head_width), np.int8),
            np.zeros((2, kv_heads, positions), np.float32),
        )
    return CacheLayer(
        np.zeros((kv_heads, positions // LANE_POSITIONS, head_width, LANE_POSITIONS), np.uint16),
        np.zeros((kv_heads, positions, head_width), np.uint16),
    )


class QuantizedBlocks(NamedTuple):
    """Activations in blocks of 32 (rule 2), block-major so that a block's tokens are neighbours.

    quants: int8 [blocks, T, 32], in -127..127; scales: float32 [blocks, T]; sums: int16
    [blocks, T, 2], of the first 16 quants and of all 32. With the sums a kernel turns products with
    unsigned weights into those with signed ones, and adds the weights' minimums.
    """

    quants: NDArray[np.int8]
    scales: Float32
    sums: NDArray[np.int16]


class Rows:
    """Activations on their way into matmuls, quantised once, on first need.

    ``values`` are float32 [T, K] or, a row for each of a token's experts, [T, used, K].
    """

    __slots__ = ("blocks", "values")

    def __init__(self, values: Float32) -> None:
        self.values = values
        self.blocks: QuantizedBlocks | None = None


class Routing(NamedTuple):
    """Which experts each of T tokens meets, and how much each counts (rule 11).

    chosen: int32 [T, used], ascending; shares: float32 [T, used]; order: int32 [T * used], the
    places of ``chosen`` sorted by expert, so that a kernel finds an expert's tokens together.
    """

    chosen: NDArray[np.int32]
    shares: Float32
    order: NDArray[np.int32]


class Verbs(Protocol):
    """The operations of a decoder layer.

    T is the number of tokens. Every output element has the same bits whatever T, the number of
    threads and the backend. Shapes that do not fit raise ValueError.
    """

    def expand(self, hidden: HiddenRows) -> Float32:
        """Return hidden rows as float32 [T, width]; raises NonFinite."""

    def shrink(self, x: Float32) -> HiddenRows:
        """Round x [T, n] to hidden rows (rule 8); raises NonFinite."""

    def rms_norm(self, x: Float32, weight: Float32, epsilon: float) -> Float32:
        """Normalise each row of x [T, n] or [T, heads, n] and weigh it with ``weight`` [n].

        Raises NonFinite.
        """

    def prepare(self, x: Float32) -> Rows:
        """Make x [T, K] or [T, used, K] ready for matmuls with any kind of weights."""

    def matmul(self, matrix: PackedMatrix, rows: Rows, residual: Float32 | None = None) -> Float32:
        """Return W x, float32 [T, matrix.rows], plus ``residual`` of that shape if given.

        Raises NonFinite when activations for a quantised matrix are infinite or NaN.
        """

    def rope(self, x: Float32, table: Float32) -> None:
        """Rotate the pairs (i, i + D/2) of x [T, heads, D] in place.

        ``table`` [T, 2, D/2] holds each token's cosines, then its sines.
        """

    def silu_multiply(self, gate: Float32, up: Float32) -> Float32:
        """Return silu(gate) * up, all [T, n] or [T, used, n]."""

    def gelu_multiply(self, gate: Float32, up: Float32) -> Float32:
        """Return gelu(gate) * up, all [T, n] or [T, used, n]; the GELU that tanh approximates."""

    def add(self, x: Float32, summand: Float32) -> Float32:
        """Return x [T, n] plus a bias [n], or plus [T, n]."""

    def route(self, logits: Float32, used: int) -> Routing:
        """Choose each token's ``used`` experts by the router's logits, float32 [T, experts].

        Raises NonFinite.
        """

    def expert_matmul(self, experts: PackedExperts, rows: Rows, routing: Routing) -> Float32:
        """Return float32 [T, used, experts.rows]: what each token's experts make of it.

        ``rows`` are [T, K], the same for all of a token's experts, or [T, used, K]. Raises
        NonFinite as ``matmul`` does.
        """

    def mix(self, outputs: Float32, routing: Routing, residual: Float32) -> Float32:
        """Return ``residual`` [T, n] plus the sum of ``outputs`` [T, used, n] by their shares."""

    def store(self, cache: CacheLayer, keys: Float32, values: Float32, position: int) -> None:
        """Write keys and values [T, kv_heads, D] of the positions from ``position`` on.

        Raises NonFinite when a number does not fit fp16, whatever the cache's kind; the cache is
        then unchanged.
        """

    def attention(
        self,
        queries: Float32,
        cache: CacheLayer,
        position: int,
        window: int = 0,
        scale: float | None = None,
    ) -> Float32:
        """Return [T, heads * D] for queries [T, heads, D]; query t stands at ``position + t``.

        It sees the cached positions up to its own, of them the last ``window`` (0: all). ``scale``
        multiplies the scores, 1 / sqrt(D) where it is None. Raises NonFinite.
        """


class Program(Protocol):
    """Recorded verbs of some layers, run in one call for up to ``tokens_max`` tokens."""

    def run(
        self,
        hidden: HiddenRows,
        turns: Sequence[Float32],
        caches: Sequence[CacheLayer],
        position: int,
    ) -> HiddenRows:
        """Return the last layer's output for T tokens from ``position`` on; raises NonFinite.

        ``turns``: the RoPE tables, float32 [T, 2, head_width // 2] each; ``caches``: one for each
        layer.
        """


class Recording(Verbs, Protocol):
    """Verbs that are written down instead of run; their arrays have no numbers."""

    @property
    def hidden(self) -> Any:
        """The hidden rows that a run is given."""

    def turns(self, table: int) -> Any:
        """Return what stands for the ``table``-th RoPE table that a run is given."""

    def cache(self, layer: int) -> Any:
        """Return what stands for the cache of the run's ``layer``-th layer."""

    def finish(self, hidden: Any) -> Program:
        """Return the program whose result is ``hidden``."""


class Kernels(Verbs, Protocol):
    """The verbs of a backend. One instance serves one compute thread and owns its team."""

    @property
    def name(self) -> str:
        """The backend: "numpy" or "numba"."""

    @property
    def threads(self) -> int:
        """How many threads compute."""

    @property
    def cache_note(self) -> str | None:
        """One line for a person when compiled code cannot be kept for the next start."""

    @property
    def row_codec(self) -> RowCodec:
        """What packs hidden rows for a link that may lose a little; any thread may use it."""

    def embed(
        self, matrix: PackedMatrix, token_ids: NDArray[np.int64], scale: float = 1.0
    ) -> HiddenRows:
        """Return the rows of ``token_ids`` [T], times ``scale``, as hidden rows.

        Raises IndexError for an unknown id, NonFinite.
        """

    def record(
        self,
        tokens_max: int,
        width: int,
        head_width: int,
        cache_kind: CacheKind = CacheKind.F16,
    ) -> Recording | None:
        """Return verbs to write down layers with, None where a program would not be faster.

        ``width`` is the hidden rows', ``head_width`` that of keys and RoPE, ``cache_kind`` that of
        the caches of every run. A verb may raise Unrecordable.
        """

    def close(self) -> None:
        """End the team's threads."""
