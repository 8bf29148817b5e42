"""Candidates by mDNS: who announces a mesh with our tag on the home network, and we to them.

An announcement is public and nobody vouches for it: it yields addresses to try, nothing more.
mDNS may be missing or broken (no zeroconf, port 5353 taken, multicast filtered): the mesh then
starts by named and remembered peers, and ``note`` says why. See ``docs/spec/discovery.md``.
"""

from __future__ import annotations

import errno
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final

from edgellama.net.interfaces import lan_addresses, local_networks
from edgellama.values import NODE_ID_DIGITS, Address, NodeId
from edgellama.wire.mesh_tag import MESH_TAG_DIGITS, mesh_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

SERVICE_TYPE: Final = "_edgellama._udp.local."
TXT_VERSION: Final = "1"
SHORT_ID_DIGITS: Final = 12  # of the node id: the announcement's name
INCARNATION_DIGITS_MAX: Final = 19

TICK_S: Final = 5  # how late a query or an announcement may be
ANNOUNCE_INTERVAL_S: Final = 25  # under a quarter of the TTL: see RFC 6762 section 5.4 on QU
TTL_S: Final = 120  # a killed device is forgotten after this, not after mDNS's 75 minutes
RESOLVE_TIMEOUT_MS: Final = 3000
CLOSE_TIMEOUT_S: Final = 3
ADDRESSES_MAX: Final = 4  # of one announcement that are tried
FOREIGN_MESHES_MAX: Final = 64
PORT_MAX: Final = 65535
_NOTE_CHARACTERS_MAX: Final = 160


@dataclass(frozen=True)
class Candidate:
    """A device that says that it belongs to this mesh, and where to try it."""

    node: NodeId
    address: Address
    incarnation: int


def query_delays_s() -> Iterator[float]:
    """Give the pauses between queries: they go out at 0, 15 and 60 s, then every 5 minutes.

    Android filters multicast unless an app asks it not to, so announcements are not enough; and
    only the first query of each round asks for unicast replies.
    """
    return chain((15.0, 45.0), repeat(300.0))


@dataclass(frozen=True)
class Announcement:
    """The text record of an announcement, checked."""

    node: NodeId
    incarnation: int
    mesh: str
    join_port: int = 0  # where a device with a join code may ask by TCP; 0 while none may

    def properties(self) -> dict[str, str]:
        """Return the record's keys and values: under 90 bytes in all."""
        fields = {"v": TXT_VERSION, "id": self.node, "mesh": self.mesh}
        fields["ep"] = str(self.incarnation)
        return {**fields, "join": str(self.join_port)} if self.join_port else fields

    @classmethod
    def parse(cls, properties: Mapping[bytes, bytes | None]) -> Announcement | None:
        """Return what a stranger's record says, None when it is not one of ours."""
        fields = []
        for key, pattern in (
            (b"v", rf"{TXT_VERSION}"),
            (b"id", rf"[0-9a-f]{{{NODE_ID_DIGITS}}}"),
            (b"mesh", rf"[0-9a-f]{{{MESH_TAG_DIGITS}}}"),
            (b"ep", rf"[0-9]{{1,{INCARNATION_DIGITS_MAX}}}"),
        ):
            value = properties.get(key)
            if value is None or not re.fullmatch(pattern.encode(), value):
                return None
            fields.append(value.decode("ascii"))
        _, node, mesh, incarnation = fields
        join = properties.get(b"join") or b""
        join_port = int(join) if re.fullmatch(b"[0-9]{1,5}", join) else 0
        return cls(node, int(incarnation), mesh, join_port if join_port <= PORT_MAX else 0)


@dataclass(frozen=True)
class Stranger:
    """A device of a mesh with another key, and where to ask it with a join code, if anywhere."""

    node: NodeId
    doors: tuple[Address, ...]


