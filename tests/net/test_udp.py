"""Real sockets on loopback, and errors that an operating system can give."""

from __future__ import annotations

import errno
import hashlib
import random
import selectors
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING

import pytest
from driven_peer import HOST, PATIENCE_S, A, B, DrivenPeer

from edgellama.errors import NetworkError
from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Endpoint,
    Event,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.net import segments, udp
from edgellama.net.udp import SendOutcome, UdpDriver, UdpSocket
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Broken(UdpSocket):
    """A socket whose sending fails as a dice or a list says."""

    def __init__(self, loss: float = 0.0, errors: tuple[int, ...] = (), seed: int = 1) -> None:
        super().__init__(HOST, 0)
        self.loss = loss
        self.errors = list(errors)
        self.dice = random.Random(seed)

    def send(self, data: bytes, address: Address) -> SendOutcome:
        if self.dice.random() < self.loss:
            return SendOutcome.SENT
        return super().send(data, address)


class Peer(DrivenPeer):
    """An endpoint of its own on a socket that is given."""

    def __init__(self, node: str, udp_socket: UdpSocket) -> None:
        super().__init__(udp_socket)
        dice = random.Random(node)
        identity = Identity(node, 1)
        self.endpoint = Endpoint(identity, b"k", udp_socket.window_packets, dice.randbytes)
        self.driver = UdpDriver(self.endpoint, udp_socket, self)
        self.start()


@pytest.fixture
def make_peer() -> Iterator[Callable[[str, UdpSocket], Peer]]:
    peers: list[Peer] = []

    def make(node: str, udp_socket: UdpSocket) -> Peer:
        peers.append(Peer(node, udp_socket))
        return peers[-1]

    yield make
    for peer in peers:
        peer.end()


def digests(messages: list[bytes]) -> list[str]:
    return sorted(hashlib.sha256(message).hexdigest() for message in messages)


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_messages_of_every_size_cross_loopback_both_ways(
    make_peer: Callable[[str, UdpSocket], Peer], loss: float
) -> None:
    here, there = make_peer(A, Broken(loss, seed=1)), make_peer(B, Broken(loss, seed=2))

    def echo(event: Event, now: float) -> None:
        if isinstance(event, MessageReceived):
            there.endpoint.send(event.node, event.message, Priority.DECODE, now)

    there.on_event = echo
    dice = random.Random(3)
    bodies = [dice.randbytes(size) for size in (0, 1, 1155, 1156, 4096, 100_000, 1 << 20)]

    def dial(now: float) -> None:
        here.endpoint.dial(there.socket.address, now)

    def talk(now: float) -> None:
        for body in bodies:
            here.endpoint.send(B, body, Priority.PREFILL, now)

    here.on_event = lambda event, now: talk(now) if isinstance(event, Connected) else None
    here.driver.post(dial)
    events = here.wait_for(1 + len(bodies))
    assert isinstance(events[0], Connected)
    echoed = [event.message for event in events[1:] if isinstance(event, MessageReceived)]
    assert digests(echoed) == digests(bodies)
    counters = here.endpoint.total_counters()
    assert counters.bytes_sent > sum(map(len, bodies))
    if loss:
        assert counters.packets_retransmitted > 0


def test_what_was_posted_before_the_stop_is_done_and_the_peer_is_told(
    make_peer: Callable[[str, UdpSocket], Peer],
) -> None:
    here, there = make_peer(A, UdpSocket(HOST, 0)), make_peer(B, UdpSocket(HOST, 0))
    here.driver.post(lambda now: here.endpoint.dial(there.socket.address, now))
    here.wait_for(1)
    there.wait_for(1)
    here.driver.post(lambda now: here.endpoint.disconnect(B, now))
    here.driver.stop()
    assert there.wait_for(2)[1] == Disconnected(A, "it left", left=True)
    here.thread.join(PATIENCE_S)
    here.driver.post(lambda now: None)  # too late, and no error
    here.driver.stop()


