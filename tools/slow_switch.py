"""A switch between network namespaces that delays and loses packets, for kernels without netem.

``SlowSwitch`` makes the namespaces, each with one interface, and starts this file as a process of
its own: it takes every packet off a tun device, throws dice, and puts it into another when its time
has come. Linux, root. It adds some 0.1 ms of its own, and carries tens of MB/s.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = "slow0"
PACKET_BYTES_MAX = 65_535
READS_MAX = 64  # of one device before the others have their turn
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000


def run(command: str, text: str | None = None) -> None:
    """Run one command without a shell."""
    subprocess.run(command.split(), check=True, input=text, text=True)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Be in a network namespace for a while."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    other = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _setns(other)
        yield
    finally:
        _setns(own)
        os.close(own)
        os.close(other)


def _setns(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class SlowSwitch:
    """Namespaces with the addresses 10.99.0.1, 10.99.0.2 and so on; removed at the end."""

    def __init__(self, hosts: int, seed: int = 1) -> None:
        self.names = [f"elslow{os.getpid()}x{number}" for number in range(hosts)]
        self.addresses = [f"10.99.0.{number + 1}" for number in range(hosts)]
        for name in self.names:
            run(f"ip netns add {name}")
        pairs = [f"{name}:{each}" for name, each in zip(self.names, self.addresses, strict=True)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(seed), *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.__exit__()
            raise SystemExit("the switch did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for name in self.names:
            run(f"ip netns del {name}")

    def set(self, delay_ms: float, loss_percent: float) -> None:
        """Delay and lose from now on, one way, between any two hosts."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{delay_ms} {loss_percent}\n")
        self._process.stdin.flush()


def _open_tun(namespace: str, address: str) -> int:
    with inside(namespace):
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(device, _TUNSETIFF, request)
        run(f"ip addr add {address}/24 dev {DEVICE}")
        run(f"ip link set {DEVICE} mtu 1500 txqueuelen 5000 up")
        run("ip link set lo up")
    return device


class _Switch:
    """The devices, the packets on their way, and the dice."""

    def __init__(self, seed: int, places: list[tuple[str, str]]) -> None:
        self._dice = random.Random(seed)
        self._devices: dict[bytes, int] = {}  # by the address that a packet names
        for namespace, address in places:
            key = bytes(int(part) for part in address.split("."))
            self._devices[key] = _open_tun(namespace, address)
        self._on_the_way: list[tuple[float, int, int, bytes]] = []  # when, tie, where to, what
        self._taken = 0
        self._delay_s = self._loss = 0.0

    def serve(self) -> None:
        """Move packets until the other side of stdin is gone."""
        sources = [0, *self._devices.values()]
        while True:
            waits = self._on_the_way[0][0] - time.monotonic() if self._on_the_way else None
            readable, _, _ = select.select(sources, [], [], waits and max(0.0, waits))
            for source in readable:
                if source == 0:
                    words = sys.stdin.readline().split()
                    if not words:
                        return
                    self._delay_s, self._loss = float(words[0]) / 1e3, float(words[1]) / 100
                else:
                    self._take(source)
            self._deliver()

    def _take(self, source: int) -> None:
        for _ in range(READS_MAX):
            try:
                packet = os.read(source, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            to = self._devices.get(packet[16:20])
            if to is not None and packet[0] >> 4 == 4 and self._dice.random() >= self._loss:
                self._taken += 1
                due = time.monotonic() + self._delay_s
                heapq.heappush(self._on_the_way, (due, self._taken, to, packet))

    def _deliver(self) -> None:
        while self._on_the_way and self._on_the_way[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(self._on_the_way)
            with contextlib.suppress(BlockingIOError):  # its queue is full: lost, as anywhere
                os.write(to, packet)


def main() -> None:
    """Be the switch of the namespaces that the command line names."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    places = [
        (name, address) for name, _, address in (each.partition(":") for each in sys.argv[2:])
    ]
    switch = _Switch(int(sys.argv[1]), places)
    print("ready", flush=True)
    switch.serve()


if __name__ == "__main__":
    main()
