"""Byte-pair encoding as SentencePiece does it, which GGUF calls the ``llama`` tokenizer.

The text is cut into characters; then, again and again, the two neighbours that together make the
piece with the best score become one, the leftmost of equals first. What is no piece in the end is
spelled in bytes. Source: sentencepiece/src/bpe_model.cc.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from edgellama.model.vocabulary import BYTE_PIECES, PieceKind, Roles

if TYPE_CHECKING:
    from edgellama.model.vocabulary import Vocabulary

SPACE = "\u2581"  # stands for a space in pieces

_BYTE_BY_PIECE = {piece: bytes([byte]) for byte, piece in enumerate(BYTE_PIECES)}
# Control and byte tokens never come from text, however it reads. Neither do unused ones.
_PIECES_OF_TEXT = frozenset({PieceKind.NORMAL, PieceKind.USER_DEFINED})


class SentencePieceBpe:
    """Encodes text and gives the bytes of tokens, by one vocabulary."""

    default_roles = Roles(bos=1, eos=2, unknown=0)
    default_adds_bos = True
    default_adds_space = True

    def __init__(self, vocabulary: Vocabulary, adds_space: bool) -> None:
        self._vocabulary = vocabulary
        self._prefix = SPACE if adds_space else ""
        self._ids: dict[str, int] = {}
        self._penalties: dict[str, float] = {}  # the score negated: the heap gives the least
        bytes_by_piece: dict[str, int] = {}
        for token, (piece, kind) in enumerate(
            zip(vocabulary.pieces, vocabulary.kinds, strict=True)
        ):
            if kind in _PIECES_OF_TEXT:
                self._ids[piece] = token
                self._penalties[piece] = -vocabulary.scores[token]
            elif kind is PieceKind.BYTE:
                bytes_by_piece[piece] = token
        self._byte_ids = [bytes_by_piece[piece] for piece in BYTE_PIECES if piece in bytes_by_piece]

    def normalized(self, text: str) -> str:
        """Return text as the pieces spell it."""
        return text.replace(" ", SPACE)

    def encode(self, segment: str) -> list[int]:
        """Encode normalized text at the beginning or after a special token."""
        unknown = self._vocabulary.roles.unknown
        ids: list[int] = []
        for piece in self._merged(self._prefix + segment):
            token = self._ids.get(piece)
            if token is not None:
                ids.append(token)
            elif len(self._byte_ids) == len(BYTE_PIECES):
                ids.extend(self._byte_ids[byte] for byte in piece.encode())
            elif unknown is not None and ids[-1:] != [unknown]:
                ids.append(unknown)  # one for a run of unknown characters
        return ids

    def piece_bytes(self, token: int) -> bytes:
        """Return what a token adds to the text, in UTF-8; a token may hold part of a character.

        A control token adds nothing, the unknown token U+FFFD.
        """
        piece = self._vocabulary.pieces[token]
        kind = self._vocabulary.kinds[token]
        if kind is PieceKind.CONTROL:
            return b""
        if kind is PieceKind.UNKNOWN:
            return "\ufffd".encode()
        if kind is PieceKind.BYTE and piece in _BYTE_BY_PIECE:
            return _BYTE_BY_PIECE[piece]
        return piece.replace(SPACE, " ").encode()

    def _merged(self, text: str) -> list[str]:
        """Cut text into characters and merge them: n log n for n characters.

        A symbol is known by where it starts; ``past[start]`` is where it ends and
        ``before[start]`` where its left neighbour starts. A heap entry whose symbols have
        merged otherwise since no longer fits ``past`` and is dropped.
        """
        length = len(text)
        past = list(range(1, length + 1))
        before = list(range(-1, length))
        penalties = self._penalties
        heap = [
            (penalties[pair], start, start + 1, start + 2)
            for start, pair in enumerate(map(str.__add__, text, text[1:]))
            if pair in penalties
        ]
        heapify(heap)

        def offer(left: int, middle: int, right: int) -> None:
            penalty = penalties.get(text[left:right])
            if penalty is not None:
                heappush(heap, (penalty, left, middle, right))

        while heap:
            _, left, middle, right = heappop(heap)
            if past[left] != middle or past[middle] != right:
                continue
            past[left] = right
            past[middle] = 0  # no symbol starts here any more
            if right < length:
                before[right] = left
                offer(left, right, past[right])
            if left > 0:
                offer(before[left], left, right)
        return _symbols(text, past)


def _symbols(text: str, past: list[int]) -> list[str]:
    symbols = []
    start = 0
    while start < len(text):
        symbols.append(text[start : past[start]])
        start = past[start]
    return symbols
