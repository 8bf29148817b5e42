"""The weight server against junk, silence, too many clients, and requests that cannot be."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_running import SmallShape, llama_keys, llama_tensors, write_llama
from weights_serving import HOST, KEY, CountingSource

from edgellama.errors import NetworkError, TransferError
from edgellama.net.store import Store
from edgellama.net.stored_model import StoreError
from edgellama.net.transfer import fetch_manifest
from edgellama.net.transfer_client import SourceConnection
from edgellama.net.transfer_protocol import (
    RecordStream,
    RefusedError,
    Request,
    RequestKind,
    greet,
)
from edgellama.net.transfer_server import CONNECTIONS_MAX, WeightServer
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgellama.net.manifest import Manifest
    from edgellama.net.stored_model import ChunkSource


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingSource]:
    folder = tmp_path_factory.mktemp("source")
    shape = SmallShape()
    path = write_llama(folder / "own.gguf", llama_keys(shape), llama_tensors(shape))  # type: ignore[arg-type]
    with contextlib.closing(Store(folder / "store")) as store:
        yield CountingSource(store.adopt(path))


@pytest.fixture(scope="module")
def server(own: CountingSource) -> Iterator[WeightServer]:
    """Serve with short patience, so that what waits it out is quick to see."""
    opened = WeightServer(HOST, 0, KEY, lookup_of(own), hello_timeout_s=0.2, message_timeout_s=0.3)
    yield opened
    opened.close()


def lookup_of(own: ChunkSource) -> Callable[[str], ChunkSource | None]:
    return lambda root: own if root == own.manifest.root else None


@contextlib.contextmanager
def connected(server: WeightServer) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, server.port), timeout=10) as connection:
        yield connection


@contextlib.contextmanager
def greeted(server: WeightServer) -> Iterator[RecordStream]:
    with connected(server) as connection:
        stream = RecordStream(connection, 10)
        greet(stream, KEY)
        yield stream


def everything_sent(connection: socket.socket) -> bytes:
    """Return what comes until the other side closes or resets."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(4096):
            received += data
    return received


