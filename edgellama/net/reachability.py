"""Does a datagram get to a host, and is the router there? Asked without any right of root.

A connected UDP socket is told by the system when the other side says that nothing listens at the
port: then the host is up and reachable, whatever runs there. What the neighbour table says of a
silent host tells one that is off, or hidden by the access point, from one whose firewall is silent.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellama.values import Address

PROBES: Final = 3
PROBE_S: Final = 0.4
ROUTER_PORTS: Final = (53, 80, 443)
ROUTER_WAIT_S: Final = 0.7
_ARP_COMPLETE: Final = 0x2  # ATF_COM of Linux


@dataclass(frozen=True)
class Probe:
    """What came of datagrams to an address that need no answer.

    ``is_refused``: its host says that nothing listens there. ``send_errno``: the system's number
    where it would not send. ``is_neighbour``: whether the host answers on the cable or radio
    itself; None where the system does not tell.
    """

    is_refused: bool = False
    send_errno: int = 0
    is_neighbour: bool | None = None


def probe(addresses: Iterable[Address]) -> dict[Address, Probe]:
    """Send a few bytes that mean nothing to each address and return what came of it."""
    feelers = [_Feeler(address) for address in addresses]
    try:
        for _ in range(PROBES):
            for feeler in feelers:
                feeler.send()
            time.sleep(PROBE_S)
            for feeler in feelers:
                feeler.hear()
    finally:
        for feeler in feelers:
            feeler.close()
    neighbours = parse_neighbours(_text("/proc/net/arp"))
    return {
        each.address: Probe(each.is_refused, each.errno, neighbours.get(each.address.host))
        for each in feelers
    }


class _Feeler:
    """A connected socket towards one address."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.is_refused = False
        self.errno = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.connect(address)
        except OSError as error:
            self.errno = error.errno or errno.EIO

    def send(self) -> None:
        """Send a byte, which any member drops."""
        try:
            self._socket.send(b"\0")
        except ConnectionRefusedError:
            self.is_refused = True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS):
                self.errno = self.errno or error.errno or errno.EIO

    def hear(self) -> None:
        """Learn whether the other side has said that nothing listens there."""
        try:
            self._socket.recv(1)
        except ConnectionRefusedError:
            self.is_refused = True
        except OSError:
            return

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def parse_neighbours(text: str) -> dict[str, bool]:
    """Return for each host of Linux's ``/proc/net/arp`` whether it has answered."""
    neighbours = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 4:
            with suppress(ValueError):
                is_complete = bool(int(fields[2], 16) & _ARP_COMPLETE)
                neighbours[fields[0]] = is_complete and fields[3] != "00:00:00:00:00:00"
    return neighbours


def parse_router(text: str) -> str | None:
    """Return the default router of Linux's ``/proc/net/route``, if there is one."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 3 and fields[1] == "00000000":
            with suppress(ValueError, struct.error):
                router = socket.inet_ntoa(struct.pack("<I", int(fields[2], 16)))
                if router != "0.0.0.0":
                    return router
    return None


def router() -> str | None:
    """Return the default router's address, None where there is none or the system hides it."""
    return parse_router(_text("/proc/net/route"))


def router_answers(host: str) -> bool:
    """Say whether the router answers: on a port that routers have, or on the cable itself."""
    for port in ROUTER_PORTS:
        try:
            with socket.create_connection((host, port), timeout=ROUTER_WAIT_S):
                return True
        except ConnectionRefusedError:
            return True
        except OSError:
            continue
    return parse_neighbours(_text("/proc/net/arp")).get(host, False)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
