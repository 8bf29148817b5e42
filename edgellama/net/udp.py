"""The one UDP socket of a node and the one thread that moves its datagrams.

A non-blocking socket drained by a plain loop costs a fifth of the CPU time of asyncio's datagram
protocol a packet, and the loop keeps the order that the link wants: read everything, let the
layers above answer, then send, so that an answer carries the acknowledgement.
"""

from __future__ import annotations

import contextlib
import errno
import math
import selectors
import socket
import sys
import time
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Protocol, Self

from edgellama.errors import NetworkError
from edgellama.net.segments import (
    CONTROL_BYTES,
    JOINED_BYTES_MAX,
    NOT_SEGMENTED,
    can_join,
    can_segment,
    joined_length,
    run_length,
    send_run,
)
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.link.endpoint import Endpoint, Event
    from edgellama.link.links import Links
    from edgellama.net.tcp import StreamSockets

DEFAULT_PORT = 7711

RECEIVE_BUFFER_BYTES_WANTED = 4 << 20
BUFFER_BYTES_PER_PACKET = 2560
"""What the kernel charges a datagram of 1200 bytes, its own bookkeeping included."""

WINDOW_PACKETS_LEAST = 16
WINDOW_PACKETS_MOST = 2048
"""A window of 2048 packets fills 100 MB/s at 20 ms: more would only add memory."""

READS_MAX = 64
"""Datagrams read before the layers above and the sending side have their turn: a token shall not
wait for more than a millisecond behind a transfer."""

BLOCKED_RETRY_S = 0.002
"""A full radio queue (ENOBUFS) does not become writable; it is tried again."""

BURSTS = (1, 32, 32)
"""How many datagrams a peer are asked for before reading again. The first goes out by itself: the
peer wakes up and begins while the others are made. The last poll mostly finds nothing left."""

FLUSHES_MAX = 16
"""Rounds of sending before ``run`` returns: enough for every close, not for a transfer."""

IDLE_WAIT_S = 10.0

_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_PROBE = 3
"""Linux: set DF, and believe no router's word about the path (RFC 8899 section 4.6.1 does not
need it): what arrives decides."""


class SendOutcome(Enum):
    """What became of a datagram."""

    SENT = "sent"
    BLOCKED = "blocked"  # no room at the moment: try the same again in some milliseconds
    # The others were dropped: the link repeats them, or gives up in the end.
    FORBIDDEN = "forbidden"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    DROPPED = "dropped"


_OUTCOMES = {
    errno.EAGAIN: SendOutcome.BLOCKED,
    errno.EWOULDBLOCK: SendOutcome.BLOCKED,
    errno.ENOBUFS: SendOutcome.BLOCKED,
    errno.EPERM: SendOutcome.FORBIDDEN,
    errno.EACCES: SendOutcome.FORBIDDEN,
    errno.EHOSTUNREACH: SendOutcome.UNREACHABLE,
    errno.ENETUNREACH: SendOutcome.UNREACHABLE,
    errno.ENETDOWN: SendOutcome.UNREACHABLE,
    errno.ECONNREFUSED: SendOutcome.REFUSED,
}

_REASONS = {
    SendOutcome.FORBIDDEN: (
        "the system forbids sending to the local network: on Android install Termux from F-Droid or"
        " GitHub, elsewhere look at the firewall and the VPN"
    ),
    SendOutcome.UNREACHABLE: (
        "no network of this device leads there: look at the Wi-Fi, and on macOS allow the terminal"
        " to reach the local network"
    ),
    SendOutcome.REFUSED: "nothing listens at that address",
}
"""What a person can do where every datagram of a dial met that."""


_SENT, _BLOCKED = SendOutcome.SENT, SendOutcome.BLOCKED  # an enum's members are slow to read


