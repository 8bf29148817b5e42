r"""What Unicode says of characters, as far as tokenizers ask: letter, number, mark and so on.

Regular expressions of tokenizers speak of ``\p{L}`` and the like, which the standard library's
``re`` does not know. `kinds_of` therefore writes one character for each of a text: an ASCII
character stays as it is, any other becomes the letter of its kind below. Expressions over the
result need ASCII classes alone, and positions are those of the text.

Kinds are those of Unicode 16.0 on every supported Python, so that each device finds the same
tokens: Python 3.11 knows 14.0, and what was added since is in a table here.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from typing import Final

# One character of Latin-1 stands for all non-ASCII characters of a kind.
_UPPER, _LOWER, _CASELESS = "\xc1", "\xe1", "\xaa"
_MARK, _NUMBER, _PUNCTUATION, _SYMBOL = "\xb4", "\xb2", "\xab", "\xa9"
_SPACE, _OTHER = "\xa0", "\x80"
# U+017F has its own letter: where case is ignored it equals an s.
LONG_S: Final = "\xdf"

# Insides of character classes over `kinds_of`. White space is the property White_Space.
SPACE: Final = f"\\t-\\r {_SPACE}"
UPPER: Final = f"A-Z{_UPPER}"  # Lu and Lt
LOWER: Final = f"a-z{_LOWER}{LONG_S}"  # Ll
CASELESS: Final = _CASELESS  # Lm and Lo
LETTER: Final = UPPER + LOWER + CASELESS
MARK: Final = _MARK
NUMBER: Final = f"0-9{_NUMBER}"
PUNCTUATION: Final = f"!-#%-*,-/:;?@\\[\\\\\\]_{{}}{_PUNCTUATION}"
SYMBOL: Final = f"$+<=>\\^`|~{_SYMBOL}"

# For expressions over the text itself.
WHITE_SPACE: Final = "\\t-\\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

_SPACES: Final = frozenset(
    "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
)
# By category, or by the first letter of it.
_KIND_BY_CATEGORY: Final = {
    **dict.fromkeys(("Lu", "Lt"), _UPPER),
    "Ll": _LOWER,
    "L": _CASELESS,
    "M": _MARK,
    "N": _NUMBER,
    "P": _PUNCTUATION,
    "S": _SYMBOL,
}

# Characters of Unicode 15.0, 15.1 and 16.0, first and last in hexadecimal. No character that
# 14.0 had changed its kind in these versions.
_ADDED: Final = {
    _UPPER: "1c89 a7cb-a7cc a7da a7dc 10d50-10d65",
    _LOWER: "1c8a a7cd a7db 10d70-10d85 1df25-1df2a",
    _CASELESS: (
        "105c0-105f3 10d4a-10d4f 10d6f 10ec2-10ec4 1123f-11240 11380-11389 1138b 1138e "
        "11390-113b5 113b7 113d1 113d3 11bc0-11be0 11f02 11f04-11f10 11f12-11f33 1342f "
        "13441-13446 13460-143fa 16100-1611d 16d40-16d6c 18cff 1b132 1b155 1e030-1e06d "
        "1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 2ebf0-2ee5d 31350-323af"
    ),
    _MARK: (
        "897 cf3 ece 10d69-10d6d 10efc-10eff 11241 113b8-113c0 113c2 113c5 113c7-113ca "
        "113cc-113d0 113d2 113e1-113e2 11f00-11f01 11f03 11f34-11f3a 11f3e-11f42 11f5a 13440 "
        "13447-13455 1611e-1612f 1e08f 1e4ec-1e4ef 1e5ee-1e5ef"
    ),
    _NUMBER: (
        "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 "
        "1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa"
    ),
    _PUNCTUATION: (
        "1b4e-1b4f 1b7f 10d6e 113d4-113d5 113d7-113d8 11b00-11b09 11be1 11f43-11f4f "
        "16d6d-16d6f 1e5ff"
    ),
    _SYMBOL: (
        "2427-2429 2ffc-2fff 31e4-31e5 31ef 10d8e-10d8f 1cc00-1ccef 1cd00-1ceb3 1f6dc "
        "1f774-1f776 1f77b-1f77f 1f7d9 1f8b2-1f8bb 1f8c0-1f8c1 1fa75-1fa77 1fa87-1fa89 1fa8f "
        "1faad-1faaf 1fabb-1fabf 1fac6 1face-1facf 1fada-1fadc 1fadf 1fae8-1fae9 1faf7-1faf8 "
        "1fbcb-1fbef"
    ),
}


def kinds_of(text: str) -> str:
    """Return a text of the same length: ASCII as it is, the letter of its kind for the rest."""
    return text.translate(_KINDS)


def _added_ranges() -> tuple[list[int], list[tuple[int, str]]]:
    """Return where each range starts, sorted, and its last character with its kind."""
    ranges = []
    for kind, listed in _ADDED.items():
        for item in listed.split():
            first, _, last = item.partition("-")
            ranges.append((int(first, 16), int(last or first, 16), kind))
    ranges.sort()
    return [first for first, _, _ in ranges], [(last, kind) for _, last, kind in ranges]


_ADDED_FIRSTS, _ADDED_REST = _added_ranges()


class _Kinds(dict[int, str]):
    """The table of `kinds_of`, filled as characters are met: 1,114,112 entries at most."""

    def __missing__(self, code: int) -> str:
        kind = chr(code) if code < 128 else _kind(code)
        self[code] = kind
        return kind


_KINDS: Final = _Kinds({0x17F: LONG_S})


def _kind(code: int) -> str:
    index = bisect_right(_ADDED_FIRSTS, code) - 1
    if index >= 0 and code <= _ADDED_REST[index][0]:
        return _ADDED_REST[index][1]
    character = chr(code)
    if character in _SPACES:
        return _SPACE
    category = unicodedata.category(character)
    return _KIND_BY_CATEGORY.get(category, _KIND_BY_CATEGORY.get(category[0], _OTHER))
