"""What a fetching device refuses: other meshes, other versions, silence and hostile replies."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from weights_serving import HOST, KEY, CountingSource, answering, served, supply

from edgellama.errors import TransferError
from edgellama.net import transfer_client
from edgellama.net.manifest import CHUNK_BYTES_MAX
from edgellama.net.record_stream import RecordStream
from edgellama.net.transfer import fetch_chunks, fetch_manifest
from edgellama.net.transfer_protocol import GREETING, PRESENT, answer_greeting
from edgellama.values import Address

if TYPE_CHECKING:
    import socket

    from edgellama.net.manifest import Manifest
    from edgellama.net.own_model import OwnModel
    from edgellama.net.stored_model import StoredModel

NOBODY = Address(HOST, 9)  # the discard port, where nothing listens


@pytest.mark.parametrize(("theirs", "mine"), [(KEY, b"other"), (KEY, b""), (b"", KEY)])
def test_another_mesh_is_refused(own: OwnModel, theirs: bytes, mine: bytes) -> None:
    source = CountingSource(own)
    with served(source, theirs) as address, pytest.raises(TransferError) as caught:
        fetch_manifest(own.manifest.root, supply(address, key=mine))
    assert f"{address} closed the connection" in str(caught.value)
    assert "is it of the same mesh, and of the same release" in str(caught.value)


@pytest.mark.parametrize("key", [b"", b"k", b"long" * 100])
def test_keys_of_any_length(own: OwnModel, key: bytes) -> None:
    with served(own, key) as address:
        assert fetch_manifest(own.manifest.root, supply(address, key=key)) == own.manifest


def test_a_server_must_prove_the_key_too(own: OwnModel) -> None:
    def pretend(connection: socket.socket) -> None:
        asked = connection.recv(100)
        connection.sendall(asked[len(GREETING) :])  # the client's own words, sent back
        connection.recv(100)

    with answering(pretend) as address, pytest.raises(TransferError) as caught:
        fetch_manifest(own.manifest.root, supply(address))
    assert f"{address} belongs to another mesh (is it of the same mesh" in str(caught.value)


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (b"HTTP/1.1 400 Bad Request".ljust(48, b"!"), "belongs to another mesh"),
        (bytes(48), "belongs to another mesh"),
        (bytes(47), "closed the connection"),
        (b"", "closed the connection"),
    ],
)
def test_what_is_no_weight_server(sent: bytes, fault: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(sent)

    with answering(answer) as address, pytest.raises(TransferError) as caught:
        fetch_manifest("0" * 64, supply(address))
    assert f"{address} {fault}" in str(caught.value)


@pytest.mark.parametrize("at", [0, 19, 20, 21, 60, 61])
def test_a_turned_bit_is_found_before_a_byte_is_believed(own: OwnModel, at: int) -> None:
    def answer(connection: socket.socket) -> None:
        stream = RecordStream(connection, 5)
        assert stream.receive_plain(len(GREETING)) == GREETING
        answer_greeting(stream, KEY)
        stream.receive(100)
        true_send = connection.sendall
        stream._send = lambda data: true_send(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])  # type: ignore[method-assign]
        stream.send(PRESENT, own.manifest.encoded)

    with answering(answer) as address, pytest.raises(TransferError) as caught:
        fetch_manifest(own.manifest.root, supply(address))
    assert f"{address} sent bytes that were damaged or are not its own" in str(caught.value)


def test_a_silent_source_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(transfer_client, "HELLO_TIMEOUT_S", 0.05)
    with answering(lambda connection: bool(over.wait(10)) and None) as address:
        with pytest.raises(TransferError, match=r"did not answer within 0\.05 s"):
            fetch_manifest("0" * 64, supply(address))
        over.set()


def test_a_source_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not move the deadline of a message."""
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not over.wait(0.02):
            connection.sendall(b"E")

    monkeypatch.setattr(transfer_client, "HELLO_TIMEOUT_S", 0.1)
    with answering(drip) as address:
        with pytest.raises(TransferError, match=r"did not answer within 0\.1 s"):
            fetch_manifest("0" * 64, supply(address))
        over.set()


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (b"", "sent a malformed reply"),
        (b"\x02", "sent a malformed reply"),
        (b"\x00\x00", "sent a malformed reply"),
        (b"\x01", "sent a list of chunks that does not fit the model"),
        (b"\x01" + b"\xff" * 6, "sent a list of chunks that does not fit the model"),
        (b"\x01" + b"\xff" * 7, "sent a message of 8 bytes where 7 are allowed"),
    ],
)
def test_hostile_lists_of_chunks(
    own: OwnModel, stored: StoredModel, reply: bytes, fault: str
) -> None:
    assert len(own.available().to_bytes()) == 6
    assert own.manifest.chunks % 8

    def answer(connection: socket.socket) -> None:
        stream = RecordStream(connection, 5)
        assert stream.receive_plain(len(GREETING)) == GREETING
        answer_greeting(stream, KEY)
        stream.receive(100)
        stream.send(reply)

    with answering(answer) as address, pytest.raises(TransferError) as caught:
        fetch_chunks(stored, [0], supply(address))
    assert f"{address} {fault}" in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES_MAX, CHUNK_BYTES_MAX + 1])
def test_chunks_of_the_wrong_size(own: OwnModel, stored: StoredModel, size: int) -> None:
    def answer(connection: socket.socket) -> None:
        stream = RecordStream(connection, 5)
        assert stream.receive_plain(len(GREETING)) == GREETING
        answer_greeting(stream, KEY)
        stream.receive(100)
        stream.send(PRESENT, own.available().to_bytes())
        stream.receive(100)
        stream.send(PRESENT, bytes(size))

    fault = "sent a wrong chunk 0" if size <= CHUNK_BYTES_MAX else "sent a message of 1048578 bytes"
    with answering(answer) as address, pytest.raises(TransferError) as caught:
        fetch_chunks(stored, [0], supply(address))
    assert f"{address} {fault}" in str(caught.value)
    assert stored.missing([0]) == [0]


def test_a_manifest_from_the_first_that_has_it(own: OwnModel) -> None:
    lie = SimpleNamespace(root=own.manifest.root, encoded=own.manifest.encoded[:-1] + b"!")
    liar_source = CountingSource(own)
    liar_source.manifest = cast("Manifest", lie)
    root = own.manifest.root
    with served(liar_source) as liar, served(None) as empty, served(own) as good:
        assert fetch_manifest(root, supply(NOBODY, liar, empty, good)) == own.manifest
        with pytest.raises(TransferError) as caught:
            fetch_manifest(root, supply(NOBODY, liar, empty))
    message = str(caught.value)
    assert f"{liar} sent a manifest that does not hash to the model's root" in message
    assert f"{empty} does not have the model" in message
    assert "\n" not in message
