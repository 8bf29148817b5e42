"""The two ends that ``bench_link.py`` runs in their namespaces: one asks, the other answers.

Both kinds do the same: a request of some bytes and a reply of as many, one after the other; or one
long message and a word when all of it has come. ``ours`` is the production Endpoint and UdpDriver,
encryption on; ``tcp`` is the kernel's, with TCP_NODELAY, in the clear.

    python tools/bench_link_ends.py answer|ask ours|tcp HOST '{"bytes": 4096, "rounds": 300}'
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
import time
from typing import Any

from edgellama.link.endpoint import (
    Connected,
    Disconnected,
    Endpoint,
    Event,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.net.udp import UdpDriver, UdpSocket
from edgellama.values import Address

PORT = 47_711
DONE = b"ok"
SMALL_BYTES_MAX = 65_536
NODES = {"ask": "a" * 32, "answer": "b" * 32}
SAMPLE_PAUSE_S = 0.025  # between the requests beside a transfer: 40 tokens a second
LIMIT_S = 20.0
"""A measurement that takes longer is cut there: kernel TCP at 20 % loss."""


def cpu_s() -> float:
    """Return the processor time of this process so far, all threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class OurEnd:
    """One end over the production link: a Handler on the I/O thread."""

    def __init__(self, role: str, host: str, task: dict[str, Any]) -> None:
        self._task = task
        self._asks = role == "ask"
        self._socket = UdpSocket("" if self._asks else host, 0 if self._asks else PORT)
        self._peer = NODES["answer" if self._asks else "ask"]
        identity = Identity(NODES[role], time.time_ns())
        self.endpoint = Endpoint(
            *(identity, b"bench", self._socket.window_packets, os.urandom),
        )
        self.driver = UdpDriver(self.endpoint, self._socket, self)
        if self._asks:
            self.driver.post(lambda now: self.endpoint.dial(Address(host, PORT), now))
        self.samples: list[float] = []
        self._request = os.urandom(task["bytes"])
        self._beside = os.urandom(task.get("beside", 0))
        self._began = self._sent = self._cpu = self._cut_at = 0.0
        self._pause_until: float | None = None
        self.result: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Run until the last reply, or until the other end has gone."""
        self.driver.run()
        self._socket.close()
        return self.result

    def handle_event(self, event: Event, now: float) -> None:
        """Take the next request or reply."""
        if isinstance(event, MessageReceived):
            self._take(event.message, now)
        elif isinstance(event, Connected):
            self._cpu, self._began = cpu_s(), now
            self._cut_at = now + LIMIT_S
            if self._asks:
                if self._beside:
                    self._send(self._beside, Priority.BULK, now)
                self._ask(now)
        elif isinstance(event, Disconnected) or not self._asks:
            self._end()
        else:
            raise SystemExit(f"the other end: {event}")

    def next_timer(self) -> float | None:
        """Return when the pause before the next request ends."""
        return self._pause_until

    def handle_timer(self, now: float) -> None:
        """Send the request that was paused."""
        self._pause_until = None
        self._ask(now)

    def _take(self, message: bytes, now: float) -> None:
        if not self._asks:
            small = len(message) <= SMALL_BYTES_MAX
            priority = Priority.DECODE if small else Priority.CONTROL
            self._send(message if small else DONE, priority, now)
            return
        if message == DONE and self._beside:
            self._send(self._beside, Priority.BULK, now)  # a transfer without end
            return
        self.samples.append(time.perf_counter() - self._sent)
        if len(self.samples) >= self._task["rounds"] or now > self._cut_at:
            self._end()
            self.endpoint.disconnect(self._peer, now)
        elif self._task.get("paused"):
            self._pause_until = now + SAMPLE_PAUSE_S
        else:
            self._ask(now)

    def _ask(self, now: float) -> None:
        self._sent = time.perf_counter()
        large = len(self._request) > SMALL_BYTES_MAX
        self._send(self._request, Priority.BULK if large else Priority.DECODE, now)

    def _send(self, message: bytes, priority: Priority, now: float) -> None:
        self.endpoint.send(self._peer, message, priority, now)

    def _end(self) -> None:
        counters = self.endpoint.total_counters()
        self.result = {
            "samples": self.samples,
            "cpu_s": cpu_s() - self._cpu,
            "seconds": time.monotonic() - self._began,
            "packets": counters.packets_sent + counters.packets_received,
            "retransmitted": counters.packets_retransmitted,
            "bytes_sent": counters.bytes_sent,
        }
        self.driver.stop()


def _receive_exactly(connection: socket.socket, buffer: memoryview) -> None:
    got = 0
    while got < len(buffer):
        count = connection.recv_into(buffer[got:])
        if not count:
            raise ConnectionError
        got += count


def _serve_tcp(host: str, task: dict[str, Any]) -> dict[str, Any]:
    size = task["bytes"]
    buffer = memoryview(bytearray(size))
    with socket.create_server((host, PORT)) as listener:
        connection, _ = listener.accept()
    before = cpu_s()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                _receive_exactly(connection, buffer)
                connection.sendall(buffer if size <= SMALL_BYTES_MAX else DONE)
        except OSError:  # the other end has gone
            return {"cpu_s": cpu_s() - before}


def _ask_tcp(host: str, task: dict[str, Any]) -> dict[str, Any]:
    size = task["bytes"]
    request = os.urandom(size)
    reply = memoryview(bytearray(size if size <= SMALL_BYTES_MAX else len(DONE)))
    samples: list[float] = []
    connection = socket.create_connection((host, PORT))
    congestion = task.get("congestion", "cubic").encode()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(LIMIT_S)
        before, began = cpu_s(), time.monotonic()
        while len(samples) < task["rounds"] and time.monotonic() < began + LIMIT_S:
            sent = time.perf_counter()
            try:
                connection.sendall(request)
                _receive_exactly(connection, reply)
            except TimeoutError:
                samples.append(time.perf_counter() - sent)
                break
            samples.append(time.perf_counter() - sent)
        seconds = time.monotonic() - began
        return {"samples": samples, "cpu_s": cpu_s() - before, "seconds": seconds}


def main() -> None:
    """Play one role and print what was measured as one line of JSON."""
    role, kind, host, text = sys.argv[1:]
    task = json.loads(text)
    cores = sorted(os.sched_getaffinity(0))
    # Two devices share no core, and nothing else runs on them; here processes that talk are often
    # put on one core, and wait for others.
    os.sched_setaffinity(0, {cores[0 if role == "ask" else -1]})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    if kind == "ours":
        result = OurEnd(role, host, task).run()
    else:
        result = _serve_tcp(host, task) if role == "answer" else _ask_tcp(host, task)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
