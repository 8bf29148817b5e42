"""Fetches a model's manifest and chunks from peers, over several connections at once.

Up to CONNECTIONS_MAX threads each hold one connection, to whichever source the schedule chooses,
take chunks off its list and write what is verified. A source that lies or breaks the protocol is
asked for nothing more; one whose connection fails is tried again a few times.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from edgellama.errors import TransferError
from edgellama.net.fetch_schedule import FetchSchedule
from edgellama.net.record_stream import RefusedError
from edgellama.net.stored_model import StoreError
from edgellama.net.transfer_client import SourceConnection
from edgellama.net.transfer_protocol import CHUNKS_PER_REQUEST_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from edgellama.net.fetch_schedule import Batch
    from edgellama.net.manifest import Manifest, Progress
    from edgellama.net.stored_model import StoredModel
    from edgellama.net.supply import Supply, WeightSource

CONNECTIONS_MAX: Final = 3  # at 5 % loss four carry eight times what one does; at none, no more
_IDLE_S: Final = 0.05  # how late a connection may see that there is something for it again
_POLL_S: Final = 0.1  # how late a cancellation may be seen
_NEWS_S: Final = 1.0  # how late a new source may be seen
_STOP_TIMEOUT_S: Final = 1.0

Fetched = dict["WeightSource", int]
"""How many bytes of chunks came from whom."""


class TransferCancelledError(TransferError):
    """The fetch was cancelled; what came until then is kept."""


def fetch_manifest(root: str, supply: Supply) -> Manifest:
    """Return the manifest whose hash is ``root`` from the first source that gives it.

    Raises TransferError that names each source with its fault.
    """
    faults = {}
    for source in supply.trusted():
        try:
            with SourceConnection(source.address, supply.mesh_key) as connection:
                return connection.manifest(root)
        except TransferError as error:
            faults[source] = str(error)
            if isinstance(error, RefusedError):
                supply.distrust(source, str(error))
    raise TransferError(f"no device gave the manifest of model {root[:12]}{_told(faults)}")


def fetch_chunks(
    stored: StoredModel,
    chunk_indexes: Iterable[int],
    supply: Supply,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch those of the chunks that ``stored`` has not, and keep them; return who gave what.

    Every chunk is verified before it is written, and none that is on the disk is fetched again.
    ``progress`` is called in the caller's thread, with the bytes there and the bytes of all the
    chunks asked for. Raises TransferError when no source is left that gives the rest, naming
    each with its fault; StoreError when this device's disk fails; TransferCancelledError.
    """
    indexes = sorted(set(chunk_indexes))
    stored.check(indexes)
    missing = stored.missing(indexes)
    total = stored.manifest.bytes_of(indexes)
    there = total - stored.manifest.bytes_of(missing)
    fetch = _Fetch(stored, missing, supply)

    def watch() -> None:
        if progress is not None:
            progress(there + fetch.done_bytes, total)
        if supply.cancelled.is_set():
            raise TransferCancelledError("the transfer of weights was cancelled")

    watch()
    if missing:
        stored.check_room(total - there)
        try:
            fetch.run(watch)
        finally:
            stored.flush()
    return fetch.fetched


