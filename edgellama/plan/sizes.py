"""Sizes of memory as people write and read them, in binary multiples.

``2G`` is 2 * 1024**3 bytes, as it is for ``ulimit`` and the Java virtual machine; what is
printed says so (``2 GiB``).
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from edgellama.errors import MisuseError

SIZE_BYTES_MAX: Final = 1 << 50  # 1 PiB: more is a slip of the keyboard, and fits 64 bits
_UNITS: Final = "KMGT"
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` names: ``300M``, ``1.5G``, ``2GiB`` or plain bytes.

    Part of a byte is dropped. Raises MisuseError for anything that is not a size of at least
    one byte and at most SIZE_BYTES_MAX.
    """
    match = _SIZE.fullmatch(text.strip()) if text.isascii() else None
    if match is None:
        raise MisuseError(f"{text[:40]!r} is not a size: write 300M, 1.5G or a number of bytes")
    unit = match[2].upper() if match[2] else ""
    exponent = _UNITS.index(unit) + 1 if unit else 0
    size_bytes = int(Decimal(match[1]) * 1024**exponent)
    if not 1 <= size_bytes <= SIZE_BYTES_MAX:
        raise MisuseError(f"the size {text[:40]!r} is not between 1 byte and 1024T")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Return ``size_bytes`` (not negative) for a person, to three digits: ``1.46 GiB``."""
    assert size_bytes >= 0
    if size_bytes < 1024:
        return f"{size_bytes} B"
    for exponent, unit in enumerate(_UNITS, start=1):
        value = Decimal(size_bytes) / 1024**exponent
        # 999.5 would be printed as 1000: from there on the next unit reads better.
        if value < Decimal("999.5") or unit == _UNITS[-1]:
            break
    decimals = 2 if value < Decimal("9.995") else 1 if value < Decimal("99.95") else 0
    digits = str(value.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN))
    return f"{digits.rstrip('0').rstrip('.') if decimals else digits} {unit}iB"
