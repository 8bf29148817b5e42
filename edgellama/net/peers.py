"""Peers by address: those that a person names, and those remembered from the last time."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.errors import MisuseError
from edgellama.net.state_files import read_state, replace_state, set_aside
from edgellama.values import NODE_ID_DIGITS, Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DEFAULT_PORT: Final = 7711  # UDP and TCP; one number for firewalls and ``--peer``
PEERS_MAX: Final = 64
SEEN_MS_MAX: Final = 1 << 53
_HOST_CHARACTERS_MAX: Final = 253  # RFC 1035 section 2.3.4
_NODE_ID = re.compile(rf"[0-9a-f]{{{NODE_ID_DIGITS}}}")


def parse_peer(text: str) -> Address:
    """Return the IPv4 address of ``HOST[:PORT]``, a name looked up; MisuseError on nonsense.

    Looking up a name may take as long as the system's resolver does.
    """
    host, colon, digits = text.strip().partition(":")
    port = DEFAULT_PORT
    if colon:
        port = int(digits) if re.fullmatch("[0-9]{1,5}", digits) else 0
        if not 1 <= port <= 65535:
            raise MisuseError(f"--peer {text[:80]!r}: write HOST or HOST:PORT, port 1 to 65535")
    # A bare number would pass for an address (7711 is 0.0.30.31); it is a port without a host.
    if not re.fullmatch(rf"[\w.-]{{1,{_HOST_CHARACTERS_MAX}}}", host) or host.isdecimal():
        raise MisuseError(f"--peer {text[:80]!r}: write HOST or HOST:PORT (IPv4)")
    try:
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        raise MisuseError(f"--peer {text[:80]!r}: no IPv4 address is known for {host!r}") from None
    address = str(found[0][4][0])
    if address == "0.0.0.0":
        raise MisuseError(f"--peer {text[:80]!r}: {host!r} is no device's address")
    return Address(address, port)


class RememberedPeer(NamedTuple):
    """A device that was in the mesh: where, and when last, in milliseconds since 1970."""

    node: NodeId
    address: Address
    seen_ms: int


class RememberedPeers:
    """The peers of the last times, at most PEERS_MAX, the last seen first.

    A file that is missing or damaged is an empty list; a damaged one is set aside.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peers: dict[NodeId, RememberedPeer] = {}
        text = read_state(path)
        peers = _parse(text) if text is not None else []
        if peers is None:
            set_aside(path)
        for peer in reversed(peers or []):
            self.remember(*peer)

    def all(self) -> list[RememberedPeer]:
        """Return the peers, the last seen first."""
        return sorted(self._peers.values(), key=lambda peer: (-peer.seen_ms, peer.node))

    def remember(self, node: NodeId, address: Address, seen_ms: int) -> None:
        """Note where a peer was seen; whoever had the address before is forgotten."""
        for other in [p.node for p in self._peers.values() if p.address == address]:
            del self._peers[other]
        self._peers[node] = RememberedPeer(node, address, seen_ms)
        if len(self._peers) > PEERS_MAX:
            del self._peers[self.all()[-1].node]

    def save(self) -> None:
        """Write the file anew; EdgellamaError when the system refuses."""
        replace_state(self._path, _format(self.all()))


def _format(peers: Sequence[RememberedPeer]) -> str:
    entries = [
        {"node": peer.node, "host": peer.address.host, "port": peer.address.port}
        | {"seen_ms": peer.seen_ms}
        for peer in peers
    ]
    return json.dumps({"version": 1, "peers": entries}, indent=1) + "\n"


def _parse(text: str) -> list[RememberedPeer] | None:
    """Return the peers in the file's order, None when any of it is not what we write."""
    try:
        value = json.loads(text)
        if value["version"] != 1 or not isinstance(value["peers"], list):
            return None
        peers = [_parse_entry(entry) for entry in value["peers"][:PEERS_MAX]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return peers


def _parse_entry(entry: dict[str, object]) -> RememberedPeer:
    """Return one peer; ValueError or KeyError for what is not one."""
    node, host, port, seen_ms = (entry[key] for key in ("node", "host", "port", "seen_ms"))
    if not isinstance(node, str) or not _NODE_ID.fullmatch(node):
        raise ValueError("node")
    if not isinstance(host, str) or len(host) > len("255.255.255.255"):
        raise ValueError("host")
    socket.inet_pton(socket.AF_INET, host)
    if type(port) is not int or not 1 <= port <= 65535:
        raise ValueError("port")
    if type(seen_ms) is not int or not 0 <= seen_ms <= SEEN_MS_MAX:
        raise ValueError("seen_ms")
    return RememberedPeer(node, Address(host, port), seen_ms)
