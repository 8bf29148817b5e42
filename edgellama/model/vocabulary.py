"""The vocabulary of a GGUF file: pieces and their kinds, and the tokens with a role.

The keys under ``tokenizer.ggml.`` come from an untrusted file and are checked here, once.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from edgellama.model.gguf_header import file_fault

if TYPE_CHECKING:
    from edgellama.errors import ModelFileError
    from edgellama.model.gguf import GgufFile

_PREFIX = "tokenizer.ggml."
# Names that models give the token with which a turn ends, for files whose keys leave it out.
_END_OF_TURN_PIECES = frozenset(
    {
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<EOT>",
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)


class PieceKind(enum.IntEnum):
    """What a token is, by its number in ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_KIND_BY_NUMBER = {int(kind): kind for kind in PieceKind}
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))


class Roles(NamedTuple):
    """The ids of the tokens with a role, None where a model has no such token."""

    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None


@dataclass(frozen=True)
class Vocabulary:
    """Every token's piece and kind, by token id; the two are of one length.

    ``end_tokens``: those after which an answer is over. ``adds_bos``, ``adds_eos`` and
    ``adds_space``: what the file says of encoding, None where it says nothing.
    """

    pieces: tuple[str, ...]
    kinds: tuple[PieceKind, ...]
    roles: Roles
    end_tokens: frozenset[int]
    adds_bos: bool | None
    adds_eos: bool | None
    adds_space: bool | None

    @classmethod
    def from_gguf(cls, gguf: GgufFile, defaults: Roles) -> Vocabulary:
        """Read and check the vocabulary of a file; raises ModelFileError.

        ``defaults``: the ids of the roles in files that do not name them.
        """
        pieces = _pieces(gguf)
        size = len(pieces)
        roles = Roles(
            bos=_token(gguf, "bos", size, defaults.bos),
            eos=_token(gguf, "eos", size, defaults.eos),
            unknown=_token(gguf, "unknown", size, defaults.unknown),
        )
        kinds = _kinds(gguf, pieces, roles)
        return cls(
            pieces=pieces,
            kinds=kinds,
            roles=roles,
            end_tokens=_end_tokens(gguf, pieces, kinds, roles),
            adds_bos=_flag(gguf, "add_bos_token"),
            adds_eos=_flag(gguf, "add_eos_token"),
            adds_space=_flag(gguf, "add_space_prefix"),
        )


def algorithm_name(gguf: GgufFile) -> str:
    """Return ``tokenizer.ggml.model``, the name of the file's way to encode text."""
    name = gguf.metadata.get(f"{_PREFIX}model")
    if not isinstance(name, str):
        raise _fault(gguf, "model", "is missing or not text")
    return name


def pre_tokenizer_name(gguf: GgufFile) -> str:
    """Return ``tokenizer.ggml.pre``; files from before that key was invented mean ``default``."""
    name = gguf.metadata.get(f"{_PREFIX}pre", "default")
    if not isinstance(name, str):
        raise _fault(gguf, "pre", "is not text")
    return name


def scores_of(gguf: GgufFile, size: int) -> tuple[float, ...]:
    """Return the finite score of each of the ``size`` tokens; raises ModelFileError."""
    values = _array(gguf, "scores", size)
    if values is None:
        raise _fault(gguf, "scores", "is missing")
    scores = tuple([value for value in values if isinstance(value, float)])
    if len(scores) != size or not all(map(math.isfinite, scores)):
        raise _fault(gguf, "scores", "has an item that is no finite number")
    return scores


def merges_of(gguf: GgufFile) -> tuple[str, ...]:
    """Return the merges, best first, each as two pieces with a space between.

    Raises ModelFileError. A merge that is no such pair never applies.
    """
    values = _array(gguf, "merges")
    if values is None:
        raise _fault(gguf, "merges", "is missing")
    merges = tuple([value for value in values if isinstance(value, str)])
    if len(merges) != len(values):
        raise _fault(gguf, "merges", "is no array of strings")
    return merges


def _fault(gguf: GgufFile, key: str, fault: str) -> ModelFileError:
    return file_fault(gguf.path_name, f"metadata key '{_PREFIX}{key}' {fault}")


def _array(gguf: GgufFile, key: str, size: int | None = None) -> tuple[object, ...] | None:
    values = gguf.metadata.get(f"{_PREFIX}{key}")
    if values is None:
        return None
    if not isinstance(values, tuple):
        raise _fault(gguf, key, "is no array")
    if size is not None and len(values) != size:
        raise _fault(gguf, key, f"has {len(values)} items for {size} tokens")
    return values


def _pieces(gguf: GgufFile) -> tuple[str, ...]:
    values = _array(gguf, "tokens") or ()
    pieces = tuple([value for value in values if isinstance(value, str)])
    if not pieces or len(pieces) != len(values):
        raise _fault(gguf, "tokens", "is missing, empty or no array of strings")
    return pieces


def _kinds(gguf: GgufFile, pieces: tuple[str, ...], roles: Roles) -> tuple[PieceKind, ...]:
    values = _array(gguf, "token_type", len(pieces))
    if values is None:
        return _kinds_by_name(pieces, roles)
    kinds = tuple([_KIND_BY_NUMBER[n] for n in values if isinstance(n, int) and 1 <= n <= 6])
    if len(kinds) != len(pieces):
        raise _fault(gguf, "token_type", "has an item that is no type of token (1 to 6)")
    return kinds


def _kinds_by_name(pieces: tuple[str, ...], roles: Roles) -> tuple[PieceKind, ...]:
    byte_pieces = frozenset(BYTE_PIECES)
    kinds = [PieceKind.BYTE if piece in byte_pieces else PieceKind.NORMAL for piece in pieces]
    for token in (roles.bos, roles.eos):
        if token is not None:
            kinds[token] = PieceKind.CONTROL
    if roles.unknown is not None:
        kinds[roles.unknown] = PieceKind.UNKNOWN
    return tuple(kinds)


def _token(gguf: GgufFile, role: str, size: int, default: int | None = None) -> int | None:
    key = f"{role}_token_id"
    value = gguf.metadata.get(f"{_PREFIX}{key}")
    if value is None:
        return default if default is not None and default < size else None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
        raise _fault(gguf, key, f"names none of the {size} tokens")
    return value


def _flag(gguf: GgufFile, key: str) -> bool | None:
    value = gguf.metadata.get(f"{_PREFIX}{key}")
    if value is not None and not isinstance(value, bool):
        raise _fault(gguf, key, "is neither true nor false")
    return value


def _end_tokens(
    gguf: GgufFile, pieces: tuple[str, ...], kinds: tuple[PieceKind, ...], roles: Roles
) -> frozenset[int]:
    named = (roles.eos, _token(gguf, "eot", len(pieces)), _token(gguf, "eom", len(pieces)))
    known = [
        token
        for token, piece in enumerate(pieces)
        # A NORMAL piece of such a name is text that an answer may quote.
        if piece in _END_OF_TURN_PIECES and kinds[token] is not PieceKind.NORMAL
    ]
    return frozenset([*(token for token in named if token is not None), *known])
