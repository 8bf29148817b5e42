"""Is multicast heard here? A question to everybody's mDNS, and whoever is heard in reply.

Printers, televisions and routers answer as well as our own devices, so even a device that is alone
with edgellama learns whether its network carries multicast. Nothing that comes is believed: only
the fact that it came, and from where, counts.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

GROUP: Final = "224.0.0.251"
PORT: Final = 5353
NAMES: Final = ("_edgellama._udp.local", "_services._dns-sd._udp.local")
QUESTIONS_S: Final = 0.8  # between two questions: a single one may be lost
READ_BYTES: Final = 9000
HOSTS_MAX: Final = 256


@dataclass(frozen=True)
class MulticastReport:
    """What was heard: other hosts, and whether this host's own questions came back to it.

    ``fault`` says why nothing could be sent or listened for; ``send_errors`` are the system's
    numbers (``errno``) for questions that it refused.
    """

    heard: tuple[str, ...] = ()
    own_came_back: bool = False
    fault: str = ""
    send_errors: tuple[int, ...] = ()


def listen_for_multicast(interfaces: Sequence[str], seconds: float) -> MulticastReport:
    """Ask on these addresses of this host, listen for so long, and return what was heard."""
    if not interfaces:
        return MulticastReport(fault="no network is up")
    try:
        ear = _listening_socket(interfaces)
    except OSError as error:
        return MulticastReport(fault=_why(error), send_errors=(error.errno or 0,))
    with ear:
        return _listen(ear, interfaces, seconds)


def _listen(ear: socket.socket, interfaces: Sequence[str], seconds: float) -> MulticastReport:
    heard: dict[str, None] = {}
    own, errors = False, set()
    ask_at, deadline = time.monotonic(), time.monotonic() + seconds
    while (now := time.monotonic()) < deadline:
        if now >= ask_at:
            ask_at = now + QUESTIONS_S
            errors |= _ask(interfaces)
        ear.settimeout(max(0.01, min(ask_at, deadline) - now))
        try:
            _, (host, _port) = ear.recvfrom(READ_BYTES)
        except TimeoutError:
            continue
        except OSError:
            break
        if _is_own(host, interfaces):
            own = True
        elif len(heard) < HOSTS_MAX:
            heard[host] = None
    return MulticastReport(tuple(heard), own, "", tuple(sorted(errors)))


def _listening_socket(interfaces: Sequence[str]) -> socket.socket:
    ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            with contextlib.suppress(OSError):
                ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ear.bind(("", PORT))
        _join_group(ear, interfaces)
    except OSError:
        ear.close()
        raise
    return ear


def _join_group(ear: socket.socket, interfaces: Sequence[str]) -> None:
    """Join mDNS's group on every interface that takes it; OSError where none does."""
    refused: OSError | None = None
    joined = False
    for address in interfaces:
        membership = socket.inet_aton(GROUP) + socket.inet_aton(address)
        try:
            ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            joined = True
        except OSError as error:
            refused = error
    if refused is not None and not joined:
        raise refused


def _ask(interfaces: Sequence[str]) -> set[int]:
    """Send the questions on each interface; return the numbers of what the system refused."""
    errors = set()
    for address in interfaces:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:
            try:
                mouth.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if hasattr(socket, "SO_REUSEPORT"):
                    mouth.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                # From mDNS's own port: replies to any other go to it alone (RFC 6762 section 6.7).
                mouth.bind((address, PORT))
                interface = socket.inet_aton(address)
                mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
                mouth.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
                mouth.sendto(question(NAMES), (GROUP, PORT))
            except OSError as error:
                errors.add(error.errno or 0)
    return errors


def question(names: Sequence[str]) -> bytes:
    """Return a multicast DNS query for the pointers of these names (RFC 1035 section 4.1)."""
    parts = [struct.pack(">6H", 0, 0, len(names), 0, 0, 0)]
    for name in names:
        parts.extend(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
        parts.append(b"\0" + struct.pack(">2H", 12, 1))  # PTR, Internet
    return b"".join(parts)


def _is_own(host: str, interfaces: Collection[str]) -> bool:
    return host in interfaces or host.startswith("127.")


def _why(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "port 5353 is taken by a program that does not share it"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the system does not permit multicast"
    return f"the system refuses multicast ({error.strerror or error})"