def send_all_there_is(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # cut off already
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def still_serves(server: WeightServer, own: CountingSource) -> bool:
    return fetch_manifest(own.manifest.root, [Address(HOST, server.port)], KEY) == own.manifest


# --- strangers ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(junk=st.binary(max_size=300))
def test_junk_is_cut_off_without_a_word(
    server: WeightServer, own: CountingSource, junk: bytes
) -> None:
    with connected(server) as connection:
        send_all_there_is(connection, junk)
        assert everything_sent(connection) == b""


@settings(deadline=None, max_examples=40)
@given(junk=st.binary(max_size=120))
def test_junk_after_a_good_hello_gets_the_hello_only(server: WeightServer, junk: bytes) -> None:
    with connected(server) as connection:
        hello = struct.pack("<I8sH16s", 26, b"ELWEIGHT", 1, bytes(16))
        send_all_there_is(connection, hello + junk)
        assert len(everything_sent(connection)) in (0, 30)


@settings(deadline=None, max_examples=60)
@given(junk=st.binary(max_size=120) | st.binary(min_size=41, max_size=41))
def test_junk_from_a_member_is_cut_off(
    server: WeightServer, own: CountingSource, junk: bytes
) -> None:
    own.read.clear()
    with greeted(server) as stream:
        send_all_there_is(stream._connection, struct.pack("<I", len(junk)) + junk)
        assert len(everything_sent(stream._connection)) <= 30
    assert own.read == []


def test_after_all_the_junk_it_still_serves(server: WeightServer, own: CountingSource) -> None:
    assert still_serves(server, own)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x1a",
        struct.pack("<I8s", 26, b"ELWEIGHT"),
        struct.pack("<I8sH16s", 26, b"ELWEIGHT", 1, bytes(16)),
    ],
)
def test_the_silent_are_cut_off(server: WeightServer, sent: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(sent)
        assert len(everything_sent(connection)) == (30 if len(sent) == 30 else 0)


def test_a_silent_member_is_cut_off(server: WeightServer) -> None:
    with greeted(server) as stream:
        assert everything_sent(stream._connection) == b""


def test_a_client_that_does_not_read_is_cut_off(server: WeightServer, own: CountingSource) -> None:
    request = Request(RequestKind.MANIFEST, own.manifest.root).encode()
    waiting = threading.Event()
    with greeted(server) as stream:
        replies_bytes = 0
        while replies_bytes < 16 << 20 and server._open:  # more than the system's buffers hold
            with contextlib.suppress(TransferError):
                stream.send(request)
            replies_bytes += len(own.manifest.encoded)
        while server._open:
            waiting.wait(0.01)
        received = everything_sent(stream._connection)
    assert len(received) < replies_bytes
    assert still_serves(server, own)


def test_a_client_of_another_version_learns_ours(server: WeightServer) -> None:
    with connected(server) as connection:
        connection.sendall(struct.pack("<I8sH16s", 26, b"ELWEIGHT", 77, bytes(16)))
        length, magic, version, _ = struct.unpack("<I8sH16s", everything_sent(connection))
    assert (length, magic, version) == (26, b"ELWEIGHT", 1)


def test_a_proof_is_worth_nothing_in_the_next_connection(server: WeightServer) -> None:
    with greeted(server):
        pass
    with connected(server) as connection:
        stream = RecordStream(connection, 5)
        stream.send(struct.pack("<8sH16s", b"ELWEIGHT", 1, bytes(16)))
        first = stream.receive(26)
    with connected(server) as connection:
        stream = RecordStream(connection, 5)
        stream.send(struct.pack("<8sH16s", b"ELWEIGHT", 1, bytes(16)))
        assert stream.receive(26) != first


# --- requests -------------------------------------------------------------------------------


def test_the_requests_on_the_wire(own: CountingSource) -> None:
    root = "ab" * 32
    assert Request(RequestKind.MANIFEST, root).encode() == b"\x01" + b"\xab" * 32 + bytes(8)
    assert Request(RequestKind.AVAILABLE, root).encode() == b"\x02" + b"\xab" * 32 + bytes(8)
    chunks = Request(RequestKind.CHUNKS, root, 258, 260)
    assert chunks.encode() == b"\x03" + b"\xab" * 32 + b"\x02\x01\0\0\x04\x01\0\0"
    assert Request.decode(chunks.encode()) == chunks


@settings(deadline=None)
@given(st.binary(max_size=60) | st.binary(min_size=41, max_size=41))
def test_what_decodes_encodes_to_the_same(data: bytes) -> None:
    try:
        request = Request.decode(data)
    except RefusedError:
        return
    assert request.encode() == data
    assert request.past - request.first <= 4


@pytest.mark.parametrize(("first", "past"), [(1, 1), (2, 1), (0, 5), (2**32 - 2, 2**32 - 1)])
def test_ranges_that_cannot_be(first: int, past: int) -> None:
    with pytest.raises(RefusedError, match="range of chunks that cannot be"):
        Request.decode(struct.pack("<B32sII", 3, bytes(32), first, past))


def test_a_range_beyond_the_model_is_cut_off(server: WeightServer, own: CountingSource) -> None:
    chunks = own.manifest.chunks
    with greeted(server) as stream:
        stream.send(Request(RequestKind.CHUNKS, own.manifest.root, chunks - 1, chunks + 1).encode())
        assert everything_sent(stream._connection) == b""


def test_a_model_that_is_not_here(server: WeightServer, own: CountingSource) -> None:
    other = "0" * 64
    with greeted(server) as stream:
        for kind in (RequestKind.MANIFEST, RequestKind.AVAILABLE):
            stream.send(Request(kind, other).encode())
            assert stream.receive(10) == b"\0"
        stream.send(Request(RequestKind.CHUNKS, other, 0, 3).encode())
        assert [stream.receive(10) for _ in range(3)] == [b"\0"] * 3


def test_a_lookup_that_fails_ends_the_connection_alone(own: CountingSource) -> None:
    def fail(root: str) -> ChunkSource | None:
        if root == own.manifest.root:
            return own
        raise StoreError("the disk is gone")

    with contextlib.closing(WeightServer(HOST, 0, KEY, fail)) as server:
        with greeted(server) as stream:
            stream.send(Request(RequestKind.MANIFEST, "0" * 64).encode())
            assert everything_sent(stream._connection) == b""
        assert still_serves(server, own)


# --- connections and ports ------------------------------------------------------------------


def test_more_clients_than_slots_wait_their_turn(own: CountingSource) -> None:
    with contextlib.closing(WeightServer(HOST, 0, KEY, lookup_of(own))) as server:
        address = Address(HOST, server.port)
        with contextlib.ExitStack() as stack:
            for _ in range(CONNECTIONS_MAX):
                stack.enter_context(SourceConnection(address, KEY))
            got: list[Manifest] = []
            late = threading.Thread(
                target=lambda: got.append(fetch_manifest(own.manifest.root, [address], KEY))
            )
            late.start()
            assert len(server._open) == CONNECTIONS_MAX
            assert got == []
        late.join()
        assert got == [own.manifest]


def test_a_taken_port_gives_another(own: CountingSource) -> None:
    with contextlib.closing(WeightServer(HOST, 0, KEY, lookup_of(own))) as first:
        with contextlib.closing(WeightServer(HOST, first.port, KEY, lookup_of(own))) as second:
            assert second.port != first.port
            assert still_serves(second, own)
        port = first.port
    with contextlib.closing(WeightServer(HOST, port, KEY, lookup_of(own))) as again:
        assert again.port == port


def test_an_address_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(NetworkError, match=r"cannot listen at 192\.0\.2\.1:0 for weight transfers"):
        WeightServer("192.0.2.1", 0, KEY, lambda root: None)


def test_closing_cuts_clients_off(own: CountingSource) -> None:
    threads = set(threading.enumerate())
    server = WeightServer(HOST, 0, KEY, lookup_of(own))
    address = Address(HOST, server.port)
    with greeted(server) as stream:
        server.close()
        server.close()
        assert everything_sent(stream._connection) == b""
    assert set(threading.enumerate()) == threads
    with pytest.raises(TransferError, match="cannot be reached"):
        fetch_manifest(own.manifest.root, [address], KEY)
