"""A team of threads that share one kernel call's rows; the caller's thread is one of them.

Which thread computes which rows changes no bit.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Kernel = Callable[..., int]
Task = tuple[Kernel, tuple[Any, ...]]

SHARED_WORK_MIN = (
    1 << 18
)  # bytes or operations below which waking a thread costs more than it saves


class _Worker:
    """A thread that waits for its part of a call."""

    def __init__(self, number: int) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        name = f"edgellama-kernels-{number}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            kernel, arguments = task
            try:
                self._results.put(kernel(*arguments))
            except BaseException as error:
                self._results.put(error)

    def begin(self, task: Task) -> None:
        self._tasks.put(task)

    def finish(self) -> int | BaseException:
        return self._results.get()

    def end(self) -> None:
        self._tasks.put(None)
        self._thread.join()


class Team:
    """Runs kernels on ``threads`` threads, rows split evenly and in order."""

    def __init__(self, threads: int) -> None:
        self._workers = [_Worker(number) for number in range(1, threads)]
        self._scratch = np.empty((threads, 0), np.float32)

    def run(
        self, kernel: Kernel, arguments: tuple[Any, ...], units: int, work: int, scratch: int = 0
    ) -> int:
        """Call ``kernel(*arguments, first, past)`` so that all units are done; 0 if all went well.

        ``work`` estimates the bytes or operations of the call. A kernel that needs memory of its
        thread's own gets the address of ``scratch`` float32 as its last argument.
        """
        workers = self._workers if work >= SHARED_WORK_MIN else []
        parts = max(1, min(len(workers) + 1, units))
        bounds = [units * part // parts for part in range(parts + 1)]
        calls = [(*arguments, first, past) for first, past in itertools.pairwise(bounds)]
        if scratch:
            own = self._scratch_addresses(scratch)
            calls = [(*call, address) for call, address in zip(calls, own, strict=False)]
        busy = workers[: parts - 1]
        for worker, call in zip(busy, calls[1:], strict=True):
            worker.begin((kernel, call))
        try:
            statuses = [kernel(*calls[0])]
        finally:
            results = [worker.finish() for worker in busy]
        for result in results:
            if isinstance(result, BaseException):
                raise result
            statuses.append(result)
        return max(statuses)

    def _scratch_addresses(self, numbers: int) -> list[int]:
        """Return the address of each thread's own memory of at least ``numbers`` float32."""
        if self._scratch.shape[1] < numbers:
            self._scratch = np.empty((len(self._scratch), numbers), np.float32)
        start, step = int(self._scratch.ctypes.data), self._scratch.strides[0]
        return [start + step * thread for thread in range(len(self._scratch))]

    def close(self) -> None:
        """End the threads; the team then works on in the caller's thread alone."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
