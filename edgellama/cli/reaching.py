"""How a command reaches a running mesh: whom it asks first, with which key, from which folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from edgellama.cli.options import peer_addresses

if TYPE_CHECKING:
    from edgellama.net.paths import StatePaths
    from edgellama.node.admission import KeyChoice
    from edgellama.values import Address


class Way(NamedTuple):
    """What every way to ask a mesh begins with."""

    addresses: tuple[Address, ...]
    key: bytes
    paths: StatePaths


def way_to_mesh(peers: tuple[str, ...], choice: KeyChoice) -> Way:
    """Return the way that a person named, and joins with the code where one is given."""
    from edgellama.net.paths import StatePaths
    from edgellama.node.admission import access_to_ask

    paths, named = StatePaths.locate(), peer_addresses(peers)
    access = access_to_ask(choice, paths, named)
    return Way((*access.friends, *named), access.key, paths)
