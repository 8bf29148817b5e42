"""Links over real TCP sockets on loopback, moved by the driver's loop."""

from __future__ import annotations

import random
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from driven_peer import HOST, PATIENCE_S, A, B, DrivenPeer

from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.net.record_stream import RecordStream
from edgellama.net.transfer_server import WeightServer
from edgellama.net.udp import UdpSocket
from edgellama.node.linking import linking
from edgellama.values import Address
from edgellama.wire.stream import STREAM_GREETING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Peer(DrivenPeer):
    """A node's links, and a server beside them that hands over what comes by TCP."""

    def __init__(self, node: str, transport: str = "tcp", key: bytes = b"k") -> None:
        super().__init__(UdpSocket(HOST, 0))
        self.node = node
        self.links, self.sockets, self.driver = linking(
            Identity(node, 1), key, self.socket, self, transport
        )
        self.server = WeightServer(
            HOST, self.socket.address.port, key, lambda _: None, link=self._take_over
        )
        self.address = Address(HOST, self.server.port)
        self.start()

    def _take_over(self, connection: socket.socket) -> None:
        self.driver.post(lambda now: self.sockets.accept(connection, now))

    def dial(self, address: Address) -> None:
        self.driver.post(lambda now: self.links.dial(address, now))

    def say(self, node: str, message: bytes, priority: Priority = Priority.DECODE) -> None:
        self.driver.post(lambda now: self.links.send(node, message, priority, now))

    def messages(self) -> list[bytes]:
        return [event.message for event in self.events if isinstance(event, MessageReceived)]

    def end(self) -> None:
        super().end()
        self.server.close()
        assert self.failure is None


@pytest.fixture
def make_peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(node: str, *options: object) -> Peer:
        peers.append(Peer(node, *options))  # type: ignore[arg-type]
        return peers[-1]

    yield make
    for peer in peers:
        peer.end()


def test_messages_of_every_size_cross_both_ways(make_peer: Callable[..., Peer]) -> None:
    here, there = make_peer(A), make_peer(B)
    here.dial(there.address)
    here.wait_for(1)
    there.wait_for(1)
    dice = random.Random(1)
    sent = [dice.randbytes(size) for size in (0, 1, 1000, 16_384, 100_000, 3_000_000, 20_000_000)]
    for message in sent:
        here.say(B, message)
        there.say(A, message[::-1], Priority.BULK)
    here.wait_for(1 + len(sent))
    there.wait_for(1 + len(sent))
    assert there.messages() == sent  # of one priority, so in their order
    assert here.messages() == [message[::-1] for message in sent]


def test_a_small_message_overtakes_what_the_kernel_has_not_taken(
    make_peer: Callable[..., Peer],
) -> None:
    here, there = make_peer(A), make_peer(B)
    here.dial(there.address)
    here.wait_for(1)
    there.wait_for(1)
    here.say(B, bytes(40_000_000), Priority.BULK)
    here.say(B, b"urgent", Priority.CONTROL)
    there.wait_for(3)
    assert [len(message) for message in there.messages()] == [6, 40_000_000]


def test_leaving_is_told_before_the_socket_is_closed(make_peer: Callable[..., Peer]) -> None:
    here, there = make_peer(A), make_peer(B)
    here.dial(there.address)
    here.wait_for(1)
    there.wait_for(1)
    here.driver.post(lambda now: here.links.disconnect(B, now))
    here.driver.stop()
    assert there.wait_for(2)[1] == Disconnected(A, "it left", left=True)


def test_a_peer_that_is_killed_is_missed_at_once(make_peer: Callable[..., Peer]) -> None:
    here, there = make_peer(A), make_peer(B)
    here.dial(there.address)
    here.wait_for(1)
    there.wait_for(1)
    there.driver.post(lambda _: there.sockets.close())  # as the kernel does for a dead process
    (_, end) = here.wait_for(2)
    assert isinstance(end, Disconnected)
    assert not end.left


def test_nobody_listens(make_peer: Callable[..., Peer]) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = int(listener.getsockname()[1])
    here = make_peer(A)
    for port_there in (port, 70_000):  # the second one is no port
        here.dial(Address(HOST, port_there))
    first, second = here.wait_for(2)
    assert isinstance(first, DialFailed)
    assert isinstance(second, DialFailed)
    assert "connection refused" in {first.reason, second.reason}


def test_by_itself_udp_is_taken_where_it_works(make_peer: Callable[..., Peer]) -> None:
    here, there = make_peer(A, "auto"), make_peer(B, "auto")
    assert there.address == there.socket.address  # one number for both
    here.dial(there.address)
    here.wait_for(1)
    assert here.links.transport_of(B) == "udp"


def test_another_key_is_let_in_by_neither(make_peer: Callable[..., Peer]) -> None:
    here, there = make_peer(A, "auto", b"one"), make_peer(B, "auto", b"two")
    here.dial(there.address)
    (failed,) = here.wait_for(1)
    assert isinstance(failed, DialFailed)
    assert there.events == []


def test_bytes_after_the_greeting_belong_to_the_link() -> None:
    """The server reads the greeting and not one byte more, then lets go of the socket."""
    taken: list[socket.socket] = []
    came = threading.Event()

    def take(connection: socket.socket) -> None:
        taken.append(connection)
        came.set()

    server = WeightServer(HOST, 0, b"k", lambda _: None, link=take)
    try:
        with socket.create_connection((HOST, server.port)) as client:
            client.sendall(STREAM_GREETING + b"rest")
            assert came.wait(PATIENCE_S)
            (connection,) = taken
            with connection:
                assert connection.recv(10) == b"rest"
                connection.sendall(b"still open")
                assert client.recv(10) == b"still open"
    finally:
        server.close()


def test_a_server_without_links_closes_without_a_word() -> None:
    server = WeightServer(HOST, 0, b"k", lambda _: None)
    try:
        with socket.create_connection((HOST, server.port)) as client:
            client.sendall(STREAM_GREETING)
            client.settimeout(PATIENCE_S)
            assert client.recv(1) == b""
    finally:
        server.close()


def test_a_detached_stream_closes_nothing() -> None:
    near, far = socket.socketpair()
    stream = RecordStream(near, 1.0)
    with far, stream.detach() as kept:
        stream.close()
        stream.abort()
        kept.sendall(b"x")
        assert far.recv(1) == b"x"


def test_connected_is_told_with_the_address_that_was_dialled(
    make_peer: Callable[..., Peer],
) -> None:
    here, there = make_peer(A), make_peer(B)
    here.dial(there.address)
    assert here.wait_for(1) == [Connected(Identity(B, 1), there.address)]
    assert there.wait_for(1) == [Connected(Identity(A, 1), Address(HOST, 0))]
