"""Builds what carries a node's links: both transports, and the thread's loop that moves them."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple

from edgellama.link.endpoint import Endpoint
from edgellama.link.links import Links
from edgellama.link.streams import Streams
from edgellama.net.tcp import StreamSockets
from edgellama.net.udp import UdpDriver

if TYPE_CHECKING:
    from edgellama.link.identity import Identity
    from edgellama.net.udp import Handler, UdpSocket


class Linking(NamedTuple):
    """The links as a value, the TCP sockets that they may use, and what runs both."""

    links: Links
    sockets: StreamSockets
    driver: UdpDriver


def linking(
    identity: Identity, mesh_key: bytes, udp_socket: UdpSocket, handler: Handler, transport: str
) -> Linking:
    """Return the links of a node; nothing moves before ``driver.run``."""
    entropy = secrets.token_bytes
    streams = Streams(identity, mesh_key, entropy)
    endpoint = Endpoint(identity, mesh_key, udp_socket.window_packets, entropy)
    links, sockets = Links(endpoint, streams, transport), StreamSockets(streams)
    driver = UdpDriver(links, udp_socket, handler, streams=sockets)
    return Linking(links, sockets, driver)
