"""Fetching weights over real sockets: liars, interruptions, and what is not sent."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from weights_serving import HOST, KEY, CountingSource, answering, served, supply

from edgellama.errors import TransferError
from edgellama.model.config import ModelConfig
from edgellama.model.weights import needed_tensors
from edgellama.net import transfer, transfer_client
from edgellama.net.model_fetch import fetch_header, fetch_layers
from edgellama.net.record_stream import RecordStream
from edgellama.net.store import Store
from edgellama.net.stored_model import StoredModel, StoreError
from edgellama.net.transfer import TransferCancelledError, fetch_chunks, fetch_manifest
from edgellama.net.transfer_protocol import GREETING, PRESENT, answer_greeting
from edgellama.values import Address, Span

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from edgellama.net.own_model import OwnModel

NOBODY = Address(HOST, 9)  # the discard port, where nothing listens


# --- what is fetched ------------------------------------------------------------------------


def test_a_whole_model(own: OwnModel, stored: StoredModel, every: list[int]) -> None:
    source = CountingSource(own)
    shown: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        shown.append((done, total))
        threads.add(threading.get_ident())

    with served(source) as address:
        fetch_chunks(stored, every, supply(address), progress)
    assert stored.path.read_bytes() == own.path.read_bytes()
    assert sorted(source.read) == every
    total = own.manifest.bytes_of(every)
    assert shown[0] == (0, total)
    assert shown[-1] == (total, total)
    assert shown == sorted(shown)
    assert threads == {threading.get_ident()}


def test_only_the_asked_layers_are_sent(own: OwnModel, start: Callable[[], Store]) -> None:
    source = CountingSource(own)
    manifest = own.manifest
    with served(source) as address:
        stored = fetch_header(start(), manifest.root, supply(address))
        assert sorted(source.read) == manifest.chunks_of_header()
        with stored.open_gguf() as gguf, own.open_gguf() as whole:
            config = ModelConfig.from_gguf(gguf)
            source.read.clear()
            fetch_layers(stored, gguf, config, [1], False, supply(address))
            names = [name for name in whole.tensors if name.startswith("blk.1.")]
            assert sorted(source.read) == manifest.chunks_of_tensors(names)
            sent_bytes = manifest.bytes_of(source.read)
            assert sent_bytes == sum(whole.tensors[name].bytes for name in names)
            for name in names:
                assert gguf.tensor_bytes(name) == whole.tensor_bytes(name)
            # Home's tensors come when they are asked for, and the layer's not again.
            source.read.clear()
            fetch_layers(stored, gguf, config, [1], True, supply(address))
            home = {"token_embd.weight", "output_norm.weight", "output.weight"}
            assert sorted(source.read) == manifest.chunks_of_tensors(home)
            assert set(needed_tensors(gguf, config, Span(1, 2), True)) == home.union(names)


def test_a_second_start_needs_no_source(own: OwnModel, start: Callable[[], Store]) -> None:
    with served(CountingSource(own)) as address:
        stored = fetch_header(start(), own.manifest.root, supply(address))
        fetch_chunks(stored, [5], supply(address))
    shown: list[tuple[int, int]] = []
    again = fetch_header(start(), own.manifest.root, supply())
    fetch_chunks(again, [5], supply(), lambda done, total: shown.append((done, total)))
    size = own.manifest.chunk(5).size
    assert shown == [(size, size)]
    assert again.read_chunk(5) == own.read_chunk(5)


def test_nothing_to_fetch_asks_nobody(stored: StoredModel) -> None:
    fetch_chunks(stored, [], supply(NOBODY))


# --- sources that fail ----------------------------------------------------------------------


def test_a_liar_is_dropped_and_named(own: OwnModel, stored: StoredModel, every: list[int]) -> None:
    with served(CountingSource(own, lie=7)) as liar, pytest.raises(TransferError) as caught:
        fetch_chunks(stored, every, supply(liar))
    assert f"{liar} sent a wrong chunk 7" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert 7 in stored.missing(every)
    assert not isinstance(caught.value, StoreError)


def test_an_honest_source_makes_good_for_a_liar(
    own: OwnModel, stored: StoredModel, every: list[int]
) -> None:
    liars = [CountingSource(own, lie=0) for _ in range(2)]
    honest = CountingSource(own)
    with served(liars[0]) as first, served(liars[1]) as second, served(honest) as third:
        fetch_chunks(stored, every, supply(first, second, third))
    assert stored.path.read_bytes() == own.path.read_bytes()
    assert 0 in honest.read


def test_sources_that_have_a_part_each(
    own: OwnModel, tmp_path: Path, stored: StoredModel, every: list[int]
) -> None:
    halves = []
    with contextlib.ExitStack() as stack:
        for number in (0, 1):
            store = stack.enter_context(contextlib.closing(Store(tmp_path / str(number))))
            half = store.create(own.manifest)
            for index in every[number::2]:
                assert half.write_chunk(index, own.read_chunk(index))
            halves.append(stack.enter_context(served(CountingSource(half))))
        with pytest.raises(TransferError, match=f"{halves[0]} has no more of it"):
            fetch_chunks(stored, every, supply(*halves[:1]))
        assert stored.missing(every) == every[1::2]
        fetch_chunks(stored, every, supply(*halves))
    assert stored.path.read_bytes() == own.path.read_bytes()


def test_a_source_that_is_not_asked_in_the_first_round(
    own: OwnModel, stored: StoredModel, every: list[int]
) -> None:
    """With one batch there is one connection; the fourth source is the one that has it."""
    with contextlib.ExitStack() as stack:
        empty = [stack.enter_context(served(None)) for _ in range(3)]
        good = stack.enter_context(served(CountingSource(own)))
        fetch_chunks(stored, [0], supply(NOBODY, *empty, good))
        assert stored.missing(every) == every[1:]
        with pytest.raises(TransferError) as caught:
            fetch_chunks(stored, [1], supply(NOBODY, *empty))
    message = str(caught.value)
    assert f"{NOBODY} cannot be reached: Connection refused" in message
    assert all(f"{address} does not have the model" in message for address in empty)


def test_a_source_that_breaks_off_is_tried_again(
    own: OwnModel, stored: StoredModel, every: list[int]
) -> None:
    """It cuts the connection after each chunk, and still the whole model comes."""
    accepted: list[int] = []

    def answer(connection: socket.socket) -> None:
        accepted.append(1)
        stream = RecordStream(connection, 5)
        assert stream.receive_plain(len(GREETING)) == GREETING
        answer_greeting(stream, KEY)
        stream.receive(100)
        stream.send(PRESENT, own.available().to_bytes())
        _, _, first, _ = struct.unpack("<B32sII", stream.receive(100))
        stream.send(PRESENT, own.read_chunk(first))

    with answering(answer) as address:
        fetch_chunks(stored, every[:9], supply(address))
    assert stored.missing(every) == every[9:]
    assert len(accepted) >= 9


def test_no_source_at_all(stored: StoredModel, own: OwnModel) -> None:
    with pytest.raises(TransferError, match=r"2 chunks of model .*: no device that has it"):
        fetch_chunks(stored, [0, 1], supply())
    with pytest.raises(TransferError, match=f"manifest of model {own.manifest.root[:12]}: no dev"):
        fetch_manifest(own.manifest.root, supply())


# --- interruptions --------------------------------------------------------------------------


def test_a_source_that_stops_and_another_day(
    own: OwnModel, stored: StoredModel, start: Callable[[], Store], every: list[int]
) -> None:
    def stop(index: int) -> None:
        if index >= 6:
            raise TransferError

    first, second = CountingSource(own, before=stop), CountingSource(own)
    with served(first) as address, pytest.raises(TransferError, match="has lost chunk"):
        fetch_chunks(stored, every, supply(address))
    assert sorted(first.read) == [0, 1, 2, 3, 4, 5]
    again = start().find(own.manifest.root)  # a new process: what it knows is what is on the disk
    assert again is not None
    with served(second) as address:
        fetch_chunks(again, every, supply(address))
    assert sorted(first.read + second.read) == every
    assert again.path.read_bytes() == own.path.read_bytes()


def test_a_server_that_dies(
    own: OwnModel, stored: StoredModel, start: Callable[[], Store], every: list[int]
) -> None:
    reached = threading.Event()

    def slowly(index: int) -> None:
        if index >= 8:
            reached.set()
            threading.Event().wait(0.05)

    faults: list[str] = []

    def fetch() -> None:
        try:
            fetch_chunks(stored, every, supply(address))
        except TransferError as error:
            faults.append(str(error))

    fetching = threading.Thread(target=fetch)
    with served(CountingSource(own, before=slowly)) as address:
        fetching.start()
        assert reached.wait(60)
    fetching.join()
    assert len(faults) == 1
    assert str(address) in faults[0]
    kept = start().create(own.manifest)
    missing = kept.missing(every)
    assert missing
    second = CountingSource(own)
    with served(second) as address:
        fetch_chunks(kept, every, supply(address))
    assert sorted(second.read) == missing


def test_a_cancelled_fetch_keeps_what_came(
    own: OwnModel, stored: StoredModel, start: Callable[[], Store], every: list[int]
) -> None:
    cancelled = threading.Event()
    held = threading.Event()

    def hold(index: int) -> None:
        if index >= 4:
            cancelled.set()
            held.wait(10)

    with served(CountingSource(own, before=hold)) as address:
        with pytest.raises(TransferCancelledError):
            fetch_chunks(stored, every, supply(address, cancelled=cancelled))
        held.set()
    kept = start().create(own.manifest)
    second = CountingSource(own)
    missing = kept.missing(every)
    assert every[4:] == [index for index in missing if index >= 4]
    with served(second) as address:
        fetch_chunks(kept, every, supply(address))
    assert sorted(second.read) == missing
    with pytest.raises(TransferCancelledError):
        fetch_chunks(kept, every, supply(cancelled=cancelled))


def test_an_interrupt_in_the_progress_bar_leaves_nothing_running(
    own: OwnModel, stored: StoredModel, every: list[int]
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with served(CountingSource(own)) as address:
        with pytest.raises(KeyboardInterrupt):
            fetch_chunks(stored, every, supply(address), interrupt)
        assert not [t for t in threading.enumerate() if t.name.startswith("weights-fetch")]


def test_a_full_disk_ends_the_fetch(
    own: OwnModel, stored: StoredModel, every: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(index: int, data: bytes) -> bool:
        raise StoreError("the disk is full")

    source = CountingSource(own)
    monkeypatch.setattr(stored, "write_chunk", refuse)
    with served(source) as address, pytest.raises(StoreError, match="the disk is full"):
        fetch_chunks(stored, every, supply(address))
    assert len(source.read) < len(every)


def test_room_is_checked_before_anything_is_fetched(
    own: OwnModel, stored: StoredModel, every: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(wanted_bytes: int) -> None:
        asked.append(wanted_bytes)
        raise StoreError(os.strerror(errno.ENOSPC))

    assert stored.write_chunk(0, own.read_chunk(0))
    monkeypatch.setattr(stored, "check_room", refuse)
    with pytest.raises(StoreError):
        fetch_chunks(stored, every, supply(NOBODY))
    assert asked == [own.manifest.bytes_of(every[1:])]


def test_the_number_of_connections_is_bounded(
    own: OwnModel, stored: StoredModel, every: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    open_now: set[int] = set()
    most = 0

    class Counted(transfer_client.SourceConnection):
        def __init__(self, address: Address, mesh_key: bytes) -> None:
            nonlocal most
            super().__init__(address, mesh_key)
            open_now.add(id(self))
            opened.append(1)
            most = max(most, len(open_now))

        def __exit__(self, *details: object) -> None:
            open_now.discard(id(self))
            super().__exit__(*details)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer, "SourceConnection", Counted)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(served(own)) for _ in range(5)]
        fetch_chunks(stored, every, supply(*sources))
    assert len(opened) == 3
    assert 1 <= most <= 3