def test_a_bug_above_ends_the_loop_and_is_not_swallowed(
    make_peer: Callable[[str, UdpSocket], Peer],
) -> None:
    peer = make_peer(A, UdpSocket(HOST, 0))

    def bug(now: float) -> None:
        raise ZeroDivisionError("ours")

    peer.driver.post(bug)
    peer.thread.join(PATIENCE_S)
    assert isinstance(peer.failure, ZeroDivisionError)


def test_the_drivers_timers_follow_the_clock_that_it_is_given() -> None:
    time = 0.0
    fired: list[float] = []

    class Timed:
        def handle_event(self, event: Event, now: float) -> None:
            raise AssertionError

        def next_timer(self) -> float | None:
            return 5.0 * (len(fired) + 1)

        def handle_timer(self, now: float) -> None:
            fired.append(now)
            if len(fired) == 3:
                driver.stop()

    def clock() -> float:
        nonlocal time
        time += 0.5
        return time

    with UdpSocket(HOST, 0) as udp_socket:
        endpoint = Endpoint(Identity(A, 1), b"", 100, random.Random(1).randbytes)
        driver = UdpDriver(endpoint, udp_socket, Timed(), clock)
        original = udp.IDLE_WAIT_S
        udp.IDLE_WAIT_S = 0.0  # the clock above does not wait
        try:
            driver.run()
        finally:
            udp.IDLE_WAIT_S = original
    assert len(fired) == 3
    for number, moment in enumerate(fired, start=1):
        assert moment >= 5.0 * number


def test_a_driver_that_never_ran_can_be_closed() -> None:
    with UdpSocket(HOST, 0) as udp_socket:
        endpoint = Endpoint(Identity(A, 1), b"", 100, random.Random(1).randbytes)
        UdpDriver(endpoint, udp_socket, None).close()  # type: ignore[arg-type]


def test_a_busy_port_is_one_clear_line() -> None:
    with UdpSocket(HOST, 0) as first:
        port = first.address.port
        with pytest.raises(NetworkError) as failure:
            UdpSocket(HOST, port)
    text = str(failure.value)
    assert f"port {port} is in use" in text
    assert "--port" in text
    assert "\n" not in text


def test_an_address_of_another_device_is_one_clear_line() -> None:
    with pytest.raises(NetworkError, match=r"no address 192\.0\.2\.1.*--listen"):
        UdpSocket("192.0.2.1", 0)


def test_the_window_follows_what_the_kernel_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    with UdpSocket(HOST, 0) as udp_socket:
        granted = udp_socket._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert udp_socket.window_packets == min(max(granted // 2560, 16), 2048)
    monkeypatch.setattr(udp, "RECEIVE_BUFFER_BYTES_WANTED", 1)
    with UdpSocket(HOST, 0) as udp_socket:
        assert udp_socket.window_packets == 16, "the least, whatever was granted"


class Failing:
    """Stands in for the operating system's socket."""

    def __init__(self, errors: list[OSError | None]) -> None:
        self.errors = errors

    def sendto(self, data: bytes, address: Address) -> None:
        self._fail()

    def sendmsg(self, data: list[bytes], control: object, flags: int, address: Address) -> None:
        self._fail()

    def _fail(self) -> None:
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error

    def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        self._fail()
        return b"data", ("10.0.0.1", 7)


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.EAGAIN, SendOutcome.BLOCKED),
        (errno.ENOBUFS, SendOutcome.BLOCKED),
        (errno.EHOSTUNREACH, SendOutcome.UNREACHABLE),
        (errno.ENETUNREACH, SendOutcome.UNREACHABLE),
        (errno.ENETDOWN, SendOutcome.UNREACHABLE),
        (errno.ECONNREFUSED, SendOutcome.REFUSED),
        (errno.EPERM, SendOutcome.FORBIDDEN),
        (errno.EACCES, SendOutcome.FORBIDDEN),
        (errno.EMSGSIZE, SendOutcome.DROPPED),
    ],
)
def test_no_error_of_the_network_is_fatal(number: int, outcome: SendOutcome) -> None:
    udp_socket = UdpSocket(HOST, 0)
    udp_socket.close()
    udp_socket._socket = Failing([OSError(number, "no")])  # type: ignore[assignment]
    assert udp_socket.send(b"x", Address("10.0.0.1", 7)) is outcome


