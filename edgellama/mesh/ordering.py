"""The pieces of an answer in their order, each once, though the link delivers in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgellama.wire.messages import Finished, Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

EARLY_PIECES_MAX: Final = 4096


class AnswerOrder:
    """Holds back what comes too early and drops what is known."""

    def __init__(self, known: Sequence[int] = ()) -> None:
        self.tokens = list(known)
        self._early: dict[int, Piece] = {}
        self._finished: Finished | None = None

    def accept(self, message: Piece | Finished) -> list[Piece | Finished]:
        """Return what is due now: pieces in their order, and the end after all of them."""
        if isinstance(message, Finished):
            self._finished = message
        elif message.index == len(self.tokens) or (
            message.index > len(self.tokens) and len(self._early) < EARLY_PIECES_MAX
        ):
            self._early[message.index] = message
        due: list[Piece | Finished] = []
        while (piece := self._early.pop(len(self.tokens), None)) is not None:
            self.tokens.extend(piece.tokens)
            due.append(piece)
        if self._finished is not None and len(self.tokens) >= self._finished.tokens_count:
            due.append(self._finished)
            self._finished = None
        return due
