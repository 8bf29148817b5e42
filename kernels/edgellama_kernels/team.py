"""A team of threads that run a table of operations together; the caller's thread is the first.

The others wait in Python until there is something to run, and meet inside compiled code. Which
thread computes what changes no bit.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellama_kernels import operations
from edgellama_kernels.entries import entries

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

# Times that a waiting thread lets others run before it gives up: a minute or more, as a part of
# an operation can take seconds on a slow device that is busy with something else.
PATIENCE = 1 << 28
CLOSE_TIMEOUT_S = 5.0  # a thread that is not in a run ends at once


class TeamStalled(RuntimeError):  # noqa: N818 - a fact, not a fault
    """A thread of the team did not come back; the caller's thread goes on alone."""


class Table:
    """Operations to run: int64 [operations, operations.COLUMNS]."""

    __slots__ = ("address", "rows")

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self.rows, self.address = rows, address(rows)


class _Task(NamedTuple):
    """What a thread runs, and what must not be freed while it does."""

    arguments: tuple[int, ...]
    memory: object


class _Worker:
    """A thread that waits for its part of a run."""

    def __init__(self, number: int, cpus: frozenset[int]) -> None:
        self._cpus = cpus
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        name = f"edgellama-kernels-{number}"
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        keep_on(self._cpus)
        while (task := self._tasks.get()) is not None:
            entries().run(*task.arguments)
            del task  # and with it the memory that it kept

    def begin(self, task: _Task) -> None:
        self._tasks.put(task)

    def end(self) -> None:
        self._tasks.put(None)


class Team:
    """Runs tables on up to ``threads`` threads, which may be on cores of unlike speed.

    ``adapts`` is whether a caller may choose fewer of them where that is faster. They are kept on
    ``cpus``, the caller's thread from its first run on; without any the system chooses.
    """

    def __init__(
        self,
        threads: int,
        equal_cores: bool = True,
        adapts: bool = True,
        cpus: Collection[int] = (),
    ) -> None:
        self.equal_cores, self.adapts = equal_cores, adapts
        self._cpus = frozenset(cpus)
        self._caller = 0  # the thread that has been kept on them
        self._workers = [_Worker(number, self._cpus) for number in range(1, threads)]
        self._renew()

    def _renew(self) -> None:
        """Take new memory for meeting and, when it is known how much, for scratch."""
        self._sync = np.zeros(operations.SYNC_NUMBERS, np.int64)
        self._sync_address = address(self._sync)
        self._scratch, self._scratch_step, self._scratch_address = np.empty(0, np.float32), 0, 0

    @property
    def threads(self) -> int:
        """How many threads there are, the caller's included."""
        return len(self._workers) + 1

    def run(
        self,
        table: Table,
        memory: object,
        tokens: int,
        position: int,
        scratch: int,
        threads: int,
        claims: bool,
    ) -> int:
        """Run all operations; return 0, or the code of one that refused a number.

        ``memory`` is what their addresses lie in, kept until the last thread is done; ``scratch``
        the float32 that each thread needs for itself; ``claims`` whether threads take small parts
        of the work until none is left, instead of equal parts. Raises TeamStalled.
        """
        if self._cpus and self._caller != threading.get_ident():
            self._caller = threading.get_ident()
            keep_on(self._cpus)
        workers = self._workers[: threads - 1]
        threads = len(workers) + 1
        self._reserve(scratch)
        counters = np.zeros(len(table.rows), np.int64) if claims and threads > 1 else None
        claimed = 0 if counters is None else address(counters)
        shared = (threads, self._sync_address, claimed, PATIENCE)
        calls = [
            (table.address, len(table.rows), tokens, position, thread, *shared, own)
            for thread, own in enumerate(self._scratch_addresses(threads))
        ]
        if workers:
            kept = (table, memory, counters, self._sync, self._scratch)
            for worker, call in zip(workers, calls[1:], strict=True):
                worker.begin(_Task(call, kept))
        status = int(entries().run(*calls[0]))
        if status == operations.STALLED:
            self._release()
            self._renew()
            raise TeamStalled("a compute thread did not come back; going on with one")
        return status

    def _reserve(self, scratch: int) -> None:
        """Have at least ``scratch`` float32 for each thread."""
        if self._scratch_step < 4 * scratch:
            self._scratch = np.empty(scratch * self.threads, np.float32)
            self._scratch_step, self._scratch_address = 4 * scratch, address(self._scratch)

    def _scratch_addresses(self, threads: int) -> list[int]:
        return [self._scratch_address + self._scratch_step * thread for thread in range(threads)]

    def close(self) -> None:
        """End the threads; the team then works on in the caller's thread alone."""
        for worker in self._release():
            worker.thread.join(CLOSE_TIMEOUT_S)

    def _release(self) -> list[_Worker]:
        """Let the threads end when they come back; return them."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()
        return workers


def keep_on(cpus: frozenset[int]) -> None:
    """Keep the calling thread on these CPUs, where the system knows such a thing and allows it.

    A group of processes may be kept to others meanwhile, as Android does in the background.
    """
    if cpus and sys.platform != "win32" and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)


def address(array: NDArray[Any]) -> int:
    """Return where an array's numbers lie."""
    return int(array.__array_interface__["data"][0])
