"""Where the hosts of an end-to-end test live: namespaces on a bridge, or loopback without root.

A ``Bridge`` gives every host a ``wlan0`` in one /24 with working multicast, and beside it an
interface called ``docker0`` that leads nowhere, as developers' machines have one. The bridge lies
in a namespace of its own, so the machine's own network never sees any of it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "elt"  # names are elt<pid>x<number>-<host>: the pid tells leftovers from runs under way
LAN = "wlan0"
GATEWAY = "10.77.0.254"
_numbers = itertools.count()


class Network(Protocol):
    """Gives places to run commands in; ``close`` removes everything that was made."""

    discovers: bool  # multicast reaches the other hosts

    def add_host(self) -> Place: ...
    def lose(self, per_mille: int) -> None: ...
    def close(self) -> None: ...


class Place(NamedTuple):
    """One host's address, and the words that go before a command to run it there."""

    address: str
    port: int | None  # the UDP port to give to ``join``; None leaves it the default
    entry: tuple[str, ...]


def run(command: str, **options: object) -> str:
    """Run one command without a shell; its words on stderr are the error."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise OSError(f"{command}: {done.stderr.strip()}")
    return done.stdout


class Bridge:
    """Hosts in network namespaces on one bridge. Needs root."""

    discovers = True

    def __init__(self, default_route: bool = True) -> None:
        self.name = f"{PREFIX}{os.getpid()}x{next(_numbers)}"
        self.default_route = default_route
        self.hosts: list[str] = []
        atexit.register(self.close)
        self.switch = f"{self.name}-switch"
        run(f"ip netns add {self.switch}")
        # Without a multicast router snooping would age out the groups.
        run(f"ip -n {self.switch} link add bridge0 type bridge mcast_snooping 0")
        run(f"ip -n {self.switch} addr add {GATEWAY}/24 dev bridge0")
        run(f"ip -n {self.switch} link set bridge0 up")

    def add_host(self) -> Place:
        number = len(self.hosts) + 1
        name = f"{self.name}-{number}"
        address = f"10.77.0.{number}"
        run(f"ip netns add {name}")
        self.hosts.append(name)
        run(f"ip -n {name} link add {LAN} type veth peer name port{number} netns {self.switch}")
        run(f"ip -n {self.switch} link set port{number} master bridge0 up")
        run(f"ip -n {name} link set lo up")
        run(f"ip -n {name} addr add {address}/24 brd + dev {LAN}")
        run(f"ip -n {name} link set {LAN} up")
        if self.default_route:
            run(f"ip -n {name} route add default via {GATEWAY}")
        run(f"ip -n {name} link add docker0 type bridge")
        run(f"ip -n {name} addr add 172.17.0.1/16 dev docker0")
        run(f"ip -n {name} link set docker0 up")
        # Not ``ip netns exec``: that hides the memory controller behind a fresh /sys.
        return Place(address, None, ("nsenter", f"--net=/run/netns/{name}"))

    def lose(self, per_mille: int) -> None:
        """From now on every host drops this share of what comes in over the LAN, at random."""
        rule = f'iifname "{LAN}" numgen random mod 1000 < {per_mille} drop'
        chain = f"chain input {{\n type filter hook input priority 0\n {rule}\n }}\n"
        table = f"table inet loss {{\n {chain} }}\n"
        for name in self.hosts:
            run(f"ip netns exec {name} nft -f -", input=table)

    def narrow(self, place: Place, megabits: int) -> None:
        """Let a host send no more than so many megabits a second from now on."""
        limit = f"tbf rate {megabits}mbit burst 4kb latency 50ms"
        run(f"ip netns exec {self._name(place)} tc qdisc add dev {LAN} root {limit}")

    def drop_datagrams(self, place: Place, *, multicast: bool) -> None:
        """Let no UDP in over a host's LAN, mDNS neither unless ``multicast``."""
        but = "udp dport != 5353 udp sport != 5353" if multicast else "meta l4proto udp"
        rule = f'iifname "{LAN}" {but} drop'
        chain = f"chain input {{\n type filter hook input priority 0\n {rule}\n }}\n"
        run(f"ip netns exec {self._name(place)} nft -f -", input=f"table inet deaf {{\n{chain}}}\n")

    def pass_all(self, place: Place) -> None:
        """Undo ``drop_datagrams``."""
        run(f"ip netns exec {self._name(place)} nft delete table inet deaf")

    def cut(self, place: Place) -> None:
        """Let nothing in or out over a host's LAN, as behind a wall; nobody is told."""
        rules = [
            f'chain {hook} {{\n type filter hook {hook} priority 0\n {way} "{LAN}" drop\n }}\n'
            for hook, way in (("input", "iifname"), ("output", "oifname"))
        ]
        table = f"table inet cut {{\n{''.join(rules)}}}\n"
        run(f"ip netns exec {self._name(place)} nft -f -", input=table)

    def mend(self, place: Place) -> None:
        """Undo ``cut``."""
        run(f"ip netns exec {self._name(place)} nft delete table inet cut")

    def _name(self, place: Place) -> str:
        return f"{self.name}-{place.address.rpartition('.')[2]}"

    def close(self) -> None:
        atexit.unregister(self.close)
        remove_namespaces(lambda name: name.startswith(f"{self.name}-"))


