"""Text to token ids and back, as the model file's vocabulary says.

Which algorithm turns text into pieces is the file's choice; special tokens, the tokens around a
text and the way back to text are the same for all and are here.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Protocol

from edgellama.errors import MisuseError
from edgellama.model.byte_level_bpe import ByteLevelBpe
from edgellama.model.gguf import GgufFile
from edgellama.model.gguf_header import file_unsupported, quoted
from edgellama.model.sentencepiece_bpe import SentencePieceBpe
from edgellama.model.vocabulary import PieceKind, algorithm_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edgellama.model.vocabulary import Vocabulary

# By tokenizer.ggml.model; a further algorithm is a class like these and a row.
_ALGORITHMS: dict[str, type[SentencePieceBpe] | type[ByteLevelBpe]] = {
    "llama": SentencePieceBpe,
    "gpt2": ByteLevelBpe,
}

_ALWAYS_SPECIAL = frozenset({PieceKind.USER_DEFINED})
_SPECIAL_WHERE_PARSED = frozenset({PieceKind.USER_DEFINED, PieceKind.CONTROL, PieceKind.UNKNOWN})
# Python strings can hold halves of surrogate pairs, as from undecodable arguments; UTF-8 cannot.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Algorithm(Protocol):
    """How one family of models turns text into pieces and pieces into bytes.

    ``adds_bos``: whether BOS goes before a text where the file does not say. ``adds_space``:
    whether `encode` begins a text with a space that decoding takes off again.
    """

    vocabulary: Vocabulary
    adds_bos: bool
    adds_space: bool

    def normalized(self, text: str) -> str:
        """Return text as the pieces spell it."""

    def encode(self, segment: str) -> list[int]:
        """Encode normalized text without special tokens."""

    def piece_bytes(self, token: int) -> bytes:
        """Return what a token adds to the text, in UTF-8."""


class Tokenizer:
    """The tokenizer of one model file.

    ``size``: tokens in the vocabulary. ``bos``, ``eos``: ids, None where the model has none.
    ``end_tokens``: the ids after which an answer is over.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        vocabulary = algorithm.vocabulary
        self.size = len(vocabulary.pieces)
        self.bos = vocabulary.roles.bos
        self.eos = vocabulary.roles.eos
        self.end_tokens = vocabulary.end_tokens
        self._pieces = vocabulary.pieces
        self._adds_bos = _stated(vocabulary.adds_bos, algorithm.adds_bos)
        self._adds_eos = _stated(vocabulary.adds_eos, default=False)
        self._algorithm = algorithm
        self._always_special = self._matcher(vocabulary, _ALWAYS_SPECIAL)
        self._special = self._matcher(vocabulary, _SPECIAL_WHERE_PARSED)

    @classmethod
    def from_gguf(cls, source: str | Path | GgufFile) -> Tokenizer:
        """Make the tokenizer of a model file, or of its header alone.

        Raises ModelFileError for a vocabulary that is malformed, UnsupportedModelError for an
        algorithm or pre-tokenizer that is not supported, MisuseError when there is no such file.
        """
        if not isinstance(source, GgufFile):
            with GgufFile.open(source) as gguf:
                return cls.from_gguf(gguf)
        name = algorithm_name(source)
        algorithm_class = _ALGORITHMS.get(name)
        if algorithm_class is None:
            raise file_unsupported(
                source.path_name,
                f"tokenizer {quoted(name)} is not supported; "
                f"supported: {', '.join(map(repr, _ALGORITHMS))}",
            )
        return cls(algorithm_class.from_gguf(source))

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text; never fails, whatever the text.

        ``add_special``: put BOS before and EOS after it where the model wants them; a BOS that
        the text already spells is not doubled. ``parse_special``: names of control tokens in the
        text, such as ``</s>``, mean the tokens; otherwise they are text like any other.
        """
        ids = self._ids(text, parse_special)
        if add_special:
            self._begin(ids)
        if add_special and self._adds_eos and self.eos is not None:
            ids.append(self.eos)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a rendered conversation, which goes on after them.

        Names of control tokens mean the tokens; BOS goes before it where the model wants it and
        the text does not have it already.
        """
        ids = self._ids(text, parse_special=True)
        self._begin(ids)
        return ids

    def _ids(self, text: str, parse_special: bool) -> list[int]:
        matcher = self._special if parse_special else self._always_special
        ids: list[int] = []
        normalized = self._algorithm.normalized(_LONE_SURROGATE.sub("\ufffd", text))
        for part in matcher.split(normalized):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(self._algorithm.encode(part))
        return ids

    def _begin(self, ids: list[int]) -> None:
        if self._adds_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of a whole sequence: what `encode` put before it is taken off again.

        That is BOS and one space. Bytes that are no UTF-8 become U+FFFD. Raises MisuseError for
        an id that is not in the vocabulary.
        """
        decoder = self.stream(continues=False)
        return "".join([decoder.push(token) for token in ids]) + decoder.finish()

    def stream(self, continues: bool = True) -> StreamDecoder:
        """Return a decoder for tokens that come one by one.

        ``continues``: they follow a text, so a leading space belongs to them.
        """
        return StreamDecoder(self, strips_space=self._algorithm.adds_space and not continues)

    def piece(self, token: int) -> str:
        """Return a token's piece as the vocabulary spells it, such as ``</s>`` or ``▁the``."""
        self._check(token)
        return self._pieces[token]

    def piece_bytes(self, token: int) -> bytes:
        """Return what a token adds to a text, in UTF-8; raises MisuseError for a wrong id."""
        self._check(token)
        return self._algorithm.piece_bytes(token)

    def _check(self, token: int) -> None:
        if not 0 <= token < self.size:
            raise MisuseError(f"there is no token {token}: the vocabulary has {self.size}")

    def _matcher(self, vocabulary: Vocabulary, kinds: frozenset[PieceKind]) -> _SpecialMatcher:
        return _SpecialMatcher(
            {
                self._algorithm.normalized(piece): token
                for token, piece in enumerate(vocabulary.pieces)
                if piece and vocabulary.kinds[token] in kinds
            }
        )


