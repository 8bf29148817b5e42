"""Rows that a stage has passed on, kept for whoever takes over the layers after them.

Bounded in bytes over all answers: of the answer that was added to least recently the first rows go
first. What is gone can be computed again from the rows before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

from edgellama_kernels import HiddenRows

from edgellama.model.hidden import join_rows, take_rows

KEPT_BYTES_MAX: Final = 16 << 20  # 4096 positions of a width of 2048; as much as a few layers' KV
PIECE_OVERHEAD_BYTES: Final = 300  # of the objects around one piece's numbers


class _Piece(NamedTuple):
    past: int  # the position after its last row
    rows: HiddenRows

    @property
    def first(self) -> int:
        return self.past - len(self.rows.exponents)

    @property
    def bytes(self) -> int:
        return self.rows.halves.nbytes + self.rows.exponents.nbytes + PIECE_OVERHEAD_BYTES


def _past(piece: _Piece) -> int:
    return piece.past


class KeptRows:
    """For each answer, and boundary between two layers, rows by their positions."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        # (key of the answer, layer that the rows are for): in the order of the last addition.
        self._series: OrderedDict[tuple[int, int], list[_Piece]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return self._bytes

    def add(self, key: int, layer: int, position: int, rows: HiddenRows) -> None:
        """Keep the rows from ``position`` on that go into ``layer``; known ones are passed over."""
        series = self._series.setdefault((key, layer), [])
        self._series.move_to_end((key, layer))
        first, past = position, position + len(rows.exponents)
        while first < past:
            at = bisect_right(series, first, key=_past)
            if at < len(series) and series[at].first <= first:
                first = series[at].past
                continue
            end = min(past, series[at].first) if at < len(series) else past
            new = take_rows(rows, first - position, end - position)
            # A copy: the rows may be a part of something much larger.
            piece = _Piece(end, HiddenRows(new.halves.copy(), new.exponents.copy()))
            series.insert(at, piece)
            self._bytes += piece.bytes
            first = end
        while self._bytes > self._bytes_max:
            self._drop_first_piece()

    def get(self, key: int, layer: int, position: int, past: int) -> HiddenRows | None:
        """Return the rows from ``position`` on, up to ``past`` or to where one is not kept."""
        series = self._series.get((key, layer), [])
        pieces = []
        for at in range(bisect_right(series, position, key=_past), len(series)):
            piece = series[at]
            if not piece.first <= position < past:
                break
            first = position - piece.first
            pieces.append(take_rows(piece.rows, first, min(piece.past, past) - piece.first))
            position = piece.past
        return join_rows(pieces) if pieces else None

    def forget(self, key: int) -> None:
        """Free what is kept of an answer."""
        for each in [each for each in self._series if each[0] == key]:
            self._drop(*each)

    def forget_other(self, key: int, layers: range) -> None:
        """Free an answer's rows that go into any layer but these."""
        for each in [each for each in self._series if each[0] == key and each[1] not in layers]:
            self._drop(*each)

    def _drop(self, key: int, layer: int) -> None:
        series = self._series.pop((key, layer))
        self._bytes -= sum(piece.bytes for piece in series)

    def _drop_first_piece(self) -> None:
        each = next(iter(self._series))
        series = self._series[each]
        if series:
            self._bytes -= series.pop(0).bytes
        if not series:
            del self._series[each]