class Loopback:
    """Hosts as processes on 127.0.0.1, told apart by their ports. Needs no rights."""

    discovers = False

    def add_host(self) -> Place:
        return Place("127.0.0.1", free_port(), ())

    def lose(self, per_mille: int) -> None:
        raise AssertionError("loopback loses nothing")

    def close(self) -> None:
        """Nothing was made."""


def free_port() -> int:
    """Return a port that is free for UDP and TCP just now."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("127.0.0.1", 0))
            port = int(datagrams.getsockname()[1])
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
                try:
                    stream.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port


@functools.cache
def no_bridge_because() -> str | None:
    """Return why namespaces cannot be used here, or None when they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    remove_leftovers()
    try:
        bridge = Bridge()
    except OSError as error:
        return str(error)
    try:
        bridge.add_host()
        bridge.lose(50)
    except OSError as error:
        return str(error)
    finally:
        bridge.close()
    return None


def best_network(default_route: bool = True) -> Network:
    """Return namespaces where they can be had, else loopback."""
    return Loopback() if no_bridge_because() else Bridge(default_route)


def remove_leftovers() -> None:
    """Remove what a test run that was killed outright has left behind."""

    def is_orphan(name: str) -> bool:
        match = re.match(rf"{PREFIX}(\d+)x\d+-", name)
        return match is not None and not Path(f"/proc/{match[1]}").exists()

    remove_namespaces(is_orphan)
    remove_groups(is_orphan)


def remove_namespaces(chosen: Callable[[str], bool]) -> None:
    for name in [line.split()[0] for line in run("ip netns list").splitlines() if line]:
        if chosen(name):
            for pid in run(f"ip netns pids {name}").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run(f"ip netns del {name}")


# --- memory limits (cgroup version 1) -----------------------------------------------------------


@functools.cache
def memory_controller() -> Path | None:
    """Return the folder of the cgroup version 1 memory controller, mounting it if need be."""
    mounts = Path("/proc/mounts")
    if not mounts.exists() or os.geteuid() != 0:
        return None
    for line in mounts.read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(folder)
    folder = Path(f"/run/{PREFIX}-memory")
    folder.mkdir(exist_ok=True)
    try:
        run(f"mount -t cgroup -o memory none {folder}")
    except OSError:
        folder.rmdir()
        return None
    atexit.register(unmount, folder)
    return folder


def unmount(folder: Path) -> None:
    run(f"umount {folder}")
    folder.rmdir()


class MemoryGroup:
    """A limit on the memory of the processes that are started through ``entry``."""

    def __init__(self, limit_bytes: int) -> None:
        controller = memory_controller()
        assert controller is not None
        self.folder = controller / f"{PREFIX}{os.getpid()}x{next(_numbers)}-memory"
        self.folder.mkdir()
        atexit.register(self.close)
        (self.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
        enter = f'echo $$ > {self.folder}/cgroup.procs; exec "$@"'
        self.entry = ("sh", "-c", enter, "sh")

    @property
    def refusals(self) -> int:
        """How often the limit was met."""
        return int((self.folder / "memory.failcnt").read_text())

    @property
    def kills(self) -> int:
        """How many processes the kernel has ended because of the limit."""
        lines = (self.folder / "memory.oom_control").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def close(self) -> None:
        atexit.unregister(self.close)
        remove_groups(lambda name: name == self.folder.name)


def remove_groups(chosen: Callable[[str], bool]) -> None:
    controller = memory_controller()
    for folder in controller.glob(f"{PREFIX}*-memory") if controller else ():
        if chosen(folder.name):
            _empty(folder)
            folder.rmdir()


def _empty(folder: Path) -> None:
    """End what is left in a group, such as a compiler that outlived its device."""
    for _ in range(100):
        left = (folder / "cgroup.procs").read_text().split()
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