class Discovery:
    """Announces this device and finds others, in a thread of its own that outlives failures.

    ``found`` is called from another thread, perhaps again for a device already known; it must
    not raise or block. ``interfaces`` are addresses of this host, by default those on the home
    network. ``join_port`` tells where a device with a join code may ask at the moment, 0 for
    nowhere. ``double`` is called, as ``found`` is, for another device that announces the identity
    announced here. Nothing here blocks the caller but ``close``, for at most CLOSE_TIMEOUT_S.
    """

    def __init__(
        self,
        mesh_key: bytes,
        found: Callable[[Candidate], None],
        interfaces: list[str] | None = None,
        join_port: Callable[[], int] = lambda: 0,
        double: Callable[[Candidate], None] = lambda _: None,
    ) -> None:
        self.note: str | None = None  # why mDNS does not work, for a person
        self._tag = mesh_tag(mesh_key)
        self._found = found
        self._interfaces = interfaces
        self._join_port = join_port
        self._double = double
        self._strangers: dict[NodeId, tuple[str, Stranger]] = {}  # with the tag of its mesh
        self._browsing = False
        self._own: tuple[NodeId, int, Address] | None = None
        self._responder: _Responder | None = None
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="edgellama-mdns", daemon=True)
        self._thread.start()

    @property
    def foreign_meshes(self) -> int:
        """How many meshes with another key have been seen here."""
        return len({tag for tag, _ in list(self._strangers.values())})

    def strangers(self) -> list[Stranger]:
        """Return the devices of such meshes."""
        return [stranger for _, stranger in list(self._strangers.values())]

    def set_mesh_key(self, mesh_key: bytes) -> None:
        """Announce and look for devices with another key from now on."""
        self._tag = mesh_tag(mesh_key)
        self._wake.set()

    def refresh(self) -> None:
        """Announce at once what has changed."""
        self._wake.set()

    def browse(self) -> None:
        """Look for devices of this mesh from now on."""
        self._browsing = True
        self._wake.set()

    def announce(self, node: NodeId, incarnation: int, address: Address) -> None:
        """Tell others where this device is; again when that has changed.

        Host 0.0.0.0 stands for every address on the interfaces of discovery.
        """
        self._own = (node, incarnation, address)
        self._wake.set()

    def close(self) -> None:
        """Say goodbye and end the thread; a second call does nothing."""
        self._closing = True
        self._wake.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        delays_s = query_delays_s()
        next_query_s = 0.0
        while not self._closing:
            is_wanted = self._browsing or self._own is not None
            query_is_due = is_wanted and time.monotonic() >= next_query_s
            if query_is_due:
                next_query_s = time.monotonic() + next(delays_s)
            try:
                self._step(query_is_due)
            except Exception as error:
                # A library's failure must not end the node: the next attempt is with the query.
                self.note = explain(error)
                self._drop_responder()
            self._wake.wait(TICK_S if is_wanted else None)
            self._wake.clear()
        self._drop_responder()

    def _step(self, query_is_due: bool) -> None:
        """Do what has become due: open, query, announce."""
        if query_is_due or self._responder is not None:
            self._open()
        if self._responder is None:
            return
        if self._browsing and (query_is_due or not self._responder.is_browsing):
            self._responder.query()
        if self._own is not None:
            node, incarnation, address = self._own
            announcement = Announcement(node, incarnation, self._tag, self._join_port())
            self._responder.publish(announcement, address)

    def _open(self) -> None:
        """Start zeroconf, again when this host's addresses have changed."""
        interfaces = self._interfaces if self._interfaces is not None else lan_addresses()
        if self._responder is not None and set(self._responder.interfaces) != set(interfaces):
            self._drop_responder()
        if not interfaces:
            self.note = "no network with an IPv4 address is up"
        elif self._responder is None:
            self._responder = _Responder(interfaces, self._resolve)
            self.note = None

    def _drop_responder(self) -> None:
        responder, self._responder = self._responder, None
        if responder is not None:
            with suppress(Exception):  # it has failed already, or we are leaving
                responder.close()

    # --- the library's browser thread -------------------------------------------------------

    def _resolve(self, info: ServiceInfo, interfaces: Sequence[str]) -> None:
        announcement = Announcement.parse(info.properties)
        if announcement is None or not info.port:
            return
        if announcement.mesh != self._tag:
            self._note_stranger(announcement, reachable(info.parsed_addresses(), interfaces))
            return
        if self._closing:
            return
        if self._own is not None and announcement.node == self._own[0]:
            self._note_double(announcement, info, interfaces)
            return
        for host in reachable(info.parsed_addresses(), interfaces):
            address = Address(host, info.port)
            self._found(Candidate(announcement.node, address, announcement.incarnation))

    def _note_double(
        self, announcement: Announcement, info: ServiceInfo, interfaces: Sequence[str]
    ) -> None:
        """Tell of this identity in another place; at this host's own addresses it is its past."""
        assert self._own is not None
        if announcement.incarnation == self._own[1] or not info.port:
            return
        for host in reachable(info.parsed_addresses(), interfaces):
            if host not in interfaces:
                address = Address(host, info.port)
                self._double(Candidate(announcement.node, address, announcement.incarnation))

    def _note_stranger(self, announcement: Announcement, hosts: Sequence[str]) -> None:
        if self._own is not None and announcement.node == self._own[0]:
            return  # this device's own, from before its mesh had another key
        if announcement.node in self._strangers or len(self._strangers) < FOREIGN_MESHES_MAX:
            port = announcement.join_port
            doors = tuple(Address(host, port) for host in hosts) if port else ()
            stranger = Stranger(announcement.node, doors)
            self._strangers[announcement.node] = (announcement.mesh, stranger)


