"""Byte-pair encoding over bytes, as GPT-2 does it, which GGUF calls the ``gpt2`` tokenizer.

The text is cut into words by the file's pre-tokenizer. A word's UTF-8 bytes are spelled as one
printable character each; then the two neighbours whose merge stands first in the file's list
become one, again and again. Every text can be spelled, so there is no unknown character.
Source: openai/gpt-2, src/encoder.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from edgellama.model.gguf_header import file_unsupported, quoted
from edgellama.model.merging import merged_symbols
from edgellama.model.pre_tokenizers import PRE_TOKENIZER_NAMES, pre_tokenizer
from edgellama.model.vocabulary import (
    BYTE_PIECES,
    PieceKind,
    Roles,
    Vocabulary,
    merges_of,
    pre_tokenizer_name,
)

if TYPE_CHECKING:
    from edgellama.model.gguf import GgufFile
    from edgellama.model.pre_tokenizers import PreTokenizer

# Words repeat: 16,384 of them with their ids take about 5 MB.
_WORDS_CACHED_MAX: Final = 1 << 14
_CACHED_CHARACTERS_MAX: Final = 64

# Bytes that are printable in Latin-1 stand for themselves, the others for U+0100 and on.
_PRINTABLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_CHARACTER_BY_BYTE: Final = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + index)
    for index, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTABLE)))
}
_BYTE_BY_CHARACTER: Final = {character: byte for byte, character in _CHARACTER_BY_BYTE.items()}
_BYTE_BY_PIECE: Final = {piece: bytes([byte]) for byte, piece in enumerate(BYTE_PIECES)}

# However a text reads, it never becomes one of these unless special tokens are parsed.
_NEVER_FROM_TEXT: Final = frozenset({PieceKind.CONTROL, PieceKind.UNKNOWN})


def spelled(raw: bytes) -> str:
    """Return bytes as pieces spell them, one character each."""
    return raw.decode("latin-1").translate(_CHARACTER_BY_BYTE)


class ByteLevelBpe:
    """Encodes text and gives the bytes of tokens, by one vocabulary."""

    adds_space = False

    def __init__(
        self, vocabulary: Vocabulary, merges: tuple[str, ...], pre_tokenizer: PreTokenizer
    ) -> None:
        self.vocabulary = vocabulary
        self.adds_bos = pre_tokenizer.adds_bos
        self._pre_tokenizer = pre_tokenizer
        self._ids = {
            piece: token
            for token, (piece, kind) in enumerate(
                zip(vocabulary.pieces, vocabulary.kinds, strict=True)
            )
            if kind not in _NEVER_FROM_TEXT
        }
        # By both pieces with a space between, as the file has them. A merge that stands there
        # twice has its first rank.
        self._ranks = dict(zip(reversed(merges), range(len(merges) - 1, -1, -1), strict=True))
        self._cached_word = lru_cache(_WORDS_CACHED_MAX)(self._word)

    @classmethod
    def from_gguf(cls, gguf: GgufFile) -> ByteLevelBpe:
        """Read and check the vocabulary; raises ModelFileError.

        Raises UnsupportedModelError where the file names a pre-tokenizer that is not known.
        """
        name = pre_tokenizer_name(gguf)
        rule = pre_tokenizer(name)
        if rule is None:
            raise file_unsupported(
                gguf.path_name,
                f"pre-tokenizer {quoted(name)} is not supported; "
                f"supported: {', '.join(PRE_TOKENIZER_NAMES)}",
            )
        return cls(Vocabulary.from_gguf(gguf, Roles()), merges_of(gguf), rule)

    def normalized(self, text: str) -> str:
        """Return text as it is: pieces are found by words, and words keep every character."""
        return text

    def encode(self, segment: str) -> list[int]:
        """Encode text without special tokens."""
        ids: list[int] = []
        for word in self._pre_tokenizer.words(segment):
            small = len(word) <= _CACHED_CHARACTERS_MAX
            ids.extend(self._cached_word(word) if small else self._word(word))
        return ids

    def piece_bytes(self, token: int) -> bytes:
        """Return what a token adds to the text, in UTF-8; a token may hold part of a character.

        A control token adds nothing, the unknown token U+FFFD, a user-defined one its name.
        """
        piece = self.vocabulary.pieces[token]
        kind = self.vocabulary.kinds[token]
        if kind is PieceKind.CONTROL:
            return b""
        if kind is PieceKind.UNKNOWN:
            return "\ufffd".encode()
        if kind is PieceKind.BYTE and piece in _BYTE_BY_PIECE:
            return _BYTE_BY_PIECE[piece]
        if kind is PieceKind.USER_DEFINED:
            return piece.encode()
        try:
            return bytes([_BYTE_BY_CHARACTER[character] for character in piece])
        except KeyError:  # a name such as [PAD7] with a space in it, of a token nobody trained
            return piece.encode()

    def _word(self, word: str) -> tuple[int, ...]:
        letters = spelled(word.encode())
        if self._pre_tokenizer.ignores_merges and letters in self._ids:
            return (self._ids[letters],)
        ranks = self._ranks

        def rank(left: int, middle: int, right: int) -> int | None:
            return ranks.get(f"{letters[left:middle]} {letters[middle:right]}")

        ids: list[int] = []
        for symbol in merged_symbols(letters, rank):
            token = self._ids.get(symbol)
            ids.extend(self._spelled_out(symbol) if token is None else (token,))
        return tuple(ids)

    def _spelled_out(self, symbol: str) -> list[int]:
        """Return a symbol that is no token byte by byte; a byte that is none becomes unknown."""
        unknown = self.vocabulary.roles.unknown
        ids = [self._ids.get(character, unknown) for character in symbol]
        return [token for token in ids if token is not None]
