"""Byte-pair encoding as SentencePiece does it, which GGUF calls the ``llama`` tokenizer.

Neighbours merge by the score of the piece that they make, the best first. What is no piece in the
end is spelled in bytes. Source: sentencepiece/src/bpe_model.cc.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.model.merging import merged_symbols
from edgellama.model.vocabulary import BYTE_PIECES, PieceKind, Roles, Vocabulary, scores_of

if TYPE_CHECKING:
    from edgellama.model.gguf import GgufFile

SPACE = "\u2581"  # stands for a space in pieces

_BYTE_BY_PIECE = {piece: bytes([byte]) for byte, piece in enumerate(BYTE_PIECES)}
# Control and byte tokens never come from text, however it reads. Neither do unused ones.
_PIECES_OF_TEXT = frozenset({PieceKind.NORMAL, PieceKind.USER_DEFINED})


class SentencePieceBpe:
    """Encodes text and gives the bytes of tokens, by one vocabulary."""

    adds_bos = True

    def __init__(self, vocabulary: Vocabulary, scores: tuple[float, ...]) -> None:
        self.vocabulary = vocabulary
        self.adds_space = vocabulary.adds_space is not False
        self._prefix = SPACE if self.adds_space else ""
        self._ids: dict[str, int] = {}
        self._penalties: dict[str, float] = {}  # the score negated: the heap gives the least
        bytes_by_piece: dict[str, int] = {}
        for token, (piece, kind) in enumerate(
            zip(vocabulary.pieces, vocabulary.kinds, strict=True)
        ):
            if kind in _PIECES_OF_TEXT:
                self._ids[piece] = token
                self._penalties[piece] = -scores[token]
            elif kind is PieceKind.BYTE:
                bytes_by_piece[piece] = token
        self._byte_ids = [bytes_by_piece[piece] for piece in BYTE_PIECES if piece in bytes_by_piece]

    @classmethod
    def from_gguf(cls, gguf: GgufFile) -> SentencePieceBpe:
        """Read and check the vocabulary; raises ModelFileError."""
        vocabulary = Vocabulary.from_gguf(gguf, Roles(bos=1, eos=2, unknown=0))
        return cls(vocabulary, scores_of(gguf, len(vocabulary.pieces)))

    def normalized(self, text: str) -> str:
        """Return text as the pieces spell it."""
        return text.replace(" ", SPACE)

    def encode(self, segment: str) -> list[int]:
        """Encode normalized text at the beginning or after a special token."""
        unknown = self.vocabulary.roles.unknown
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
        piece = self.vocabulary.pieces[token]
        kind = self.vocabulary.kinds[token]
        if kind is PieceKind.CONTROL:
            return b""
        if kind is PieceKind.UNKNOWN:
            return "\ufffd".encode()
        if kind is PieceKind.BYTE and piece in _BYTE_BY_PIECE:
            return _BYTE_BY_PIECE[piece]
        return piece.replace(SPACE, " ").encode()

    def _merged(self, text: str) -> list[str]:
        penalties = self._penalties

        def rank(left: int, _middle: int, right: int) -> float | None:
            return penalties.get(text[left:right])

        return merged_symbols(text, rank)