class UdpSocket:
    """A bound, non-blocking IPv4 UDP socket that takes errors of the network as weather.

    Raises NetworkError when it cannot be bound.
    """

    def __init__(self, host: str = "", port: int = DEFAULT_PORT) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise NetworkError(_bind_failure(host, port, error)) from None
        self._socket.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            # Without the permission for so much, the system grants what it allows or refuses.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES_WANTED)
        granted = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.receive_buffer_bytes = granted
        packets = granted // BUFFER_BYTES_PER_PACKET
        self.window_packets = min(max(packets, WINDOW_PACKETS_LEAST), WINDOW_PACKETS_MOST)
        self.address = Address(*self._socket.getsockname())
        if sys.platform.startswith(("linux", "android")):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        self.segments = can_segment(self._socket)
        self._joins = can_join(self._socket)
        self._buffer = bytearray(JOINED_BYTES_MAX)
        self._received: deque[tuple[bytes, Address]] = deque()  # the rest of what came joined

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def receive(self) -> tuple[bytes, Address] | None:
        """Return the next datagram and its source, or None when there is none at the moment."""
        if self._received:
            return self._received.popleft()
        for _ in range(READS_MAX):
            try:
                if self._joins:
                    return self._receive_joined()
                data, (host, port) = self._socket.recvfrom(JOINED_BYTES_MAX)
            except BlockingIOError:
                return None
            except OSError:
                # An earlier datagram of ours found no one (Windows reports it here), or one that
                # came was longer than any of ours: neither says anything about the next.
                continue
            return data, Address(host, port)
        return None

    def _receive_joined(self) -> tuple[bytes, Address]:
        size, control, _, (host, port) = self._socket.recvmsg_into([self._buffer], CONTROL_BYTES)
        address = Address(host, port)
        length = joined_length(control) if control else 0
        if not 0 < length < size:
            return bytes(memoryview(self._buffer)[:size]), address
        whole = memoryview(self._buffer)
        for start in range(length, size, length):
            self._received.append((bytes(whole[start : min(start + length, size)]), address))
        return bytes(whole[:length]), address

    def send(self, data: bytes, address: Address) -> SendOutcome:
        """Send a datagram; what the network refuses at the moment is no error."""
        try:
            self._socket.sendto(data, address)
        except OSError as error:
            return _OUTCOMES.get(error.errno or 0, SendOutcome.DROPPED)
        except OverflowError:  # a port that no socket has: an address from outside, not ours
            return SendOutcome.DROPPED
        return SendOutcome.SENT

    def send_next(self, datagrams: deque[tuple[bytes, Address]]) -> SendOutcome:
        """Send the first of the datagrams, with those after it that can go along; take them off.

        What is BLOCKED stays.
        """
        count = run_length(datagrams) if self.segments and len(datagrams) > 1 else 1
        if count > 1:
            outcome = self._send_run([datagrams[at][0] for at in range(count)], datagrams[0][1])
        else:
            outcome = self.send(*datagrams[0])
        if outcome is not SendOutcome.BLOCKED:
            for _ in range(count):
                datagrams.popleft()
        return outcome

    def _send_run(self, run: list[bytes], address: Address) -> SendOutcome:
        try:
            send_run(self._socket, run, address)
        except OSError as error:
            if error.errno not in NOT_SEGMENTED:
                return _OUTCOMES.get(error.errno or 0, SendOutcome.DROPPED)
            self.segments = False  # the kernel knows the option, the way to that address does not
            outcomes = [self.send(data, address) for data in run]
            return outcomes[0]
        return SendOutcome.SENT


