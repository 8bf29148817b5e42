"""mDNS: what strangers may announce, what may be missing, and two devices on one loopback."""

from __future__ import annotations

import errno
import socket
import sys
import time
from itertools import chain, islice, repeat
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.net import discovery
from edgellama.net.discovery import (
    Announcement,
    Candidate,
    Discovery,
    explain,
    query_delays_s,
    reachable,
)
from edgellama.net.interfaces import HostAddress
from edgellama.values import Address
from edgellama.wire.mesh_tag import mesh_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
A, B, C = "a" * 32, "b" * 32, "c" * 32
LOOPBACK = ["127.0.0.1"]


def wait_until(condition: Callable[[], object]) -> None:
    """Give up after a time that only a failure ever takes."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


# --- what an announcement says --------------------------------------------------------------

GOOD = {b"v": b"1", b"id": A.encode(), b"mesh": b"3f9a1c22", b"ep": b"1700000000000"}


def test_a_record_read_is_what_was_written() -> None:
    announcement = Announcement(A, 1_700_000_000_000, "3f9a1c22")
    written = announcement.properties()
    assert {key.encode(): value.encode() for key, value in written.items()} == GOOD
    assert Announcement.parse(GOOD) == announcement
    assert sum(len(key) + len(value) + 2 for key, value in written.items()) < 80
    assert Announcement.parse({**GOOD, b"later": b"x"}) == announcement


@pytest.mark.parametrize(
    "fault",
    [
        {b"v": b"2"},
        {b"v": None},
        {b"id": b"a" * 31},
        {b"id": b"A" * 32},
        {b"id": A.encode() + b"\n"},
        {b"id": b"\xff" * 32},
        {b"mesh": b""},
        {b"mesh": b"3f9a1c2g"},
        {b"ep": b""},
        {b"ep": b"-1"},
        {b"ep": b"1" * 20},
        {b"ep": "٣".encode()},
    ],
)
def test_any_other_record_is_nothing(fault: dict[bytes, bytes | None]) -> None:
    assert Announcement.parse({**GOOD, **fault}) is None
    assert Announcement.parse({k: v for k, v in GOOD.items() if k not in fault}) is None


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(
        st.sampled_from([b"v", b"id", b"mesh", b"ep"]),
        st.binary(max_size=40) | st.sampled_from(list(GOOD.values())),
    )
)
def test_a_hostile_record_is_nothing_or_exactly_what_it_says(fields: dict[bytes, bytes]) -> None:
    announcement = Announcement.parse({**GOOD, **fields})
    if announcement is not None:
        written = announcement.properties()
        read = {key.decode(): value.decode() for key, value in {**GOOD, **fields}.items()}
        assert {**written, "ep": int(written["ep"])} == {**read, "ep": int(read["ep"])}


def test_the_tag_tells_keys_apart_and_does_not_change() -> None:
    assert mesh_tag(KEY) == mesh_tag(KEY)
    assert mesh_tag(KEY) != mesh_tag(OTHER_KEY)
    assert mesh_tag(bytes(range(32))) == "39790620"  # version 1 of the specification


def test_only_neighbours_are_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [HostAddress("wlan0", "192.168.1.20", 24), HostAddress("eth0", "10.1.2.3", 16)]
    monkeypatch.setattr("edgellama.net.interfaces.host_addresses", lambda: entries)
    announced = ["192.0.0.4", "fe80::1", "8.8.8.8", "10.1.9.9", "127.0.0.1", "192.168.1.7", "x"]
    assert reachable(announced, ["192.168.1.20"]) == ["192.168.1.7"]
    assert reachable(announced, ["192.168.1.20", "10.1.2.3"]) == ["10.1.9.9", "192.168.1.7"]
    many = [f"192.168.1.{i}" for i in range(1, 200)]
    assert reachable(many, ["192.168.1.20"]) == many[:4]


def test_queries_at_15_and_60_seconds_then_every_five_minutes() -> None:
    at_s, times_s = 0.0, []
    for delay_s in islice(query_delays_s(), 5):
        at_s += delay_s
        times_s.append(at_s)
    assert times_s == [15, 60, 360, 660, 960]


# --- what may be missing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (ModuleNotFoundError("No module named 'zeroconf'"), "zeroconf is not installed"),
        (OSError(errno.EADDRINUSE, "x"), "port 5353 is taken by a program that does not share it"),
        (PermissionError(errno.EPERM, "x"), "the system does not permit multicast"),
        (OSError(errno.ENODEV, "x"), "the network does not take multicast"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
    ],
)
def test_the_note_for_a_person_is_one_line(error: Exception, note: str) -> None:
    assert explain(error) == note


def test_a_long_note_is_cut() -> None:
    assert len(explain(RuntimeError("x" * 10_000))) == 160


def test_without_zeroconf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    quiet = Discovery(KEY, lambda candidate: None, LOOPBACK)
    quiet.browse()
    quiet.announce(A, 1, Address("127.0.0.1", 7711))
    wait_until(lambda: quiet.note == "zeroconf is not installed")
    quiet.close()
    quiet.close()


def test_without_a_network() -> None:
    quiet = Discovery(KEY, lambda candidate: None, [])
    quiet.browse()
    wait_until(lambda: quiet.note == "no network with an IPv4 address is up")
    quiet.close()


def test_closed_before_anything_was_asked_of_it() -> None:
    unused = Discovery(KEY, lambda candidate: None, LOOPBACK)
    unused.close()
    assert unused.note is None


class Recorder(ModuleType):
    """Stands for the library: fails as often as told, then notes what is done to it."""

    def __init__(self, failures: list[Exception]) -> None:
        super().__init__("zeroconf")
        self.failures = failures
        self.calls: list[str] = []
        self.arguments: list[dict[str, Any]] = []
        self.IPVersion = SimpleNamespace(V4Only="4")
        self.ServiceStateChange = SimpleNamespace(Removed="removed")
        self.ServiceInfo = lambda *arguments, **named: SimpleNamespace(**named)

    def Zeroconf(self, **arguments: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        self.calls.append("open")
        self.arguments.append(arguments)
        return SimpleNamespace(
            register_service=lambda info, **named: self.calls.append(f"register {info.port}"),
            update_service=lambda info: self.calls.append(f"update {info.port}"),
            close=lambda: self.calls.append("close"),
        )

    def ServiceBrowser(self, zeroconf: Any, kind: str, **arguments: Any) -> Any:
        self.calls.append("browse")
        return SimpleNamespace(cancel=lambda: self.calls.append("cancel"))


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the thread go round at once."""
    monkeypatch.setattr(discovery, "TICK_S", 0.001)
    monkeypatch.setattr(discovery, "query_delays_s", lambda: chain([0.01] * 3, repeat(1000.0)))


def test_it_tries_again_after_failures(monkeypatch: pytest.MonkeyPatch, hurry: None) -> None:
    library = Recorder([OSError(errno.ENODEV, "down"), RuntimeError("later")])
    monkeypatch.setitem(sys.modules, "zeroconf", library)
    lasting = Discovery(KEY, lambda candidate: None, LOOPBACK)
    lasting.announce(A, 1, Address("127.0.0.1", 7001))
    wait_until(lambda: "register 7001" in library.calls)
    assert lasting.note is None
    lasting.close()
    assert library.calls == ["open", "open", "register 7001", "close", "close"]


def test_queries_and_announcements_are_repeated(
    monkeypatch: pytest.MonkeyPatch, hurry: None
) -> None:
    library = Recorder([])
    monkeypatch.setitem(sys.modules, "zeroconf", library)
    monkeypatch.setattr(discovery, "ANNOUNCE_INTERVAL_S", 0)
    lasting = Discovery(KEY, lambda candidate: None, LOOPBACK)
    lasting.browse()
    wait_until(lambda: library.calls.count("browse") == 2 * 4)
    lasting.announce(A, 1, Address("127.0.0.1", 7001))
    wait_until(lambda: library.calls.count("update 7001") > 2)
    lasting.close()
    assert library.calls.count("open") == library.calls.count("close") == 2
    assert library.calls.count("cancel") == 2 * 4
    assert library.calls.count("register 7001") == 1


