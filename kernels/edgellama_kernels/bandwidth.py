"""The speed of memory: how many bytes a second plain loops can read with some threads.

It is what decoding is measured against, as each token reads every weight once.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from edgellama_kernels.entries import entries
from edgellama_kernels.operations import PREFETCH_BYTES
from edgellama_kernels.team import address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

AHEAD_BYTES = (0, PREFETCH_BYTES)  # what is prefetched: on some machines nothing is faster
TRIES = 3


class MemoryReader:
    """Reads buffers again and again on ``threads`` threads, each its equal part of each."""

    def __init__(self, buffers: Sequence[NDArray[Any]], threads: int) -> None:
        self._read = entries().read_memory
        self._read(0, 0, 0)  # compiled, or loaded, before anything is timed
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self._buffers, self._threads = list(buffers), threads
        speeds = {ahead: max(self._pass(ahead) for _ in range(TRIES)) for ahead in AHEAD_BYTES}
        self._ahead = max(speeds, key=lambda ahead: speeds[ahead])

    def bytes_per_second(self) -> float:
        """Read everything once, in the way that was fastest at first; return the speed."""
        return self._pass(self._ahead)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _pass(self, ahead: int) -> float:
        started_s = time.perf_counter()
        others = [
            self._pool.submit(self._read_part, thread, ahead)
            for thread in range(1, self._threads)
            if self._pool is not None
        ]
        self._read_part(0, ahead)
        for other in others:
            other.result()
        seconds = time.perf_counter() - started_s
        return sum(buffer.nbytes for buffer in self._buffers) / seconds

    def _read_part(self, thread: int, ahead: int) -> None:
        for buffer in self._buffers:
            numbers = buffer.nbytes // 4
            first, past = (numbers * (thread + n) // self._threads for n in (0, 1))
            self._read(address(buffer) + 4 * first, past - first, ahead)
