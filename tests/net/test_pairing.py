"""Joining with a code: the right one once, a wrong one three times, and nothing for who listens."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.errors import TransferError
from edgellama.net import pairing
from edgellama.net.invitations import OPEN_S, TRIES, Invitations
from edgellama.net.pairing import (
    PAIRING_GREETING,
    Welcome,
    WrongCodeError,
    admit_device,
    ask_to_join,
)
from edgellama.net.transfer_server import WeightServer
from edgellama.values import Address
from edgellama.wire.join_code import JoinCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgellama.net.record_stream import RecordStream

HOST = "127.0.0.1"
WELCOME = Welcome(bytes(range(32)), "ab" * 16, "laptop", 7711)
WRONG = ("zebra", "zephyr")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Door:
    """A weight server of a member that invites."""

    def __init__(self, admit: Callable[[RecordStream, Invitations], None] | None = None) -> None:
        self.clock = Clock()
        self.invitations = Invitations(lambda count: bytes(range(count)), self.clock)
        self.joined: list[str] = []
        self._admit = admit or self._let_in
        self.server = WeightServer(
            HOST,
            0,
            WELCOME.mesh_key,
            lambda root: None,
            admit=lambda stream: self._admit(stream, self.invitations),
            hello_timeout_s=1.0,
        )
        self.address = Address(HOST, self.server.port)

    def _let_in(self, stream: RecordStream, invitations: Invitations) -> None:
        self.joined.append(admit_device(stream, invitations, WELCOME))

    def settle(self) -> None:
        waiting = threading.Event()
        while self.server._open:
            waiting.wait(0.005)


@pytest.fixture
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.server.close()


def wrong(code: JoinCode) -> JoinCode:
    return JoinCode(code.slot, *WRONG)


def test_the_right_code_brings_the_key_and_both_sides_know_who(door: Door) -> None:
    code = door.invitations.open()
    assert ask_to_join(door.address, code, "phone") == WELCOME
    door.settle()
    assert door.joined == ["phone"]


def test_a_code_is_good_for_one_device(door: Door) -> None:
    code = door.invitations.open()
    assert ask_to_join(door.address, code, "phone") == WELCOME
    with pytest.raises(TransferError, match="closed the connection"):
        ask_to_join(door.address, code, "another")
    assert not door.invitations.is_open()


def test_three_wrong_codes_close_the_invitation(door: Door) -> None:
    code = door.invitations.open()
    for _ in range(TRIES):
        assert door.invitations.is_open()
        with pytest.raises(WrongCodeError):
            ask_to_join(door.address, wrong(code), "stranger")
        door.settle()
    assert not door.invitations.is_open()
    with pytest.raises(TransferError, match="closed the connection"):
        ask_to_join(door.address, code, "the owner")
    assert door.joined == []


def test_two_wrong_codes_leave_a_third_try(door: Door) -> None:
    code = door.invitations.open()
    for _ in range(TRIES - 1):
        with pytest.raises(WrongCodeError):
            ask_to_join(door.address, wrong(code), "fumbling")
    assert ask_to_join(door.address, code, "fumbling") == WELCOME


def test_breaking_off_costs_a_try_too(door: Door) -> None:
    code = door.invitations.open()
    from spake2 import SPAKE2_A

    for _ in range(TRIES):
        with socket.create_connection(door.address, timeout=10) as connection:
            said = SPAKE2_A(wrong(code).password).start()
            connection.sendall(PAIRING_GREETING + bytes([code.slot]) + said)
            assert len(connection.recv(100)) == 33
    door.settle()
    assert not door.invitations.is_open()


def test_a_code_expires_after_five_minutes(door: Door) -> None:
    code = door.invitations.open()
    door.clock.now += OPEN_S - 1
    assert door.invitations.is_open()
    door.clock.now += 1
    assert not door.invitations.is_open()
    with pytest.raises(TransferError, match="closed the connection"):
        ask_to_join(door.address, code, "late")
    assert OPEN_S == 300.0


def test_a_new_code_voids_the_one_before() -> None:
    codes = iter([bytes([1, 2, 3]), bytes([1, 4, 5])])
    invitations = Invitations(lambda _: next(codes))
    first, second = invitations.open(), invitations.open()
    assert invitations.begin(first.slot) == second
    assert not invitations.accept(first)
    assert invitations.accept(second)
    assert not invitations.accept(second)


def test_another_slot_gets_not_one_byte_and_costs_no_try(door: Door) -> None:
    code = door.invitations.open()
    for _ in range(2 * TRIES):
        with socket.create_connection(door.address, timeout=10) as connection:
            connection.sendall(PAIRING_GREETING + bytes([code.slot % 9 + 1]) + bytes(33))
            assert connection.recv(100) == b""
    assert ask_to_join(door.address, code, "phone") == WELCOME


def test_without_an_invitation_nobody_gets_a_byte(door: Door) -> None:
    for slot in range(256):
        with socket.create_connection(door.address, timeout=10) as connection:
            connection.sendall(PAIRING_GREETING + bytes([slot]) + bytes(33))
            assert connection.recv(100) == b""
        if slot > 12:
            break


@given(junk=st.binary(max_size=120))
@settings(deadline=None, max_examples=30)
def test_junk_gets_at_most_one_point_and_lets_nobody_in(junk: bytes) -> None:
    door = Door()
    try:
        code = door.invitations.open()
        with socket.create_connection(door.address, timeout=10) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(PAIRING_GREETING + bytes([code.slot]) + junk)
                connection.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionError):
                while data := connection.recv(100):
                    received += data
            assert len(received) <= 33
        door.settle()
        assert door.joined == []
    finally:
        door.server.close()


def test_a_false_member_learns_nothing_it_could_test_guesses_with() -> None:
    """Whoever only pretends to invite has the joiner's proof, and no key that it opens under."""
    heard: list[bytes] = []

    def pretend(stream: RecordStream, invitations: Invitations) -> None:
        from spake2 import SPAKE2_B

        asked = stream.receive_plain(34)
        side = SPAKE2_B(b"a guess")
        stream.send_plain(side.start())
        key = side.finish(asked[1:])
        heard.extend([key, stream.receive_plain(48)])
        stream.send_plain(bytes(48))

    door = Door(pretend)
    try:
        with pytest.raises(WrongCodeError):
            ask_to_join(door.address, JoinCode(7, "amber", "otter"), "phone")
        door.settle()
        key, proof = heard
        from edgellama.wire.noise import Opening

        assert Opening(key, b"").hear(proof) is None
    finally:
        door.server.close()