def test_a_new_address_of_this_host_opens_it_anew(
    monkeypatch: pytest.MonkeyPatch, hurry: None
) -> None:
    library = Recorder([])
    monkeypatch.setitem(sys.modules, "zeroconf", library)
    addresses = iter([["10.0.0.1"]] * 2)
    monkeypatch.setattr(discovery, "lan_addresses", lambda: next(addresses, ["10.0.0.2"]))
    moving = Discovery(KEY, lambda candidate: None)
    moving.announce(A, 1, Address("0.0.0.0", 7001))
    wait_until(lambda: library.calls.count("register 7001") == 2)
    moving.close()
    opened = [arguments["interfaces"] for arguments in library.arguments]
    assert opened == [["10.0.0.1"]] * 2 + [["10.0.0.2"]] * 2


def test_a_second_querier_has_a_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Recorder([])
    monkeypatch.setitem(sys.modules, "zeroconf", library)
    device = Discovery(KEY, lambda candidate: None, LOOPBACK)
    device.browse()
    wait_until(lambda: library.calls.count("browse") == 2)
    device.close()
    assert library.arguments == [
        {"interfaces": LOOPBACK, "ip_version": "4"},
        {"interfaces": LOOPBACK, "ip_version": "4", "unicast": True},
    ]
    assert library.calls == ["open", "open", "browse", "browse", "cancel", "cancel"] + ["close"] * 2


# --- two devices on one loopback ------------------------------------------------------------


@pytest.fixture
def multicast() -> None:
    """Skip where the system delivers no multicast on loopback."""
    group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", 0))
            probe.settimeout(1)
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            probe.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            probe.sendto(b"?", ("224.0.0.251", probe.getsockname()[1]))
            probe.recv(10)
        except OSError as error:
            pytest.skip(f"no multicast on loopback: {error}")


@pytest.fixture
def devices(multicast: None) -> Iterator[list[Discovery]]:
    started: list[Discovery] = []
    yield started
    for device in started:
        device.close()


def start(devices: list[Discovery], key: bytes, node: str, port: int) -> set[Candidate]:
    seen: set[Candidate] = set()
    device = Discovery(key, seen.add, LOOPBACK)
    device.browse()
    device.announce(node, 7, Address("127.0.0.1", port))
    devices.append(device)
    return seen


def test_two_find_each_other_and_count_the_stranger(devices: list[Discovery]) -> None:
    seen_by_a = start(devices, KEY, A, 7001)
    seen_by_b = start(devices, KEY, B, 7002)
    seen_by_c = start(devices, OTHER_KEY, C, 7003)
    wait_until(lambda: seen_by_a and seen_by_b)
    wait_until(lambda: all(device.foreign_meshes == 1 for device in devices))
    assert seen_by_a == {Candidate(B, Address("127.0.0.1", 7002), 7)}
    assert seen_by_b == {Candidate(A, Address("127.0.0.1", 7001), 7)}
    assert seen_by_c == set()
    assert [device.note for device in devices] == [None, None, None]


def test_one_that_comes_later_need_not_wait_for_an_announcement(
    devices: list[Discovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both share port 5353 of one address, where a unicast reply reaches only one of them."""
    monkeypatch.setattr(discovery, "ANNOUNCE_INTERVAL_S", 1000)
    start(devices, KEY, A, 7001)
    # Only when the first announcements are over: they would give it away.
    wait_until(lambda: devices[0]._responder and devices[0]._responder._published)
    seen: set[Candidate] = set()
    devices.append(Discovery(KEY, seen.add, LOOPBACK))
    devices[1].browse()
    wait_until(lambda: seen)
    assert seen == {Candidate(A, Address("127.0.0.1", 7001), 7)}


def test_a_later_start_of_a_device_is_seen_under_its_new_incarnation(
    devices: list[Discovery],
) -> None:
    seen_by_a = start(devices, KEY, A, 7001)
    start(devices, KEY, B, 7002)
    wait_until(lambda: len(seen_by_a) == 1)
    devices[1].announce(B, 8, Address("127.0.0.1", 7009))
    wait_until(lambda: Candidate(B, Address("127.0.0.1", 7009), 8) in seen_by_a)


def test_where_the_list_of_interfaces_is_denied(
    devices: list[Discovery], monkeypatch: pytest.MonkeyPatch
) -> None:
    ifaddr = pytest.importorskip("ifaddr")

    def deny(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ifaddr, "get_adapters", deny)
    seen_by_a = start(devices, KEY, A, 7001)
    seen_by_b = start(devices, KEY, B, 7002)
    wait_until(lambda: seen_by_a and seen_by_b)