def _bind_failure(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use on this device: end what uses it or choose another with --port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this device has no address {host}: choose one of its own with --listen"
    if error.errno == errno.EACCES:
        return f"the system does not allow port {port}: choose one above 1023 with --port"
    return f"port {port} cannot be opened: {error.strerror}"


class FineSelector(selectors.SelectSelector):
    """Waits to the microsecond, where poll() and epoll round up to a millisecond.

    select() cannot watch a descriptor above 1023; where there is one, poll() has to do.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait so many seconds at most for one of them; return which."""
        try:
            return super().select(timeout)
        except ValueError:
            if not hasattr(selectors, "PollSelector"):
                raise
        with selectors.PollSelector() as poll:
            for key in self.get_map().values():
                poll.register(key.fileobj, key.events, key.data)
            return poll.select(timeout)


class Handler(Protocol):
    """What stands above the link on the I/O thread: takes events and has timers of its own."""

    def handle_event(self, event: Event, now: float) -> None:
        """Take an event of the endpoint."""
        ...

    def next_timer(self) -> float | None:
        """Return when ``handle_timer`` wants to be called, if at all."""
        ...

    def handle_timer(self, now: float) -> None:
        """Do what has become due."""
        ...


class UdpDriver:
    """Runs an Endpoint, or all Links, and a Handler over sockets, on the thread that calls ``run``.

    The endpoint and the handler belong to that thread; others reach them with ``post``.
    """

    def __init__(
        self,
        endpoint: Endpoint | Links,
        udp_socket: UdpSocket,
        handler: Handler,
        clock: Callable[[], float] = time.monotonic,
        streams: StreamSockets | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._socket = udp_socket
        self._handler = handler
        self._clock = clock
        self._posted: deque[Callable[[float], None]] = deque()
        self._unsent: deque[tuple[bytes, Address]] = deque()  # one poll's datagrams at most
        self._stopping = False
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector = FineSelector()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._selector.register(udp_socket, selectors.EVENT_READ)
        self._timer_at = 0.0  # when a timer is due, as known before the last wait
        self._streams = streams
        if streams is not None:
            streams.attach(self._selector)

    def post(self, call: Callable[[float], None]) -> None:
        """Have the I/O thread run ``call(now)`` soon; may be called from any thread."""
        self._posted.append(call)
        self._wake()

    def stop(self) -> None:
        """Let ``run`` return after what was posted before; may be called from any thread."""
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """Free what wakes the thread; ``run`` does so at its end."""
        if self._streams is not None:
            self._streams.close()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def run(self) -> None:
        """Move datagrams until ``stop``, and send what is due then, a close for example.

        What the handler or a posted call raises ends the loop and is raised here.
        """
        try:
            while not self._stopping:
                self._turn()
            self._run_posted()
            self._flush()
        finally:
            self.close()

    def _wake(self) -> None:
        # Full: the thread will wake anyway. Closed: it has ended.
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def _turn(self) -> None:
        """Read, let the layers above act, send; then wait for something to happen."""
        drained = self._read()
        self._hand_over_events()
        if self._posted:
            self._run_posted()
        if self._timer_at <= self._clock():
            self._run_timers()
        self._hand_over_events()
        sent_all = self._send()
        if self._streams is not None:
            sent_all &= self._streams.pump(self._clock())
        if self._unsent:
            self._wait(BLOCKED_RETRY_S)
        else:
            self._wait(self._wait_s() if drained and sent_all else 0.0)

    def _read(self) -> bool:
        """Read until a message is there to be handled; return False when more may have come."""
        receive, clock = self._socket.receive, self._clock
        endpoint = self._endpoint
        for _ in range(READS_MAX):
            received = receive()
            if received is None:
                return True
            endpoint.receive_datagram(*received, clock())
            if endpoint.has_events:
                return False
        return False

    def _run_posted(self) -> None:
        for _ in range(len(self._posted)):
            self._posted.popleft()(self._clock())

    def _run_timers(self) -> None:
        # After what was read: it may hold the very sign of life that a timer would miss.
        now = self._clock()
        for timed in (self._endpoint, self._handler):
            timer = timed.next_timer()
            if timer is not None and timer <= now:
                timed.handle_timer(now)

    def _hand_over_events(self) -> None:
        next_event = self._endpoint.next_event
        while (event := next_event()) is not None:
            self._handler.handle_event(event, self._clock())

    def _send(self) -> bool:
        """Send what is due; return False when the endpoint may have more or the socket is full."""
        for burst_max in BURSTS:
            if not self._unsent:
                self._unsent.extend(self._endpoint.datagrams_to_send(self._clock(), burst_max))
                if not self._unsent:
                    return True
            while self._unsent:
                address = self._unsent[0][1]
                outcome = self._socket.send_next(self._unsent)
                if outcome is _BLOCKED:
                    return False
                if outcome is not _SENT and outcome in _REASONS:
                    self._endpoint.explain(address, _REASONS[outcome])
        return False

    def _flush(self) -> None:
        for _ in range(FLUSHES_MAX):
            sent_all = self._send()
            if self._streams is not None:
                self._streams.pump(self._clock())
            if sent_all:
                return
            if self._unsent:
                self._wait(BLOCKED_RETRY_S)

    def _wait_s(self) -> float:
        timers = [self._endpoint.next_timer(), self._handler.next_timer()]
        soonest = min((timer for timer in timers if timer is not None), default=None)
        if soonest is None:
            self._timer_at = math.inf
            return IDLE_WAIT_S
        self._timer_at = soonest
        return min(max(0.0, soonest - self._clock()), IDLE_WAIT_S)

    def _wait(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            if key.fileobj is self._wake_reader:
                with contextlib.suppress(BlockingIOError):
                    self._wake_reader.recv(4096)
            elif self._streams is not None and isinstance(key.data, int):
                self._streams.ready(key.data, self._clock())