def reachable(hosts: Iterable[str], interfaces: Sequence[str]) -> list[str]:
    """Return the IPv4 addresses among ``hosts`` that ``interfaces`` reach without a router.

    At most ADDRESSES_MAX. Whatever else is announced (mobile data, a tunnel, an address of
    somebody who shall be bombarded) is not ours to try.
    """
    networks = local_networks(interfaces)
    chosen = []
    for host in hosts:
        with suppress(ValueError):  # IPv6
            address = IPv4Address(host)
            if any(address in network for network in networks):
                chosen.append(str(address))
    return chosen[:ADDRESSES_MAX]


def explain(error: Exception) -> str:
    """Return in one line for a person why mDNS does not work."""
    if isinstance(error, ImportError):
        return "zeroconf is not installed"
    if isinstance(error, OSError):
        if error.errno == errno.EADDRINUSE:
            return "port 5353 is taken by a program that does not share it"
        if error.errno in {errno.EPERM, errno.EACCES}:
            return "the system does not permit multicast"
        if error.errno in {errno.ENODEV, errno.ENETUNREACH, errno.EADDRNOTAVAIL}:
            return "the network does not take multicast"
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:_NOTE_CHARACTERS_MAX]


class _Responder:
    """zeroconf on some interfaces: every use of the library is here.

    ``resolved`` is called from the library's thread with each announcement that is complete.
    The interfaces are given as IPv4 strings: only then zeroconf does not enumerate them, which
    Android forbids.
    """

    def __init__(
        self, interfaces: Sequence[str], resolved: Callable[[ServiceInfo, Sequence[str]], None]
    ) -> None:
        from zeroconf import IPVersion, Zeroconf

        self.interfaces = list(interfaces)
        self._resolved = resolved
        self._browsers: list[ServiceBrowser] = []
        self._published: tuple[Announcement, Address] | None = None
        self._announced_s = 0.0
        self._zeroconfs = [Zeroconf(interfaces=self.interfaces, ip_version=IPVersion.V4Only)]
        # A second querier with a port of its own: replies to it are unicast, to it alone. Those
        # to 5353 may be multicast, which Android drops, or go to another program's socket.
        with suppress(OSError):
            self._zeroconfs.append(
                Zeroconf(interfaces=self.interfaces, unicast=True, ip_version=IPVersion.V4Only)
            )

    @property
    def is_browsing(self) -> bool:
        """Whether a query has gone out."""
        return bool(self._browsers)

    def query(self) -> None:
        """Ask anew who is there: for unicast replies (QU) once, then for multicast."""
        from zeroconf import ServiceBrowser

        self._cancel_browsers()
        for zeroconf in self._zeroconfs:
            self._browsers.append(ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[self._changed]))

    def publish(self, announcement: Announcement, address: Address) -> None:
        """Announce, or announce again when it is time or something has changed."""
        is_new = (announcement, address) != self._published
        if not is_new and time.monotonic() - self._announced_s < ANNOUNCE_INTERVAL_S:
            return
        info = self._service_info(announcement, address)
        zeroconf = self._zeroconfs[0]
        if self._published is None or self._published[0].node != announcement.node:
            # The name is part of a random id: probing for it (RFC 6762 section 8.1) would only
            # delay the announcement by a second, and let any stranger veto it.
            zeroconf.register_service(info, cooperating_responders=True)
        else:
            zeroconf.update_service(info)
        self._published = (announcement, address)
        self._announced_s = time.monotonic()

    def _service_info(self, announcement: Announcement, address: Address) -> ServiceInfo:
        from zeroconf import ServiceInfo

        everywhere = address.host == "0.0.0.0"
        hosts = self.interfaces if everywhere else [address.host]
        name = announcement.node[:SHORT_ID_DIGITS]
        return ServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            addresses=[socket.inet_aton(host) for host in hosts],
            port=address.port,
            server=f"{name}.local.",
            properties=announcement.properties(),
            host_ttl=TTL_S,
            other_ttl=TTL_S,
        )

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        from zeroconf import ServiceInfo, ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            return
        # Also when its text has changed: an invitation may have been opened.
        info = None
        with suppress(Exception):  # a malformed announcement, or we are closing
            info = ServiceInfo(service_type, name)
            if not info.request(zeroconf, RESOLVE_TIMEOUT_MS):
                info = None
        if info is not None:
            self._resolved(info, self.interfaces)

    def _cancel_browsers(self) -> None:
        while self._browsers:
            self._browsers.pop().cancel()

    def close(self) -> None:
        """Say goodbye and close the sockets."""
        try:
            self._cancel_browsers()
        finally:
            for zeroconf in self._zeroconfs:
                zeroconf.close()
