"""An asker that holds nothing: finds a member, asks it, and hears the answer."""

from __future__ import annotations

import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from edgellama.errors import NoMeshError, WireError
from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Event,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.link.links import AUTO
from edgellama.mesh.gateway import DEVICES_WAIT_S, GATEWAY_SILENT_S
from edgellama.net.discovery import Candidate, Discovery
from edgellama.net.paths import new_node_id
from edgellama.net.udp import UdpSocket
from edgellama.node.linking import linking
from edgellama.wire.messages import Message, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgellama.link.links import Links
    from edgellama.values import Address, NodeId

CONNECT_WAIT_S: Final = 1.5  # mDNS answers within 0.2 s, at 20 % loss within 0.7 s
STOP_POLL_S: Final = 0.1
CLOSE_WAIT_S: Final = 2.0
RECONNECT_WAIT_S: Final = DEVICES_WAIT_S  # as long as an answer that has begun waits for devices
NAMED_CONNECT_WAIT_S: Final = 4.0  # for addresses that a person gave: three handshakes and more


class GatewayLostError(NoMeshError):
    """The member that was asked is gone; another one may know more."""


class _Inbox:
    """Carries link events from the I/O thread to the asker's, and watches whom it waits for.

    While ``awaited`` names a member that answers, it says something every quarter of a second.
    """

    def __init__(self) -> None:
        self.events: SimpleQueue[Event | BaseException] = SimpleQueue()
        self.awaited: NodeId | None = None
        self.links: Links | None = None  # whose events come here

    def handle_event(self, event: Event, now: float) -> None:
        self.events.put(event)

    def next_timer(self) -> float | None:
        peer = self.links.peers().get(self.awaited) if self.links and self.awaited else None
        return None if peer is None else peer.silent_since + GATEWAY_SILENT_S

    def handle_timer(self, now: float) -> None:
        """Give up the member that is awaited and silent."""
        assert self.awaited is not None
        assert self.links is not None
        self.links.give_up(self.awaited, now)
        self.events.put(Disconnected(self.awaited, "it is silent"))


class Guest:
    """One conversation with one member of a mesh."""

    def __init__(self, mesh_key: bytes, listen: str = "0.0.0.0", transport: str = AUTO) -> None:
        self._mesh_key = mesh_key
        self._socket = UdpSocket(listen, 0)
        identity = Identity(new_node_id(), time.time_ns() // 1_000_000, guest=True)
        self._inbox = _Inbox()
        self._links, _, self._driver = linking(
            identity, mesh_key, self._socket, self._inbox, transport
        )
        self._inbox.links = self._links
        self._thread = threading.Thread(target=self._run, name="edgellama-link", daemon=True)
        self._members: list[NodeId] = []  # that there is a link to, the first found first
        self._gateway: NodeId | None = None

    def start(self) -> None:
        """Begin to send and receive."""
        self._thread.start()

    def close(self) -> None:
        """Say goodbye and end the thread; a second call does nothing."""
        self._driver.stop()
        self._thread.join(CLOSE_WAIT_S)
        self._socket.close()

    def connect(
        self, named: Sequence[Address], remembered: Sequence[Address], *, mdns: bool
    ) -> None:
        """Find a member: at the named addresses, the remembered ones and by mDNS at once.

        Raises NoMeshError when none answers in time.
        """
        for address in [*named, *remembered]:
            self._dial(address)
        discovery: Discovery | None = None
        if mdns and not named:
            discovery = Discovery(self._mesh_key, self._found)
            discovery.browse()
        try:
            wait_s = NAMED_CONNECT_WAIT_S if named else CONNECT_WAIT_S
            self._await_connection(time.monotonic() + wait_s, len(named) if not mdns else 0)
        except NoMeshError as error:
            if discovery is None or not discovery.foreign_meshes:
                raise
            hint = "there is a mesh with another key: edgellama join, --code or --key lets you in"
            raise NoMeshError(f"{error}; {hint}") from None
        finally:
            if discovery is not None:
                discovery.close()

    def reconnect(self, others: Sequence[Address], stop: threading.Event | None = None) -> bool:
        """Find another member at these addresses, or any by mDNS, when the one asked is gone.

        Returns False when ``stop`` is set before. Raises GatewayLostError when none answers within
        RECONNECT_WAIT_S.
        """
        deadline_s = time.monotonic() + RECONNECT_WAIT_S
        while time.monotonic() < deadline_s:
            if stop is not None and stop.is_set():
                return False
            try:
                self.connect([], others, mdns=True)
            except NoMeshError:
                continue
            return True
        raise GatewayLostError("the device that was asked is gone, and no other one answers")

    @property
    def is_connected(self) -> bool:
        """Whether the member that is asked has not gone, as far as ``messages`` have told."""
        return self._gateway in self._members

    def send(self, message: Message) -> None:
        """Send a message to the member that this guest is connected to."""
        gateway = self._gateway
        assert gateway is not None
        data = encode(message)

        def send(now: float) -> None:
            if gateway in self._links.peers():
                self._links.send(gateway, data, Priority.CONTROL, now)

        self._driver.post(send)

    def messages(
        self, timeout_s: float | None = None, stop: threading.Event | None = None
    ) -> Iterator[Message]:
        """Yield what the member says, until ``stop`` is set.

        Raises GatewayLostError when it is gone, NoMeshError when it is silent for ``timeout_s``.
        """
        self._inbox.awaited = self._gateway
        try:
            while stop is None or not stop.is_set():
                try:
                    event = self._next_event(timeout_s if stop is None else STOP_POLL_S)
                except Empty:
                    if stop is not None:
                        continue
                    text = f"the mesh gave no answer within {timeout_s:.0f} s"
                    raise NoMeshError(text) from None
                if isinstance(event, Disconnected) and event.node == self._gateway:
                    raise GatewayLostError("the device that was asked is gone; ask again")
                if isinstance(event, MessageReceived) and event.node == self._gateway:
                    yield _decoded(event.message)
        finally:
            self._inbox.awaited = None

    def _run(self) -> None:
        try:
            self._driver.run()
        except BaseException as error:
            self._inbox.events.put(error)

    def _found(self, candidate: Candidate) -> None:
        self._dial(candidate.address)

    def _dial(self, address: Address) -> None:
        self._driver.post(lambda now: self._links.dial(address, now))

    def _await_connection(self, deadline: float, dials: int) -> None:
        """Wait for the first member; ``dials`` that all fail end the wait early, if not 0."""
        failed = 0
        while not self._members and (left_s := deadline - time.monotonic()) > 0:
            try:
                event = self._next_event(left_s)
            except Empty:
                break
            if isinstance(event, DialFailed):
                failed += 1
                if failed == dials:
                    break
        if not self._members:
            raise NoMeshError("no device of a mesh answered")
        self._gateway = self._members[0]

    def _next_event(self, timeout_s: float | None) -> Event:
        # A wait without end could not be interrupted by Ctrl-C on every system.
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            wait_s = 0.5 if deadline is None else min(0.5, max(0.0, deadline - time.monotonic()))
            try:
                event = self._inbox.events.get(timeout=wait_s)
            except Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                continue
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Connected) and not event.identity.guest:
                if event.identity.node not in self._members:
                    self._members.append(event.identity.node)
            elif isinstance(event, Disconnected) and event.node in self._members:
                self._members.remove(event.node)
            return event


def _decoded(data: bytes) -> Message:
    try:
        return decode(data)
    except WireError as error:
        raise NoMeshError(
            f"the mesh speaks another release's language ({error}); update the devices"
        ) from error
