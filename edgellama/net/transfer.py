"""Fetches a model's manifest and chunks from peers, over several connections at once.

Work goes in rounds. In each, up to CONNECTIONS_MAX connections are spread over the sources and
take chunks from one list until it is empty; a connection that fails puts its chunks back. A
source that lied or is of another mesh is out; one whose connection failed gets a few more
rounds; one that has nothing of what is wanted is asked no more.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgellama.errors import TransferError
from edgellama.net.record_stream import RefusedError
from edgellama.net.stored_model import StoreError
from edgellama.net.transfer_client import SourceConnection
from edgellama.net.transfer_protocol import CHUNKS_PER_REQUEST_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from edgellama.net.chunk_bitmap import ChunkBitmap
    from edgellama.net.manifest import Manifest, Progress
    from edgellama.net.stored_model import StoredModel
    from edgellama.values import Address

CONNECTIONS_MAX: Final = 3  # at 5 % loss four carry eight times what one does; at none, no more
FAILURES_MAX: Final = 3  # in a row, of one source's connections
_RETRY_S: Final = 0.2
_POLL_S: Final = 0.1  # how late a cancellation may be seen
_STOP_TIMEOUT_S: Final = 1.0


class TransferCancelledError(TransferError):
    """The fetch was cancelled; what came until then is kept."""


def fetch_manifest(root: str, sources: Sequence[Address], mesh_key: bytes) -> Manifest:
    """Return the manifest whose hash is ``root`` from the first source that gives it.

    ``sources``: where weight servers listen (TCP). Raises TransferError that names each source
    with its fault.
    """
    faults = {}
    for address in sources:
        try:
            with SourceConnection(address, mesh_key) as connection:
                return connection.manifest(root)
        except TransferError as error:
            faults[address] = str(error)
    raise TransferError(f"no device gave the manifest of model {root[:12]}{_told(faults)}")


def fetch_chunks(
    stored: StoredModel,
    chunk_indexes: Iterable[int],
    sources: Sequence[Address],
    mesh_key: bytes,
    progress: Progress | None = None,
    cancelled: threading.Event | None = None,
) -> None:
    """Fetch those of the chunks that ``stored`` has not, and keep them.

    Every chunk is verified before it is written, and none that is kept is fetched again.
    ``progress`` is called in the caller's thread, with the bytes there and the bytes of all the
    chunks asked for. Raises TransferError when no source is left that gives the rest, naming
    each with its fault; StoreError when this device's disk fails; TransferCancelledError.
    """
    indexes = sorted(set(chunk_indexes))
    missing = stored.missing(indexes)
    total = stored.manifest.bytes_of(indexes)
    missing_bytes = stored.manifest.bytes_of(missing)
    if missing:
        stored.check_room(missing_bytes)
    fetch = _Fetch(stored, missing, total - missing_bytes, sources, mesh_key)
    cancelled = cancelled or threading.Event()

    def watch() -> None:
        if progress is not None:
            progress(fetch.done_bytes, total)
        if cancelled.is_set():
            raise TransferCancelledError("the transfer of weights was cancelled")

    watch()
    try:
        while fetch.run_round(watch):
            cancelled.wait(_RETRY_S)
    finally:
        stored.flush()


@dataclass
class _Source:
    """What is known of one source. ``fault`` follows its address in a message."""

    address: Address
    failures: int = 0  # rounds in a row that ended in a failure and brought nothing
    dropped: bool = False
    fault: str = "has no more of it"
    # In this round:
    gained: bool = False
    failed: bool = False
    lacks: bool = False  # what was wanted when it was asked


class _Fetch:
    """The state that the connections' threads share."""

    def __init__(
        self,
        stored: StoredModel,
        wanted: list[int],
        done_bytes: int,
        sources: Sequence[Address],
        mesh_key: bytes,
    ) -> None:
        self.done_bytes = done_bytes
        self._stored = stored
        self._wanted = wanted  # ascending; what a connection has taken is not in it
        self._sources = [_Source(address) for address in dict.fromkeys(sources)]
        self._mesh_key = mesh_key
        self._lock = threading.Lock()
        self._open: set[SourceConnection] = set()
        self._stopping = False
        self._disk_error: StoreError | None = None

    def run_round(self, watch: Callable[[], None]) -> bool:
        """Try every source that is left once; tell whether another round is needed.

        ``watch`` is called often and may raise, which ends the round.
        """
        if not self._wanted:
            return False
        lanes = self._start_lanes()
        try:
            while any(lane.is_alive() for lane in lanes):
                lanes[0].join(_POLL_S)
                lanes.append(lanes.pop(0))
                watch()
        finally:
            self._stop()
            for lane in lanes:
                lane.join(_STOP_TIMEOUT_S)
        if self._disk_error is not None:
            raise self._disk_error
        self._judge()
        return bool(self._wanted)

    def _start_lanes(self) -> list[threading.Thread]:
        live = sorted((s for s in self._sources if not s.dropped), key=lambda s: s.failures)
        if not live:
            raise self._none_left()
        for source in self._sources:
            source.gained = source.failed = source.lacks = False
        self._stopping = False
        batches = -(-len(self._wanted) // CHUNKS_PER_REQUEST_MAX)
        lanes = [
            threading.Thread(
                target=self._run_lane,
                args=(live[number % len(live)],),
                name=f"weights-fetch-{number}",
                daemon=True,
            )
            for number in range(max(1, min(CONNECTIONS_MAX, batches)))
        ]
        for lane in lanes:
            lane.start()
        return lanes

    def _judge(self) -> None:
        for source in self._sources:
            if source.gained:
                source.failures = 0
            elif source.failed:
                source.failures += 1
                source.dropped = source.dropped or source.failures >= FAILURES_MAX
            elif source.lacks:
                source.dropped = True

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            connections = list(self._open)
        for connection in connections:
            connection.abort()

    def _run_lane(self, source: _Source) -> None:
        try:
            with SourceConnection(source.address, self._mesh_key) as connection:
                with self._lock:
                    self._open.add(connection)
                try:
                    self._drain(connection, source)
                finally:
                    with self._lock:
                        self._open.discard(connection)
        except StoreError as error:
            with self._lock:
                self._stopping, self._disk_error = True, error
        except TransferError as error:
            with self._lock:
                source.failed = True
                source.dropped = source.dropped or isinstance(error, RefusedError)
                source.fault = str(error)

    def _drain(self, connection: SourceConnection, source: _Source) -> None:
        available = connection.available(self._stored.manifest)
        if not len(available):
            source.fault = "does not have the model"
        while batch := self._take(source, available):
            left = list(batch)
            try:
                for index, data in connection.chunks(self._stored.manifest, batch):
                    if not self._stored.write_chunk(index, data):
                        raise RefusedError(f"sent a wrong chunk {index}")
                    left.remove(index)
                    with self._lock:
                        source.gained = True
                        self.done_bytes += len(data)
                self._stored.flush()
            finally:
                with self._lock:
                    self._wanted = sorted([*self._wanted, *left])

    def _take(self, source: _Source, available: ChunkBitmap) -> list[int]:
        """Take neighbouring chunks that the source has off the list; none: the lane is done."""
        with self._lock:
            if self._stopping or source.dropped:
                return []
            start = next((i for i, index in enumerate(self._wanted) if index in available), None)
            if start is None:
                source.lacks = source.lacks or bool(self._wanted)
                return []
            batch = [self._wanted[start]]
            for index in self._wanted[start + 1 : start + CHUNKS_PER_REQUEST_MAX]:
                if index != batch[-1] + 1 or index not in available:
                    break
                batch.append(index)
            del self._wanted[start : start + len(batch)]
            return batch

    def _none_left(self) -> TransferError:
        return TransferError(
            f"{len(self._wanted)} chunks of model {self._stored.manifest.root[:12]} could not be "
            f"fetched{_told({source.address: source.fault for source in self._sources})}"
        )


def _told(faults: Mapping[Address, str]) -> str:
    if not faults:
        return ": no device that has it is known"
    return ": " + "; ".join(f"{address} {fault}" for address, fault in faults.items())
