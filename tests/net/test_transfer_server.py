"""The weight server against junk, silence, too many clients, and requests that cannot be."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_running import SmallShape, llama_keys, llama_tensors, write_llama
from weights_serving import HOST, KEY, CountingSource, supply

from edgellama.errors import NetworkError, TransferError
from edgellama.net.record_stream import RecordStream, RefusedError
from edgellama.net.store import Store
from edgellama.net.stored_model import StoreError
from edgellama.net.transfer import fetch_manifest
from edgellama.net.transfer_client import SourceConnection
from edgellama.net.transfer_protocol import GREETING, Request, RequestKind, greet
from edgellama.net.transfer_server import CONNECTIONS_MAX, WeightServer
from edgellama.values import Address
from edgellama.wire.noise import Opening
from edgellama.wire.sealing import mesh_psk

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
    return fetch_manifest(own.manifest.root, supply(Address(HOST, server.port))) == own.manifest


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
def test_junk_after_a_good_greeting_is_cut_off_without_a_word(
    server: WeightServer, junk: bytes
) -> None:
    with connected(server) as connection:
        send_all_there_is(connection, GREETING + junk)
        assert everything_sent(connection) == b""


@pytest.mark.parametrize("key", [b"", b"another"])
def test_another_key_is_cut_off_without_a_word(server: WeightServer, key: bytes) -> None:
    with connected(server) as connection:
        message = Opening(mesh_psk(key), GREETING).ask(secrets.token_bytes, b"").message
        send_all_there_is(connection, GREETING + message)
        assert everything_sent(connection) == b""


@settings(deadline=None, max_examples=60)
@given(junk=st.binary(max_size=120) | st.binary(min_size=41, max_size=41))
def test_junk_from_a_member_is_cut_off(
    server: WeightServer, own: CountingSource, junk: bytes
) -> None:
    own.read.clear()
    with greeted(server) as stream:
        stream.send(junk)
        send_all_there_is(stream._connection, b"")
        assert len(everything_sent(stream._connection)) <= 41
    assert own.read == []


def test_after_all_the_junk_it_still_serves(server: WeightServer, own: CountingSource) -> None:
    assert still_serves(server, own)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"E",
        GREETING,
        GREETING + bytes(47),
    ],
)
def test_the_silent_are_cut_off(server: WeightServer, sent: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(sent)
        assert everything_sent(connection) == b""


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


def test_another_version_is_cut_off_without_a_word(server: WeightServer) -> None:
    with connected(server) as connection:
        send_all_there_is(connection, b"ELWEIGHT" + struct.pack("<H", 77) + bytes(48))
        assert everything_sent(connection) == b""


def test_a_recorded_connection_opens_nothing(server: WeightServer, own: CountingSource) -> None:
    """The same bytes again get a greeting back, shorter than theirs, and nothing after it."""
    recorded = b""
    with connected(server) as connection:
        stream = RecordStream(connection, 10)
        true_send = stream._send

        def record(data: bytes) -> None:
            nonlocal recorded
            recorded += data
            true_send(data)

        stream._send = record  # type: ignore[method-assign]
        greet(stream, KEY)
        stream.send(Request(RequestKind.CHUNKS, own.manifest.root, 0, 1).encode())
        assert len(stream.receive(1 << 21)) > 1000
    own.read.clear()
    with connected(server) as connection:
        send_all_there_is(connection, recorded)
        assert len(everything_sent(connection)) == 48 < len(GREETING) + 48
    assert own.read == []


def test_nothing_of_a_model_passes_readable(server: WeightServer, own: CountingSource) -> None:
    with greeted(server) as stream:
        stream.send(Request(RequestKind.MANIFEST, own.manifest.root).encode())
        send_all_there_is(stream._connection, b"")
        sealed = everything_sent(stream._connection)
    assert len(sealed) == 20 + 1 + len(own.manifest.encoded) + 16
    assert b"blk.0" in own.manifest.encoded
    assert b"blk.0" not in sealed


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
                target=lambda: got.append(fetch_manifest(own.manifest.root, supply(address)))
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
        fetch_manifest(own.manifest.root, supply(address))
