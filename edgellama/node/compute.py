"""The one compute thread: runs jobs in their order and reports each result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING

from edgellama.errors import EdgellamaError
from edgellama.mesh.effects import Job, JobResult
from edgellama.net.memory import release_freed
from edgellama.node.measuring import kernel_speed, span_speed

if TYPE_CHECKING:
    from edgellama_kernels import Kernels

    from edgellama.node.engine import Engine, LoadedSpan
    from edgellama.values import DeviceSpeed, ModelFacts


Report = Callable[[Job, JobResult | EdgellamaError, int], None]


class ComputeThread:
    """Owns the engine; everything that touches it is queued here.

    ``report``, with the nanoseconds that a job took, and ``crashed`` are called on this thread.
    """

    def __init__(
        self, engine: Engine, report: Report, crashed: Callable[[BaseException], None]
    ) -> None:
        self._engine = engine
        self._report = report
        self._crashed = crashed
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edgellama-compute", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def run(self, job: Job) -> None:
        """Queue a job."""

        def run() -> None:
            started_ns = time.perf_counter_ns()
            result = self._engine.run(job)
            self._report(job, result, time.perf_counter_ns() - started_ns)

        self._queue.put(run)

    def try_speed(self, tried: Callable[[DeviceSpeed], None]) -> None:
        """Queue a trial of the kernels in use; ``tried`` is called with what it has shown."""
        self._queue.put(lambda: tried(kernel_speed(self._engine.kernels)))

    def try_span(
        self,
        loaded: LoadedSpan,
        model: ModelFacts,
        speed: DeviceSpeed,
        tried: Callable[[DeviceSpeed], None],
    ) -> None:
        """Queue a trial of loaded layers, which corrects ``speed``."""
        self._queue.put(lambda: tried(span_speed(self._engine.kernels, loaded, model, speed)))

    def prove(self) -> str:
        """Return the kernels' digest in this thread; raise what is wrong with them."""
        answer: Future[str] = Future()

        def prove() -> None:
            try:
                answer.set_result(self._engine.prove())
            except BaseException as error:  # the caller's to raise: it waits for nothing else
                answer.set_exception(error)

        self._queue.put(prove)
        return answer.result()  # however long a slow device takes

    def use(self, kernels: Kernels, used: Callable[[], None]) -> None:
        """Queue the change to other kernels; ``used`` is called when they compute."""

        def use() -> None:
            self._engine.use(kernels)
            used()

        self._queue.put(use)

    def install(self, loaded: LoadedSpan, installed: Callable[[], None]) -> None:
        """Queue the installation of a loaded span; ``installed`` is called when it is done."""

        def install() -> None:
            self._engine.install(loaded)
            release_freed()  # what packing and trying took
            installed()

        self._queue.put(install)

    def drop_before(self, epoch: int) -> None:
        """Queue the freeing of older epochs."""
        self._queue.put(lambda: self._engine.drop_before(epoch))

    def stop(self, timeout_s: float) -> None:
        """End after the job that is running; do not wait longer than ``timeout_s``."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._engine.close()

    def _run(self) -> None:
        try:
            while (call := self._queue.get()) is not None:
                call()
        except BaseException as error:  # our own bug: the node must end and say so
            self._crashed(error)
