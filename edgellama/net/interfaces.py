"""Which of this host's IPv4 addresses are on a home network, chosen, never guessed.

A host may have a dozen interfaces: containers, virtual machines, tunnels, mobile data. An
announcement on those reaches nobody, or people whom it should not. Android's rules are those
of ``getifaddrs`` that may fail and ``/proc/net`` and ``/sys`` that may be unreadable: nothing
here raises OSError.
"""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from edgellama.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Lower-case beginnings of names that are no home network: containers and virtual machines,
# tunnels, mobile data (rmnet, ccmni, pdp, wwan, clat and v4-), Apple's own radio links, and
# the descriptions that Windows gives to the like.
TUNNEL_NAMES: Final = (
    *("tun", "tap", "wg", "tailscale", "zt", "ppp", "ipsec", "utun", "wireguard", "wintun"),
)
NAMES_SKIPPED: Final = (
    *("docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "lxc", "lxd", "podman", "cni"),
    *("flannel", "cali", *TUNNEL_NAMES),
    *("rmnet", "ccmni", "pdp", "wwan", "clat", "v4-", "awdl", "llw", "ifb", "dummy"),
    *("vethernet", "hyper-v", "virtualbox", "vmware"),
)
_LOOPBACK: Final = IPv4Network("127.0.0.0/8")
_CLAT: Final = IPv4Network("192.0.0.0/29")  # RFC 7335: an address inside the phone alone
_HOME: Final = tuple(
    IPv4Network(text)
    # RFC 1918, RFC 6598 (some home routers hand these out), RFC 3927
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16")
)
_PREFIX_LENGTH_UNKNOWN: Final = 24
_ADDRESSES_MAX: Final = 32  # of a host; more are containers


class HostAddress(NamedTuple):
    """One IPv4 address of this host and the interface it is on."""

    interface: str
    address: str
    prefix_length: int
    is_up: bool = True

    @property
    def network(self) -> IPv4Network:
        """The addresses that this interface reaches directly."""
        return IPv4Network((self.address, self.prefix_length), strict=False)


def host_addresses() -> list[HostAddress]:
    """Return every IPv4 address of this host; empty where the system does not tell."""
    try:
        import ifaddr
    except ImportError:
        return []
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:  # Android without getifaddrs, sandboxes without netlink
        return []
    found = []
    for adapter in adapters:
        for ip in adapter.ips:
            if isinstance(ip.ip, str):
                name = ip.nice_name or str(adapter.name)
                is_up = link_is_up(name, Path("/"))
                found.append(HostAddress(name, ip.ip, ip.network_prefix, is_up))
    return found


def link_is_up(interface: str, system: Path) -> bool:
    """Say whether the link is up; yes where the system does not tell (only Linux does).

    ``carrier`` is true at once; ``operstate`` lags by up to a second.
    """
    try:
        carrier = (system / "sys/class/net" / interface / "carrier").read_text(encoding="ascii")
    except OSError as error:
        return error.errno != errno.EINVAL  # what Linux answers for a link that is switched off
    except ValueError:
        return True
    return carrier.strip() != "0"


def route_address() -> str | None:
    """Return the address from which packets to the world outside would leave; sends none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: for documentation, nobody is there
            address: str = probe.getsockname()[0]
        except OSError:  # no default route, or no network at all
            return None
    return address


def choose_addresses(addresses: Sequence[HostAddress], route: str | None) -> list[str]:
    """Return the addresses on a home network, that of the default route first.

    The first of these groups that is not empty: home addresses on ordinary interfaces; other
    addresses on ordinary interfaces; any on interfaces that are skipped otherwise (a container
    or a namespace has nothing but veth); loopback. With ``addresses`` empty, the route's own.
    """
    if not addresses:
        return [route] if route is not None and _is_home(IPv4Address(route)) else []
    groups: tuple[list[str], ...] = ([], [], [], [])
    for entry in sorted(addresses, key=lambda entry: (entry.address != route, entry)):
        address = IPv4Address(entry.address)
        if not entry.is_up or address in _CLAT or address.is_unspecified:
            continue
        if address in _LOOPBACK:
            group = 3
        elif entry.interface.lower().startswith(NAMES_SKIPPED):
            group = 2
        else:
            group = 0 if _is_home(address) else 1
        if entry.address not in groups[group]:
            groups[group].append(entry.address)
    return next((group for group in groups if group), [])[:_ADDRESSES_MAX]


def _is_home(address: IPv4Address) -> bool:
    return any(address in network for network in _HOME)


def is_home(address: str) -> bool:
    """Say whether an address is of the kind that home networks have."""
    return _is_home(IPv4Address(address))


def lan_addresses() -> list[str]:
    """Return this host's addresses on the home network, the likeliest first, or none."""
    return choose_addresses(host_addresses(), route_address())


def lan_ipv4() -> str | None:
    """Return the one address under which others on the home network reach this host."""
    return next(iter(lan_addresses()), None)


def interfaces_for_discovery(listen: str | None) -> list[str]:
    """Return the addresses on which to announce and browse: the one asked for, or the LAN's.

    Raises MisuseError when ``listen`` is not an IPv4 address.
    """
    if listen is None:
        return lan_addresses()
    try:
        address = IPv4Address(listen)
    except ValueError:
        raise MisuseError(f"{listen[:60]!r} is not an IPv4 address to listen on") from None
    return lan_addresses() if address.is_unspecified else [listen]


def local_networks(interfaces: Sequence[str]) -> list[IPv4Network]:
    """Return what ``interfaces`` (addresses of this host) reach directly, without a router."""
    known = {entry.address: entry.network for entry in host_addresses()}
    return [
        known.get(address, IPv4Network((address, _PREFIX_LENGTH_UNKNOWN), strict=False))
        for address in interfaces
    ]