def test_reading_goes_on_after_a_refused_datagram() -> None:
    udp_socket = UdpSocket(HOST, 0)
    udp_socket.close()
    refused = [ConnectionResetError(10054, "reset"), OSError(10040, "too long")]
    udp_socket._joins = False
    udp_socket._socket = Failing(list(refused))  # type: ignore[assignment]
    assert udp_socket.receive() == (b"data", Address("10.0.0.1", 7))


def test_an_impossible_address_is_dropped() -> None:
    with UdpSocket(HOST, 0) as udp_socket:
        assert udp_socket.send(b"x", Address(HOST, 70_000)) is SendOutcome.DROPPED
        assert udp_socket.send(b"x", Address(HOST, 0)) is SendOutcome.DROPPED


def test_a_full_radio_queue_delays_and_loses_nothing(
    make_peer: Callable[[str, UdpSocket], Peer],
) -> None:
    class Saturated(Broken):
        def send(self, data: bytes, address: Address) -> SendOutcome:
            if self.dice.random() < 0.3:
                return SendOutcome.BLOCKED
            return super().send(data, address)

    here, there = make_peer(A, Saturated()), make_peer(B, UdpSocket(HOST, 0))
    body = random.Random(1).randbytes(100_000)
    here.driver.post(lambda now: here.endpoint.dial(there.socket.address, now))
    here.wait_for(1)
    here.driver.post(lambda now: here.endpoint.send(B, body, Priority.PREFILL, now))
    assert there.wait_for(2)[1] == MessageReceived(A, body)


class Refusing(UdpSocket):
    """A socket to which the operating system refuses to send, so many times or always."""

    def __init__(self, number: int, times: int = 1 << 30) -> None:
        super().__init__(HOST, 0)
        self.number = number
        self.times = times

    def send(self, data: bytes, address: Address) -> SendOutcome:
        self.times -= 1
        if self.times < 0:
            return super().send(data, address)
        real, self._socket = self._socket, Failing([OSError(self.number, "no")])  # type: ignore[assignment]
        try:
            return super().send(data, address)
        finally:
            self._socket = real


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EPERM, "F-Droid"),
        (errno.EHOSTUNREACH, "Wi-Fi"),
        (errno.ENETUNREACH, "Wi-Fi"),
        (errno.ECONNREFUSED, "nothing listens"),
        (errno.EMSGSIZE, "no answer"),
    ],
)
def test_a_dial_to_which_the_system_says_no_fails_with_what_to_do(
    make_peer: Callable[[str, UdpSocket], Peer], number: int, reason: str
) -> None:
    here = make_peer(A, Refusing(number))
    here.driver.post(lambda now: here.endpoint.dial(Address(HOST, 9), now))
    (failed,) = here.wait_for(1)
    assert isinstance(failed, DialFailed)
    assert reason in failed.reason
    assert "\n" not in failed.reason


@pytest.mark.parametrize(
    "number",
    [errno.ENOBUFS, errno.EPERM, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED],
)
def test_a_radio_that_is_away_for_a_while_loses_no_message(
    make_peer: Callable[[str, UdpSocket], Peer], number: int
) -> None:
    roaming = Refusing(number, times=0)
    here, there = make_peer(A, roaming), make_peer(B, UdpSocket(HOST, 0))
    here.driver.post(lambda now: here.endpoint.dial(there.socket.address, now))
    here.wait_for(1)
    body = random.Random(1).randbytes(50_000)

    def roam(now: float) -> None:
        roaming.segments = False
        roaming.times = 12
        here.endpoint.send(B, body, Priority.PREFILL, now)

    here.driver.post(roam)
    assert there.wait_for(2)[1] == MessageReceived(A, body)
    assert not any(isinstance(event, Disconnected) for event in here.events)


