"""The pieces in a ``tokenizer.model``, as SentencePiece stores them.

Source: sentencepiece_model.proto of the SentencePiece library, read here by field number as the
Protocol Buffers wire format lays it down. The file is untrusted.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.model.gguf_header import file_fault, file_unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_BYTES_MAX: Final = 64 << 20
PIECES_MAX: Final = 1 << 22

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE: Final = 3
_NORMALIZER_ADDS_SPACE: Final = 3
_BYTE_PAIR_ENCODING: Final = 2
_NORMAL: Final = 1

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


class SentencePieces(NamedTuple):
    """By token id: texts, scores and types; the types have GGUF's numbers."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    adds_space: bool


def read_sentencepiece_model(path: Path) -> SentencePieces:
    """Read a ``tokenizer.model`` of byte-pair encoding.

    Raises ModelFileError where it is malformed, UnsupportedModelError for another algorithm.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise file_fault(str(path), f"is longer than {FILE_BYTES_MAX >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise file_fault(str(path), f"cannot be read: {error.strerror or error}") from None
    try:
        pieces, model_type = _parsed(data)
    except (ValueError, IndexError, struct.error):
        raise file_fault(str(path), "is no SentencePiece model") from None
    if model_type != _BYTE_PAIR_ENCODING:
        raise file_unsupported(
            str(path), "its algorithm is not byte-pair encoding, the one that is supported"
        )
    if not 1 <= len(pieces.texts) <= PIECES_MAX:
        raise file_fault(str(path), f"has {len(pieces.texts)} pieces")
    return pieces


def _parsed(data: bytes) -> tuple[SentencePieces, int]:
    pieces = SentencePieces([], [], [], adds_space=True)
    model_type = 1  # unigram, where it is left out
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if number == _PIECES:
            piece = dict(_fields(value))
            text, score = piece[_PIECE_TEXT], piece.get(_PIECE_SCORE, bytes(4))
            kind = piece.get(_PIECE_TYPE, _NORMAL)
            if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
                raise ValueError
            pieces.texts.append(text.decode("utf-8"))
            pieces.scores.append(struct.unpack("<f", score)[0])
            pieces.types.append(kind)
        elif number == _TRAINER:
            model_type = int(dict(_fields(value)).get(_TRAINER_MODEL_TYPE, model_type))
        elif number == _NORMALIZER:
            adds = dict(_fields(value)).get(_NORMALIZER_ADDS_SPACE, 1)
            pieces = pieces._replace(adds_space=adds != 0)
    return pieces, model_type


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield a message's fields: whole numbers as such, all else as its bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == _BYTES:
            size, position = _varint(data, position)
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire_type, -1)
        if size < 0 or position + size > len(data):
            raise ValueError
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError
