"""The choice of interfaces, on the hosts that people have."""

from __future__ import annotations

import builtins
import errno
import socket
import sys
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgellama.errors import MisuseError
from edgellama.net import interfaces
from edgellama.net.interfaces import (
    HostAddress,
    choose_addresses,
    host_addresses,
    interfaces_for_discovery,
    lan_ipv4,
    link_is_up,
    local_networks,
    route_address,
)

LOOPBACK = HostAddress("lo", "127.0.0.1", 8)
WIFI = HostAddress("wlan0", "192.168.1.20", 24)
ETHERNET = HostAddress("enp3s0", "10.1.2.3", 16)
DOCKER = HostAddress("docker0", "172.17.0.1", 16)


@pytest.mark.parametrize(
    ("addresses", "route", "chosen"),
    [
        pytest.param([LOOPBACK, DOCKER, WIFI], "192.168.1.20", ["192.168.1.20"], id="laptop"),
        pytest.param(
            [LOOPBACK, ETHERNET, WIFI],
            "192.168.1.20",
            ["192.168.1.20", "10.1.2.3"],
            id="two networks, the route's first",
        ),
        pytest.param(
            [WIFI, HostAddress("tailscale0", "100.101.102.103", 32)],
            "100.101.102.103",
            ["192.168.1.20"],
            id="the route goes through a tunnel",
        ),
        pytest.param(
            [
                HostAddress("rmnet_data0", "10.200.0.7", 30),
                HostAddress("v4-wlan0", "192.0.0.4", 32),
                WIFI,
            ],
            "10.200.0.7",
            ["192.168.1.20"],
            id="phone with mobile data and CLAT",
        ),
        pytest.param(
            [LOOPBACK, HostAddress("eth0", "203.0.113.9", 24)],
            "203.0.113.9",
            ["203.0.113.9"],
            id="public addresses only",
        ),
        pytest.param(
            [HostAddress("eth0", "203.0.113.9", 24), WIFI],
            "203.0.113.9",
            ["192.168.1.20"],
            id="a home address before a public one",
        ),
        pytest.param(
            [LOOPBACK, HostAddress("veth1", "10.99.0.2", 24)],
            None,
            ["10.99.0.2"],
            id="a namespace with one veth and no route",
        ),
        pytest.param(
            [LOOPBACK, HostAddress("eth0", "10.99.0.2", 24)], None, ["10.99.0.2"], id="no route"
        ),
        pytest.param(
            [LOOPBACK, DOCKER, WIFI._replace(is_up=False)],
            None,
            ["172.17.0.1"],
            id="Wi-Fi is off",
        ),
        pytest.param([LOOPBACK], None, ["127.0.0.1"], id="nothing but loopback"),
        pytest.param([], None, [], id="nothing at all"),
        pytest.param([], "192.168.1.20", ["192.168.1.20"], id="only the route is known"),
        pytest.param([], "203.0.113.9", [], id="only a public route is known: mobile data"),
        pytest.param([HostAddress("wlan0", "192.0.0.4", 29)], "192.0.0.4", [], id="only CLAT"),
        pytest.param(
            [
                HostAddress("vEthernet (WSL)", "172.29.0.1", 20),
                HostAddress("Wi-Fi", "10.0.0.8", 24),
            ],
            None,
            ["10.0.0.8"],
            id="Windows",
        ),
    ],
)
def test_choice(addresses: list[HostAddress], route: str | None, chosen: list[str]) -> None:
    assert choose_addresses(addresses, route) == chosen
    assert choose_addresses(addresses[::-1], route) == chosen


def test_a_link_is_down_when_it_has_no_carrier(tmp_path: Path) -> None:
    for name, carrier in (("eth0", b"1\n"), ("eth1", b"0\n"), ("odd", b"\xff")):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
        (tmp_path / "sys/class/net" / name / "carrier").write_bytes(carrier)
    assert link_is_up("eth0", tmp_path)
    assert not link_is_up("eth1", tmp_path)
    assert link_is_up("odd", tmp_path)
    assert link_is_up("unknown", tmp_path)


def test_a_link_that_is_switched_off_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def switched_off(path: Path, encoding: str) -> str:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(Path, "read_text", switched_off)
    assert not link_is_up("eth0", tmp_path)


def test_the_choice_is_bounded() -> None:
    many = [HostAddress(f"eth{i}", f"10.0.{i}.1", 24) for i in range(200)]
    assert len(choose_addresses(many, None)) == 32


def test_this_host_is_described_without_an_error() -> None:
    for entry in host_addresses():
        assert entry.network.prefixlen == entry.prefix_length
    route = route_address()
    assert route is None or socket.inet_aton(route)
    address = lan_ipv4()
    assert address is None or address in interfaces_for_discovery(None)


def fail(*arguments: object) -> Any:
    raise PermissionError(13, "Permission denied")


def test_android_that_denies_the_list_of_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ifaddr", SimpleNamespace(get_adapters=fail))
    monkeypatch.setattr(interfaces, "route_address", lambda: "192.168.7.7")
    assert host_addresses() == []
    assert interfaces_for_discovery(None) == ["192.168.7.7"]
    assert local_networks(["192.168.7.7"]) == [IPv4Network("192.168.7.0/24")]


def test_without_ifaddr(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "ifaddr":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert host_addresses() == []


def test_no_network_has_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unreachable)
    assert route_address() is None


def test_listening_on_one_address_discovers_there_alone() -> None:
    assert interfaces_for_discovery("127.0.0.1") == ["127.0.0.1"]
    assert interfaces_for_discovery("0.0.0.0") == interfaces_for_discovery(None)


@pytest.mark.parametrize("listen", ["", "wlan0", "::1", "10.0.0", "10.0.0.1:7711", "x" * 5000])
def test_listening_on_nonsense_is_refused_in_one_line(listen: str) -> None:
    with pytest.raises(MisuseError) as caught:
        interfaces_for_discovery(listen)
    assert len(str(caught.value)) < 120


def test_local_networks_are_those_of_the_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "host_addresses", lambda: [WIFI, ETHERNET])
    assert local_networks(["10.1.2.3", "192.168.1.20"]) == [
        IPv4Network("10.1.0.0/16"),
        IPv4Network("192.168.1.0/24"),
    ]