class StreamDecoder:
    """Turns tokens into text as they come; the bytes of an unfinished character wait inside."""

    def __init__(self, tokenizer: Tokenizer, strips_space: bool) -> None:
        self._tokenizer = tokenizer
        self._strips_space = strips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Return the text that a token completes, perhaps none; MisuseError for a wrong id."""
        raw = self._tokenizer.piece_bytes(token)
        if raw and self._strips_space:
            self._strips_space = False
            raw = raw.removeprefix(b" ")
        return self._decoder.decode(raw)

    def finish(self) -> str:
        """Return U+FFFD when the tokens ended within a character, otherwise nothing."""
        return self._decoder.decode(b"", final=True)


class _SpecialMatcher:
    """Finds special tokens in a text: the first from the left, the longest of those."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._tokens = tokens
        lengths: dict[str, set[int]] = {}
        for piece in tokens:
            lengths.setdefault(piece[0], set()).add(len(piece))
        # A table and no regular expression: a vocabulary may name thousands of special tokens.
        self._lengths = {first: sorted(of, reverse=True) for first, of in lengths.items()}

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the special tokens and the non-empty texts between them, in order."""
        start = 0
        position = 0
        while self._lengths and position < len(text):
            piece = self._at(text, position)
            if piece is None:
                position += 1
                continue
            if start < position:
                yield text[start:position]
            yield self._tokens[piece]
            start = position = position + len(piece)
        if start < len(text):
            yield text[start:]

    def _at(self, text: str, position: int) -> str | None:
        for length in self._lengths.get(text[position], ()):
            piece = text[position : position + length]
            if piece in self._tokens:
                return piece
        return None


def _stated(flag: bool | None, default: bool) -> bool:
    return default if flag is None else flag