class _Fetch:
    """The state that the connections' threads share."""

    def __init__(self, stored: StoredModel, missing: list[int], supply: Supply) -> None:
        self.done_bytes = 0
        self.fetched: Fetched = Counter()
        self._stored = stored
        self._supply = supply
        self._schedule = FetchSchedule(missing, time.monotonic())
        self._news = threading.Condition()  # guards the schedule and what is below
        self._open: set[SourceConnection] = set()
        self._stopping = False
        self._disk_error: StoreError | None = None
        self._lanes_max = min(CONNECTIONS_MAX, -(-len(missing) // CHUNKS_PER_REQUEST_MAX))

    def run(self, watch: Callable[[], None]) -> None:
        """Fetch all that is wanted. ``watch`` is called often and may raise, which ends it."""
        self._schedule.know(self._supply.trusted())
        lanes = [
            threading.Thread(target=self._run_lane, name=f"weights-fetch-{number}", daemon=True)
            for number in range(self._lanes_max)
        ]
        for lane in lanes:
            lane.start()
        news_at = time.monotonic() + _NEWS_S
        try:
            while any(lane.is_alive() for lane in lanes):
                lanes[0].join(_POLL_S)
                lanes.append(lanes.pop(0))
                watch()
                if time.monotonic() >= news_at:
                    news_at = time.monotonic() + _NEWS_S
                    sources = self._supply.trusted()
                    with self._news:
                        self._schedule.know(sources)
        finally:
            self._stop()
            for lane in lanes:
                lane.join(_STOP_TIMEOUT_S)
        if self._disk_error is not None:
            raise self._disk_error
        if self._schedule.left:
            raise TransferError(
                f"{self._schedule.left} chunks of model {self._stored.manifest.root[:12]} could "
                f"not be fetched{_told(self._schedule.faults())}"
            )

    def _stop(self) -> None:
        with self._news:
            self._stopping = True
            connections = list(self._open)
            self._news.notify_all()
        for connection in connections:
            connection.abort()

    def _run_lane(self) -> None:
        while (source := self._next_source()) is not None:
            try:
                self._use(source)
            except StoreError as error:
                self._disk_error = error
                self._stop()
            except TransferError as error:
                self._note_failure(source, error)
            finally:
                with self._news:
                    self._schedule.release(source)
                    self._news.notify_all()

    def _next_source(self) -> WeightSource | None:
        """Wait until there is a source to connect to; None when there will be none any more."""
        with self._news:
            cancelled = self._supply.cancelled
            while not (self._stopping or cancelled.is_set()) and self._schedule.left:
                now = time.monotonic()
                source = self._schedule.choose(now)
                if source is not None:
                    return source
                if self._schedule.is_hopeless(now):
                    return None
                self._news.wait(_IDLE_S)
        return None

    def _use(self, source: WeightSource) -> None:
        with SourceConnection(source.address, self._supply.mesh_key) as connection:
            with self._news:
                self._open.add(connection)
            try:
                available = connection.available(self._stored.manifest)
                with self._news:
                    self._schedule.surveyed(source, available, time.monotonic())
                    self._news.notify_all()
                while self._fetch_some(connection, source):
                    pass
            finally:
                with self._news:
                    self._open.discard(connection)

    def _fetch_some(self, connection: SourceConnection, source: WeightSource) -> bool:
        """Fetch a batch as soon as answers leave room for it; False: the source has no more."""
        throttle = self._supply.throttle
        throttle.hold(self._supply.cancelled)
        if self._supply.cancelled.is_set():
            return False
        with throttle.turn():
            chunks_max = 1 if throttle.is_limited() else CHUNKS_PER_REQUEST_MAX
            with self._news:
                now = time.monotonic()
                batch = None if self._stopping else self._schedule.take(source, now, chunks_max)
            if batch is None:
                return False
            self._fetch_batch(connection, source, batch)
        return True

    def _fetch_batch(
        self, connection: SourceConnection, source: WeightSource, batch: Batch
    ) -> None:
        left = list(batch.indexes)
        try:
            for index, data in connection.chunks(self._stored.manifest, batch):
                if data is None:
                    with self._news:
                        self._schedule.given(index, time.monotonic())
                    left.remove(index)
                    continue
                if not self._stored.write_chunk(index, data):
                    raise RefusedError(f"sent a wrong chunk {index}")
                left.remove(index)
                self._supply.throttle.passed(len(data))
                with self._news:
                    self._schedule.arrived(source)
                    self.done_bytes += len(data)
                    self.fetched[source] += len(data)
            self._stored.flush()
        finally:
            with self._news:
                self._schedule.put_back(left)

    def _note_failure(self, source: WeightSource, error: TransferError) -> None:
        is_liar = isinstance(error, RefusedError)
        with self._news:
            if self._stopping:
                return  # this device has ended the connection
            self._schedule.failed(source, str(error), time.monotonic(), for_good=is_liar)
        if is_liar:
            self._supply.distrust(source, str(error))


def _told(faults: Mapping[WeightSource, str]) -> str:
    if not faults:
        return ": no device that has it is known"
    return ": " + "; ".join(f"{source} {fault}" for source, fault in faults.items())