RUN = [(b"a" * 100, Address("10.0.0.1", 7)), (b"b" * 100, Address("10.0.0.1", 7))]


def with_fake(errors: list[OSError | None]) -> UdpSocket:
    udp_socket = UdpSocket(HOST, 0)
    udp_socket.close()
    udp_socket._socket = Failing(errors)  # type: ignore[assignment]
    udp_socket.segments = True
    return udp_socket


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_driver_that_does_not_segment_after_all_gets_single_datagrams(number: int) -> None:
    udp_socket = with_fake([OSError(number, "no")])
    datagrams = deque(RUN)
    assert udp_socket.send_next(datagrams) is SendOutcome.SENT
    assert not datagrams
    assert not udp_socket.segments


def test_a_run_waits_when_the_radio_is_full_and_is_dropped_when_it_is_away() -> None:
    udp_socket = with_fake([OSError(errno.ENOBUFS, "no"), OSError(errno.EHOSTUNREACH, "no")])
    datagrams = deque(RUN)
    assert udp_socket.send_next(datagrams) is SendOutcome.BLOCKED
    assert list(datagrams) == RUN
    assert udp_socket.send_next(datagrams) is SendOutcome.UNREACHABLE
    assert not datagrams
    assert udp_socket.segments


needs_segments = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux sends and receives runs in one call"
)


@needs_segments
def test_runs_of_datagrams_cross_in_one_call_and_come_out_as_they_went_in() -> None:
    with UdpSocket(HOST, 0) as here, UdpSocket(HOST, 0) as there:
        if not here.segments:
            pytest.skip("this kernel has no segmentation offload for UDP")
        lengths = [1000] * 20 + [700] + [1000, 1200, 1200, 33]
        bodies = [bytes([number]) * length for number, length in enumerate(lengths)]
        datagrams = deque((body, there.address) for body in bodies)
        calls = 0
        while datagrams:
            assert here.send_next(datagrams) is SendOutcome.SENT
            calls += 1
        assert calls == 4  # 16; 4 and the shorter one; 1000; the rest
        received = []
        while (one := there.receive()) is not None:
            received.append(one)
        assert received == [(body, here.address) for body in bodies]


@needs_segments
def test_a_kernel_without_the_options_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_UDP_SEGMENT", 9999)
    monkeypatch.setattr(segments, "_UDP_GRO", 9999)
    with UdpSocket(HOST, 0) as here, UdpSocket(HOST, 0) as there:
        assert not here.segments
        datagrams = deque([(b"x" * 100, there.address)] * 3)
        for left in (2, 1, 0):
            assert here.send_next(datagrams) is SendOutcome.SENT
            assert len(datagrams) == left
        assert [there.receive() for _ in range(4)] == [(b"x" * 100, here.address)] * 3 + [None]


@needs_segments
def test_datagrams_leave_whole_or_not_at_all() -> None:
    with UdpSocket(HOST, 0) as udp_socket:
        assert udp_socket._socket.getsockopt(socket.IPPROTO_IP, 10) == 3  # IP_PMTUDISC_PROBE


def test_descriptors_beyond_select_are_polled(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(self: object, timeout: float) -> None:
        raise ValueError("filedescriptor out of range in select()")

    monkeypatch.setattr(selectors.SelectSelector, "select", cannot)
    with UdpSocket(HOST, 0) as here, UdpSocket(HOST, 0) as there, udp.FineSelector() as selector:
        selector.register(here, selectors.EVENT_READ, "here")
        selector.register(there, selectors.EVENT_READ, "there")
        assert selector.select(0.0) == []
        there.send(b"x", here.address)
        assert [key.data for key, _ in selector.select(PATIENCE_S)] == ["here"]
