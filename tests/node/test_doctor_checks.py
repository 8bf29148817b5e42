"""What doctor says of devices and networks of every kind, made up where there is none at hand."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import Any

import pytest

from edgellama.cli.doctor import line
from edgellama.net.facts import Memory
from edgellama.net.firewall import FirewallReport, blocking_rules, ufw_is_enabled
from edgellama.net.host_report import FolderReport, HostReport, TermuxReport
from edgellama.net.interfaces import HostAddress
from edgellama.net.multicast import MulticastReport, question
from edgellama.net.reachability import Probe, parse_neighbours, parse_router
from edgellama.node.doctor.device import check_device
from edgellama.node.doctor.examination import NetworkReport, PeerReport
from edgellama.node.doctor.findings import FAIL, OK, WARN, Finding, worst
from edgellama.node.doctor.network import check_network
from edgellama.node.survey import Knock
from edgellama.values import Address

GIB = 1 << 30
WIFI = HostAddress("wlan0", "192.168.1.5", 24)
HOST = HostReport(
    system="linux",
    is_android=False,
    machine="x86_64",
    pointer_bits=64,
    python="3.12.1",
    release="0.1.0",
    packages={"numpy": "2.4.4", "numba": "0.67.0", "llvmlite": "0.49.0"},
    termux=None,
    folders=(FolderReport("models and fetched weights", "/data", "", 50 * GIB),),
    memory=Memory(16 * GIB, 8 * GIB),
    offer_bytes=6 * GIB,
    addresses=(WIFI,),
    route="192.168.1.5",
    lan=("192.168.1.5",),
    receive_buffer_bytes=8 << 20,
    window_packets=2048,
    firewall=FirewallReport(),
    joined_at="127.0.0.1:7711",
    node="a" * 32,
    incarnation=1000,
)
PI = PeerReport(
    Address("192.168.1.7", 7711),
    "remembered",
    Knock("b" * 32),
    name="pi",
    seen_s_ago=60.0,
    release="0.1.0",
    clock_ahead_s=0.2,
)
SILENT = replace(PI, knock=Knock(None), release="", clock_ahead_s=None)
NETWORK = NetworkReport(
    multicast=MulticastReport(heard=("192.168.1.7",)),
    discovery_note="",
    foreign_meshes=0,
    peers=(PI,),
    doubles=(),
    own_record=(1000, "192.168.1.5"),
    router="192.168.1.1",
    router_answers=True,
    status=None,
)
PHONE = {
    "system": "android",
    "is_android": True,
    "machine": "aarch64",
    "termux": TermuxReport("0.118.3", "F_DROID", has_wake_lock=True, orphans=()),
}


def of_device(check: str, **changes: Any) -> Finding:
    (finding,) = [each for each in check_device(replace(HOST, **changes)) if each.check == check]
    return finding


def of_network(check: str, host: dict[str, Any] | None = None, **changes: Any) -> list[Finding]:
    findings = check_network(replace(HOST, **(host or {})), replace(NETWORK, **changes))
    return [each for each in findings if each.check == check]


def test_a_healthy_device_on_a_healthy_network_is_well() -> None:
    findings = check_device(HOST) + check_network(HOST, NETWORK)
    assert [each for each in findings if each.level != OK] == []
    assert worst(findings) == OK
    assert all(len(line(each).splitlines()) == 1 for each in findings)


# The device


@pytest.mark.parametrize(
    ("packages", "changes", "level", "words"),
    [
        ({"numpy": "2.4.4"}, {}, WARN, "pip install numba"),
        ({}, {}, FAIL, "pip install numpy"),
        ({"numpy": "2.4.4"}, PHONE, WARN, "pkg install python-llvmlite"),
        (
            {"numpy": "2.4.4", "llvmlite": "0.49.0"},
            PHONE,
            WARN,
            'isolation "numba==0.67.*" "llvmlite==0.49.0" "numpy==2.4.4"',
        ),
        ({"numpy": "2.5.0", "llvmlite": "0.48.0"}, PHONE, WARN, "needs NumPy below 2.5"),
        ({"numpy": "2.4.4", "llvmlite": "0.99.0"}, PHONE, WARN, "no numba is known"),
        (
            {"numpy": "2.4.4"},
            {"pointer_bits": 32, "machine": "armv7l"},
            WARN,
            "no numba for 32-bit",
        ),
        (
            {"numpy": "2.4.4", "numba": "0.68.1", "llvmlite": "0.49.0"},
            {},
            WARN,
            '"numba==0.67.*" "llvmlite==0.49.0"',
        ),
        (
            {"numpy": "2.6.0", "numba": "0.67.0", "llvmlite": "0.49.0"},
            {},
            WARN,
            '"numpy<2.6"',
        ),
        ({"numpy": "2.4.4", "numba": "0.70.0", "llvmlite": "0.60.0"}, {}, OK, ""),
    ],
)
def test_the_numba_that_fits(
    packages: dict[str, str], changes: dict[str, Any], level: str, words: str
) -> None:
    finding = of_device("kernels", packages=packages, **changes)
    assert finding.level == level
    assert words in finding.advice


def test_32_bit_programs_on_a_64_bit_kernel() -> None:
    finding = of_device("programs", pointer_bits=32, machine="aarch64")
    assert finding.level == WARN
    assert "64-bit kernel with 32-bit programs" in finding.text
    assert of_device("programs", pointer_bits=32, machine="armv7l").level == OK


@pytest.mark.parametrize(
    ("folder", "changes", "level"),
    [
        (FolderReport("models", "/d", "/d: Permission denied", 0), {}, FAIL),
        (FolderReport("models", "/d", "", 1 << 20), {}, FAIL),
        (FolderReport("models", "/d", "", 300 << 20), {}, WARN),
        (FolderReport("identity", "/d", "", 300 << 20), {}, OK),
        (FolderReport("models", "/d", "", -1), {}, OK),
        (FolderReport("models", "/sdcard/edgellama", "", 50 * GIB), PHONE, WARN),
    ],
)
def test_folders(folder: FolderReport, changes: dict[str, Any], level: str) -> None:
    assert of_device(f"folder of {folder.name}", folders=(folder,), **changes).level == level


@pytest.mark.parametrize(("offer", "level"), [(0, FAIL), (100 << 20, WARN), (GIB, OK)])
def test_the_offer_says_why_it_is_so(offer: int, level: str) -> None:
    finding = of_device("memory", offer_bytes=offer)
    assert finding.level == level
    assert "8 GiB of 16 GiB" in finding.text
    assert "half of all" in of_device("memory", **PHONE).text


def test_a_small_receive_buffer_names_the_setting_where_there_is_one() -> None:
    assert "net.core.rmem_max" in of_device("receive buffer", window_packets=160).advice
    assert "net.core" not in of_device("receive buffer", window_packets=160, system="darwin").advice
    assert of_device("receive buffer", window_packets=160, **PHONE).level == OK


def test_termux() -> None:
    play = TermuxReport("0.120", "GOOGLE_PLAY_STORE", has_wake_lock=False, orphans=("/lib/x",))
    bad = PHONE | {"termux": play}
    assert of_device("Termux", **PHONE).level == OK
    assert of_device("staying awake", **PHONE).level == OK
    assert of_device("Termux", **bad).level == FAIL
    assert "F-Droid" in of_device("Termux", **bad).advice
    assert of_device("staying awake", **bad).level == WARN
    assert of_device("Termux packages", **bad).level == WARN


# The network


def test_no_network_several_networks_and_a_foreign_one() -> None:
    (none,) = of_network("network", {"lan": (), "addresses": ()})
    assert none.level == FAIL
    cable = HostAddress("eth0", "10.0.0.5", 24)
    (two,) = of_network("network", {"lan": ("192.168.1.5", "10.0.0.5"), "addresses": (WIFI, cable)})
    assert (two.level, "--listen" in two.advice) == (WARN, True)
    (world,) = of_network("network", {"lan": ("8.8.8.8",), "addresses": ()})
    assert world.level == WARN


def test_a_vpn_that_takes_all_traffic() -> None:
    tunnel = HostAddress("wg0", "10.9.0.2", 24)
    (taken,) = of_network("VPN", {"addresses": (WIFI, tunnel), "route": "10.9.0.2"})
    assert taken.level == WARN
    (beside,) = of_network("VPN", {"addresses": (WIFI, tunnel)})
    assert beside.level == OK


@pytest.mark.parametrize(
    ("host", "number", "words"),
    [
        (PHONE, errno.EPERM, "F-Droid"),
        ({"system": "darwin"}, errno.EHOSTUNREACH, "Local Network"),
        ({}, errno.EPERM, "7711"),
    ],
)
def test_systems_that_do_not_let_programs_on_the_network(
    host: dict[str, Any], number: int, words: str
) -> None:
    peer = replace(SILENT, probe=Probe(send_errno=number))
    (finding,) = of_network("permission", host, peers=(peer,))
    assert finding.level == FAIL
    assert words in finding.advice
    multicast = MulticastReport(send_errors=(number,))
    assert of_network("permission", host, multicast=multicast) == [finding]


def test_multicast_that_is_not_heard() -> None:
    deaf = MulticastReport()
    assert of_network("multicast", multicast=deaf)[0].level == FAIL  # and yet a peer answers
    assert of_network("multicast", multicast=deaf, peers=())[0].level == WARN
    (phone,) = of_network("multicast", PHONE, multicast=deaf)
    assert (phone.level, "Android" in phone.text) == (WARN, True)
    (taken,) = of_network("multicast", multicast=MulticastReport(fault="port 5353 is taken"))
    assert "--peer" in taken.advice
    assert of_network("multicast", discovery_note="no zeroconf")[0].level == WARN


@pytest.mark.parametrize("kind", ["ufw", "firewalld", "Windows", "macOS"])
def test_firewalls_that_are_on(kind: str) -> None:
    on = {"firewall": FirewallReport(active=(kind,))}
    assert of_network("firewall", on)[0].level == OK
    (finding,) = of_network("firewall", on, peers=(SILENT,))
    assert finding.level == WARN
    assert finding.advice
    if kind == "Windows":
        assert "New-NetFirewallRule" in finding.advice


def test_isolation_is_that_the_router_answers_and_nobody_else() -> None:
    (hidden,) = of_network("reaching them", peers=(SILENT,))
    assert (hidden.level, "isolation" in hidden.text) == (FAIL, True)
    assert "firewalls" in hidden.text
    gone = replace(SILENT, probe=Probe(is_neighbour=False))
    assert "firewalls" not in of_network("reaching them", peers=(gone,))[0].text
    (lost,) = of_network("reaching them", peers=(SILENT,), router_answers=False)
    assert "isolation" not in lost.text
    assert "isolation" not in of_network("reaching them", peers=(PI, SILENT))[0].text


@pytest.mark.parametrize(
    ("peer", "level", "words"),
    [
        (replace(SILENT, probe=Probe(is_refused=True)), WARN, "no edgellama listens"),
        (replace(SILENT, knock=Knock(None, "it may run another version")), FAIL, "version"),
        (replace(SILENT, known_from="announced"), FAIL, "announces itself"),
        (replace(SILENT, known_from="member"), FAIL, "others reach"),
        (SILENT, WARN, "does not answer"),
    ],
)
def test_one_that_is_silent_among_others(peer: PeerReport, level: str, words: str) -> None:
    (finding,) = of_network("reaching them", peers=(PI, peer))
    assert finding.level == level
    assert words in finding.text


def test_who_was_seen_long_ago_is_not_missed() -> None:
    old = replace(SILENT, seen_s_ago=30 * 86_400.0)
    assert of_network("reaching them", peers=(old,)) == []
    assert of_network("mesh", peers=(old,))[0].level == WARN


def test_meshes_with_another_key() -> None:
    (finding,) = of_network("mesh", peers=(), foreign_meshes=1)
    assert (finding.level, "--code" in finding.advice) == (FAIL, True)
    assert of_network("mesh", peers=())[0].level == WARN


@pytest.mark.parametrize(
    "changes",
    [
        {"doubles": (Address("192.168.1.9", 7711),)},
        {"own_record": (2000, "192.168.1.9")},
        {"own_record": (1000, "192.168.1.9")},
    ],
)
def test_a_copied_home_folder(changes: dict[str, Any]) -> None:
    (finding,) = of_network("identity", **changes)
    assert finding.level == FAIL
    assert "192.168.1.9" in finding.text
    assert "identity and incarnation" in finding.advice


def test_a_device_that_never_joined_has_no_identity() -> None:
    assert of_network("identity", {"node": "", "joined_at": ""}, own_record=None)[0].level == OK


@pytest.mark.parametrize(
    ("ahead", "level", "words"),
    [(5.0, OK, "agrees"), (3600.0 * 5, WARN, "5 hours ahead"), (-45.0, WARN, "45 s behind")],
)
def test_clocks(ahead: float, level: str, words: str) -> None:
    (finding,) = of_network("clock", peers=(replace(PI, clock_ahead_s=ahead),))
    assert finding.level == level
    assert words in finding.text


def test_releases() -> None:
    (finding,) = of_network("versions", peers=(replace(PI, release="0.2.0"),))
    assert (finding.level, "0.2.0" in finding.text) == (WARN, True)


# What is read


def nft(*rules: object, policy: str = "accept") -> list[dict[str, Any]]:
    place = {"family": "inet", "table": "f"}
    chain = {**place, "name": "input", "type": "filter", "hook": "input", "policy": policy}
    listed = [{"rule": {**place, "chain": "input", "expr": rule}} for rule in rules]
    return [{"chain": chain}, *listed]


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


UDP_PORT = {"payload": {"protocol": "udp", "field": "dport"}}
DROP, ACCEPT = {"drop": None}, {"accept": None}


@pytest.mark.parametrize(
    ("rule", "blocks"),
    [
        ([DROP], True),
        ([match(UDP_PORT, 7711), DROP], True),
        ([match(UDP_PORT, {"range": [7000, 8000]}), DROP], True),
        ([match(UDP_PORT, {"set": [53, {"range": [5000, 6000]}]}), DROP], True),
        ([match(UDP_PORT, 53), DROP], False),
        ([match({"payload": {"protocol": "tcp", "field": "dport"}}, 7711), DROP], False),
        ([match({"meta": {"key": "l4proto"}}, "tcp"), DROP], False),
        ([match({"meta": {"key": "l4proto"}}, "udp"), DROP], True),
        ([match({"ct": {"key": "state"}}, "invalid", "in"), DROP], False),
        ([match({"payload": {"protocol": "ip", "field": "saddr"}}, "1.2.3.4"), DROP], False),
        ([match(UDP_PORT, 7711), ACCEPT], False),
        (
            [match({"payload": {"protocol": "ip", "field": "protocol"}}, "udp"), {"reject": {}}],
            True,
        ),
        ("nonsense", False),
    ],
)
def test_rules_that_stop_datagrams(rule: Any, blocks: bool) -> None:
    assert bool(blocking_rules(nft(rule), (7711, 5353))) is blocks


def test_chains_that_drop_by_default() -> None:
    allowed = [match(UDP_PORT, {"set": [7711, 5353]}), ACCEPT]
    assert blocking_rules(nft(allowed, policy="drop"), (7711, 5353)) == []
    (found,) = blocking_rules(nft(policy="drop"), (7711, 5353))
    assert "7711 and 5353" in found
    elsewhere = {"family": "inet", "table": "f", "chain": "ufw-user-input", "expr": allowed}
    assert blocking_rules([*nft(policy="drop"), {"rule": elsewhere}], (7711, 5353)) == []
    assert blocking_rules(json.loads('[{}, {"rule": 5}, {"chain": []}]'), (7711,)) == []


def test_texts_of_linux() -> None:
    assert ufw_is_enabled("# x\nENABLED = yes\n")
    assert not ufw_is_enabled("ENABLED=no")
    here, gone = "10.0.0.1 0x1 0x2 aa:bb:cc:dd:ee:ff", "10.0.0.2 0x1 0x0 00:00:00:00:00:00"
    arp = f"IP address HW\n{here} * eth0\n{gone} * eth0\nx\n"
    assert parse_neighbours(arp) == {"10.0.0.1": True, "10.0.0.2": False}
    routes = "Iface Destination Gateway\neth0 0000000A 00000000 1\neth0 00000000 FE004D0A 3\n"
    assert parse_router(routes) == "10.77.0.254"
    assert parse_router("") is None
    assert question(["a.local"]) == b"\0\0\0\0\0\1\0\0\0\0\0\0\1a\5local\0\0\x0c\0\1"
