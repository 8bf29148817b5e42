"""Merging neighbours, the heart of every byte-pair encoding.

A text is cut into characters; then, again and again, the two neighbours of the lowest rank become
one symbol, the leftmost of equals first, until no two neighbours have a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

Rank = Callable[[int, int, int], float | None]
"""(left, middle, right) -> rank of merging text[left:middle] and text[middle:right], if any."""


def merged_symbols(text: str, rank: Rank) -> list[str]:
    """Return the symbols that merging leaves, in order: n log n steps for n characters.

    A symbol is known by where it starts; ``past[start]`` is where it ends and ``before[start]``
    where its left neighbour starts. A heap entry whose symbols have merged otherwise since no
    longer fits ``past`` and is dropped.
    """
    length = len(text)
    past = list(range(1, length + 1))
    before = list(range(-1, length))
    heap: list[tuple[float, int, int, int]] = []
    for start in range(length - 1):
        pair_rank = rank(start, start + 1, start + 2)
        if pair_rank is not None:
            heap.append((pair_rank, start, start + 1, start + 2))
    heapify(heap)

    def offer(left: int, middle: int, right: int) -> None:
        pair_rank = rank(left, middle, right)
        if pair_rank is not None:
            heappush(heap, (pair_rank, left, middle, right))

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