def test_each_try_looks_different_and_shows_neither_code_nor_key(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    right = pairing.RecordStream._send

    def record(self: RecordStream, data: bytes) -> None:
        sent.append(bytes(data))
        right(self, data)

    monkeypatch.setattr(pairing.RecordStream, "_send", record)
    for _ in range(2):
        ask_to_join(door.address, door.invitations.open(), "phone")
    everything = b"".join(sent)
    for shown in (WELCOME.mesh_key, b"phone", b"laptop", b"acorn", b"album"):
        assert shown not in everything
    assert len(sent) == len(set(sent))


@pytest.mark.parametrize(
    "welcome",
    [
        [bytes(31), "ab" * 16, "x", 1],
        ["k" * 32, "ab" * 16, "x", 1],
        [bytes(32), "ab", "x", 1],
        [bytes(32), "ab" * 16, "x\n", 1],
        [bytes(32), "ab" * 16, "x", 0],
        [bytes(32), "ab" * 16, "x", True],
        [bytes(32)],
    ],
)
def test_a_welcome_that_is_none_is_refused(welcome: list[object]) -> None:
    with pytest.raises(TransferError, match="sent a"):
        pairing._parse_welcome(pairing._packed(*welcome))
    with pytest.raises(TransferError, match="malformed"):
        pairing._parse_welcome(b"\xc1")


def test_nobody_there_is_one_line() -> None:
    with pytest.raises(TransferError, match="cannot be reached"):
        ask_to_join(Address(HOST, 9), JoinCode(7, "amber", "otter"), "phone")
