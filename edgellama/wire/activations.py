"""Hidden state on the wire: exact fp16 rows, lz4 where it saves anything; q8 where the plan says.

An exact payload is the rows' exponents (one byte each) followed by their fp16 bits, little-endian.
lz4 finds nothing in ordinary activations (ratio 1.004), but it shortens zero padding and
repeated tokens; so it is tried, kept only when it saves a sixteenth and a packet, and tried
rarely once it has failed eight times in a row. A q8 link carries nothing but q8: the bytes of a
row depend on the row alone, so a step that is computed and said again is the same.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from edgellama_kernels import HiddenRows
from edgellama_kernels.row_codec import REFERENCE, RowCodec

from edgellama.errors import WireError
from edgellama.values import WIRE_F16, WIRE_Q8
from edgellama.wire.lossy_activations import decode_lossy, encode_lossy
from edgellama.wire.lossy_activations import row_bytes as lossy_row_bytes

try:
    import lz4.block as lz4_block
except ImportError:  # no wheel on Android: raw rows are always understood
    lz4_block = None

CODEC_RAW: Final = 0
CODEC_LZ4: Final = 1
CODEC_Q8: Final = 8
_CODECS: Final = {WIRE_F16: (CODEC_RAW, CODEC_LZ4), WIRE_Q8: (CODEC_Q8,)}

ROWS_MAX: Final = 512  # a step carries at most this many tokens
WIDTH_MAX: Final = 65_536
PAYLOAD_BYTES_MAX: Final = ROWS_MAX * (1 + 2 * WIDTH_MAX)

_SAVING_SHARE: Final = 16
_SAVING_BYTES_MIN: Final = 1155  # what one packet carries: a saving below it saves no packet
_FAILURES_BEFORE_RARE: Final = 8
_RARELY: Final = 64
_EXPONENT_BITS: Final = 0x7C00  # all set in an fp16 infinity or NaN


def row_bytes_max(width: int) -> int:
    """Return how many bytes a row takes on the wire at most, whatever the codec."""
    return max(1 + 2 * width, lossy_row_bytes(width))


def lz4_available() -> bool:
    """Return whether this device can read and write lz4."""
    return lz4_block is not None


class ActivationEncoder:
    """Encodes the rows of one stream; remembers whether lz4 has been worth its time there.

    ``wire`` is what the plan says of the link.
    """

    def __init__(self, *, peer_reads_lz4: bool, wire: str = WIRE_F16) -> None:
        self._lossy = wire == WIRE_Q8
        self._may_compress = peer_reads_lz4 and lz4_available()
        self._failures = 0
        self._skipped = 0

    def encode(self, hidden: HiddenRows, row_codec: RowCodec = REFERENCE) -> tuple[int, bytes]:
        """Return the codec and the payload of ``hidden``."""
        if self._lossy:
            return CODEC_Q8, encode_lossy(hidden, row_codec)
        raw = hidden.exponents.tobytes() + hidden.halves.astype("<u2", copy=False).tobytes()
        if not self._may_compress or self._is_skipped():
            return CODEC_RAW, raw
        packed: bytes = lz4_block.compress(raw, store_size=False)
        if len(raw) - len(packed) >= max(len(raw) // _SAVING_SHARE, _SAVING_BYTES_MIN):
            self._failures = 0
            return CODEC_LZ4, packed
        self._failures += 1
        return CODEC_RAW, raw

    def _is_skipped(self) -> bool:
        if self._failures < _FAILURES_BEFORE_RARE:
            return False
        self._skipped = (self._skipped + 1) % _RARELY
        return self._skipped != 0


def decode_hidden(
    codec: int,
    rows: int,
    width: int,
    payload: bytes | memoryview,
    *,
    wire: str = WIRE_F16,
    row_codec: RowCodec = REFERENCE,
) -> HiddenRows:
    """Return ``rows`` rows of ``width`` from a payload whose size is known from the plan.

    Raises WireError for a codec that is not the ``wire``'s, a wrong size, or a row that is not
    finite.
    """
    if not (0 <= rows <= ROWS_MAX and 0 < width <= WIDTH_MAX):
        raise WireError(f"{rows} rows of width {width} are outside the limits")
    if codec not in _CODECS[wire]:
        raise WireError(f"activation codec {codec} on a link that carries {wire}")
    if codec == CODEC_Q8:
        return decode_lossy(rows, width, payload, row_codec)
    size = rows * (1 + 2 * width)
    raw = _decompressed(payload, size) if codec == CODEC_LZ4 else payload
    if len(raw) != size:
        raise WireError(f"activations of {len(raw)} bytes where {size} belong")
    exponents = np.frombuffer(raw, np.uint8, rows)
    halves = np.frombuffer(raw, "<u2", rows * width, offset=rows).reshape(rows, width)
    if bool(((halves & _EXPONENT_BITS) == _EXPONENT_BITS).any()):
        raise WireError("activations hold infinity or NaN")
    return HiddenRows(halves.astype(np.uint16, copy=False), exponents)


def _decompressed(payload: bytes | memoryview, size: int) -> bytes:
    if lz4_block is None:
        raise WireError("lz4 activations came to a device without lz4")
    try:
        raw: bytes = lz4_block.decompress(payload, uncompressed_size=size)
    except lz4_block.LZ4BlockError as error:
        raise WireError("damaged lz4 activations") from error
    return raw
