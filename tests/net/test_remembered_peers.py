"""Peers that a person names and peers that are remembered."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from edgellama.errors import MisuseError
from edgellama.net.peers import DEFAULT_PORT, PEERS_MAX, RememberedPeers, parse_peer
from edgellama.values import Address

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = "a" * 32, "b" * 32, "c" * 32


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.168.1.23", Address("192.168.1.23", DEFAULT_PORT)),
        ("192.168.1.23:9000", Address("192.168.1.23", 9000)),
        (" 10.0.0.1:1 ", Address("10.0.0.1", 1)),
        ("10.0.0.1:65535", Address("10.0.0.1", 65535)),
        ("localhost:7000", Address("127.0.0.1", 7000)),
    ],
)
def test_peer_by_address_or_name(text: str, address: Address) -> None:
    assert parse_peer(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":7711",
        "7711",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:x",
        "10.0.0.1:7711:1",
        "[::1]:7711",
        "::1",
        "a b",
        "http://10.0.0.1",
        "10.0.0.1\n10.0.0.2",
        "0.0.0.0",
        "10.0.0.1:-1",
        "x" * 300,
        "a..b",
        "10.0.0.1:٣",
    ],
)
def test_nonsense_is_refused_in_one_short_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def no_names(host: str, *rest: Any) -> Any:
        if host.replace(".", "").isdecimal():
            return real(host, *rest)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    with pytest.raises(MisuseError) as caught:
        parse_peer(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_name_that_no_resolver_can_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MisuseError):
        parse_peer("ü" * 200)


def test_remembered_over_a_restart_the_last_seen_first(tmp_path: Path) -> None:
    path = tmp_path / "state" / "peers.json"
    peers = RememberedPeers(path)
    assert peers.all() == []
    peers.remember(A, Address("10.0.0.1", 7711), 1000)
    peers.remember(B, Address("10.0.0.2", 7711), 3000)
    peers.remember(A, Address("10.0.0.9", 7712), 2000)
    peers.save()
    assert RememberedPeers(path).all() == [
        (B, ("10.0.0.2", 7711), 3000),
        (A, ("10.0.0.9", 7712), 2000),
    ]
    assert path.stat().st_mode & 0o077 == 0


def test_an_address_belongs_to_whoever_had_it_last(tmp_path: Path) -> None:
    peers = RememberedPeers(tmp_path / "peers.json")
    peers.remember(A, Address("10.0.0.1", 7711), 1)
    peers.remember(B, Address("10.0.0.1", 7711), 2)
    assert [peer.node for peer in peers.all()] == [B]


def test_only_so_many_the_longest_unseen_go(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    peers = RememberedPeers(path)
    for number in range(PEERS_MAX + 10):
        peers.remember(f"{number:032x}", Address("10.0.0.1", 1000 + number), number)
    peers.save()
    numbers = [int(peer.node, 16) for peer in RememberedPeers(path).all()]
    assert numbers == list(range(PEERS_MAX + 9, 9, -1))


GOOD = {"node": A, "host": "10.0.0.1", "port": 7711, "seen_ms": 5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00" * 50,
        "[" * 60000,
        '{"version": 2, "peers": []}',
        '{"version": 1, "peers": {}}',
        '{"version": 1, "peers": [3]}',
        *(
            json.dumps({"version": 1, "peers": [GOOD | fault]})
            for fault in (
                {"node": "A" * 32},
                {"node": A + "\n"},
                {"node": 3},
                {"host": "10.0.0"},
                {"host": "example.org"},
                {"host": None},
                {"port": 0},
                {"port": True},
                {"port": 1.5},
                {"seen_ms": -1},
                {"seen_ms": 1 << 60},
            )
        ),
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(text, encoding="utf-8")
    peers = RememberedPeers(path)
    assert peers.all() == []
    assert (tmp_path / "peers.json.damaged").read_text(encoding="utf-8") == text
    peers.remember(A, Address("10.0.0.1", 7711), 1)
    peers.save()
    assert len(RememberedPeers(path).all()) == 1


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_bytes(b"\xff\xfe\x00")
    assert RememberedPeers(tmp_path / "peers.json").all() == []
