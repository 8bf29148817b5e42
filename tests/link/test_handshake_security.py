"""What strangers, recordings, floods and time do to handshakes and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgellama.link import connection as connection_module
from edgellama.link.admission import COOKIE_SECRET_S, HANDSHAKES_PER_S_MAX
from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Endpoint,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.link.handshake import HALF_OPEN_S
from edgellama.link.receivers import OLD_KEYS_S
from edgellama.testing.network import (
    Conditions,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.values import Address
from edgellama.wire.datagram import PROTOCOL_VERSION, DatagramType

if TYPE_CHECKING:
    from collections.abc import Callable

LOW, HIGH = "0" * 31 + "1", "f" * 32
HERE, THERE = Address("10.0.0.1", 7711), Address("10.0.0.2", 7711)
ELSEWHERE = Address("10.0.0.3", 9)


class Wire(SimulatedNetwork):
    """A network whose every datagram is written down: source, receiver, bytes."""

    def __init__(self, seed: int = 1, conditions: Conditions | None = None) -> None:
        super().__init__(seed, conditions)
        self.sent: list[tuple[Address, Address, bytes]] = []

    def send(self, data: bytes, source: Address, to: Address) -> None:
        self.sent.append((source, to, data))
        super().send(data, source, to)

    def of(self, kind: DatagramType) -> list[bytes]:
        return [data for _, _, data in self.sent if data[0] == kind]


def host(network: SimulatedNetwork, node: str, address: Address, key: bytes = b"k"):
    made = SimulatedHost(network, Identity(node, 5), address, key)
    made.handler = RecordingHandler()
    return made


def connected(
    conditions: Conditions | None = None,
) -> tuple[Wire, SimulatedHost, SimulatedHost]:
    network = Wire(conditions=conditions)
    low, high = host(network, LOW, HERE), host(network, HIGH, THERE)
    low.act(lambda now: low.endpoint.dial(THERE, now))
    network.run(network.now + 1.0)
    assert low.handler.events == [Connected(Identity(HIGH, 5), THERE)]
    return network, low, high


def messages(host: SimulatedHost) -> list[bytes]:
    return [event.message for event in host.handler.events if isinstance(event, MessageReceived)]


def test_no_datagram_at_all_answers_another_key() -> None:
    network = Wire()
    ours = host(network, LOW, HERE, b"ours")
    for theirs_key in (b"theirs", b""):
        theirs = host(network, HIGH, THERE, theirs_key)
        theirs.act(lambda now, theirs=theirs: theirs.endpoint.dial(HERE, now))
        network.run(network.now + 10.0)
        assert isinstance(theirs.handler.events[-1], DialFailed)
    assert ours.handler.events == []
    assert {source for source, _, _ in network.sent} == {THERE}


def test_what_passes_shows_neither_the_message_nor_who_talks() -> None:
    network, low, _ = connected()
    secret = b"the prompt and its answer"
    low.act(lambda now: low.endpoint.send(HIGH, secret * 100, Priority.CONTROL, now))
    network.run(network.now + 1.0)
    everything = b"".join(data for _, _, data in network.sent)
    assert len(everything) > 2500
    for shown in (secret, bytes.fromhex(HIGH), bytes.fromhex(LOW)[8:] + bytes(7) + b"\5"):
        assert shown not in everything


def test_a_recorded_initiation_is_answered_never_again() -> None:
    network, low, high = connected()
    (initiation,) = network.of(DatagramType.INITIATION)
    answers = len(network.of(DatagramType.RESPONSE))
    network.attach(ELSEWHERE, lambda data, source: None)
    for wait_s in (0.0, HALF_OPEN_S + 1.0, 3600.0):
        network.run(network.now + wait_s)
        network.send(initiation, ELSEWHERE, THERE)
        network.send(initiation, HERE, THERE)
        network.run(network.now + 1.0)
    assert len(network.of(DatagramType.RESPONSE)) - answers in (0, 1)  # 1: its keys were renewed
    assert HIGH in low.endpoint.peers()
    assert high.endpoint.peers()[LOW].address == HERE


def test_a_recorded_initiation_of_a_dial_that_never_connected_is_answered_once() -> None:
    network = Wire()
    low, high = host(network, LOW, HERE), host(network, HIGH, THERE)
    network.cut(THERE, HERE)
    low.act(lambda now: low.endpoint.dial(THERE, now))
    network.run(HALF_OPEN_S + 5.0)
    answers = len(network.of(DatagramType.RESPONSE))
    assert answers == 4, "the same answer to each copy while it is half open"
    network.send(network.of(DatagramType.INITIATION)[0], ELSEWHERE, THERE)
    network.run(network.now + 5.0)
    assert len(network.of(DatagramType.RESPONSE)) == answers
    assert high.handler.events == []


def flood(network: SimulatedNetwork, count: int) -> list[bytes]:
    """Initiations of members that exist, as many as one wants."""
    initiations = []
    for number in range(count):
        member = Endpoint(
            Identity(f"{number + 9:032x}", 1), b"k", 100, network.entropy(f"flood {number}")
        )
        member.dial(THERE, network.now)
        ((data, _),) = member.datagrams_to_send(network.now)
        initiations.append(data)
    return initiations


def test_a_flood_is_asked_for_cookies_and_an_honest_dial_comes_through_it() -> None:
    network = Wire(conditions=Conditions(bytes_per_second=1e9, queue_packets=100_000))
    low, high = host(network, LOW, HERE), host(network, HIGH, THERE)
    network.attach(ELSEWHERE, lambda data, source: None)
    rounds = flood(network, 300)
    for number, data in enumerate(rounds):
        network.at(number * 0.001, lambda data=data: network.send(data, ELSEWHERE, THERE))
    network.at(0.2, lambda: low.act(lambda now: low.endpoint.dial(THERE, now)))
    network.run(0.31)
    answered = len([1 for _, to, data in network.sent if to == ELSEWHERE and data[0] == 2])
    assert answered <= HANDSHAKES_PER_S_MAX * 1.31
    assert HIGH in low.endpoint.peers()
    assert LOW in high.endpoint.peers()
    dials = [data for source, _, data in network.sent if source == HERE and data[0] == 1]
    assert [data[16:] for data in dials] == [dials[0][16:]] * 2
    assert dials[0][8:16] == bytes(8)
    assert dials[1][8:16] != bytes(8), "the second time with the cookie"


def test_a_cookie_is_good_for_its_address_and_for_some_minutes_only() -> None:
    from edgellama.link.admission import FloodGuard

    guard = FloodGuard(SimulatedNetwork(7).entropy("x"))
    cookie = guard.cookie(HERE, 0.0)
    for _ in range(HANDSHAKES_PER_S_MAX):
        assert guard.admits(ELSEWHERE, 0, 0.0)
    assert not guard.admits(HERE, 0, 0.0)
    assert not guard.admits(ELSEWHERE, cookie, 0.0)
    assert guard.admits(HERE, cookie, 0.0)
    for later_s, good in ((COOKIE_SECRET_S, True), (2 * COOKIE_SECRET_S + 1, False)):
        while guard.admits(ELSEWHERE, 0, later_s):
            pass
        assert guard.admits(HERE, cookie, later_s) == good


def test_no_answer_is_longer_than_what_it_answers() -> None:
    network, _, _ = connected()
    for data in flood(network, 100):
        for size in (33, 100, 1199, 1200):
            network.send(data[:size], ELSEWHERE, THERE)
    network.attach(ELSEWHERE, lambda data, source: None)
    before = len(network.sent)
    network.run(network.now + 0.5)
    answers = [data for source, to, data in network.sent[before:] if to == ELSEWHERE]
    assert {data[0] for data in answers} == {DatagramType.RESPONSE, DatagramType.COOKIE}
    assert max(map(len, answers)) <= 108
    assert len(answers) <= 100, "one answer for each whole initiation"


def test_a_forged_cookie_or_answer_does_not_disturb_a_dial() -> None:
    network = Wire()
    low, _ = host(network, LOW, HERE), host(network, HIGH, THERE)
    low.act(lambda now: low.endpoint.dial(THERE, now))
    (dial,) = low.endpoint._dials.values()
    for kind in (2, 4):
        for size in (33, 40, 64, 108, 1200):
            forged = bytes([kind, PROTOCOL_VERSION, 0, 0]) + dial.receiver_index.to_bytes(4, "big")
            network.send(forged.ljust(size, b"\7"), THERE, HERE)
    network.run(1.0)
    assert low.handler.events == [Connected(Identity(HIGH, 5), THERE)]


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("by", ["packets", "time"])
def test_keys_are_renewed_under_load_and_no_message_is_lost_or_doubled(
    loss: float, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "packets":
        monkeypatch.setattr(connection_module, "KEYS_PACKETS_MAX", 300)
    else:
        monkeypatch.setattr(connection_module, "KEYS_S", 2.0)
        monkeypatch.setattr(connection_module, "KEYS_S_MAX", 40.0)
    monkeypatch.setattr(connection_module, "KEYS_RETRY_S", 1.0)
    network, low, high = connected(Conditions(loss=loss, reordering=0.2, duplication=0.05))
    network.sent.clear()
    said = [f"{number} ".encode() * 900 for number in range(400)]
    for number, message in enumerate(said):
        for sender, node in ((low, HIGH), (high, LOW)):
            call: Callable[[float], None] = lambda now, s=sender, n=node, m=message: (  # noqa: E731
                s.endpoint.send(n, m, Priority.DECODE, now)
            )
            network.at(1.0 + 0.03 * number, lambda s=sender, c=call: s.act(c))
    network.run(network.now + 40.0)
    for one in (low, high):
        assert sorted(messages(one)) == sorted(said)
        assert sum(isinstance(event, Connected) for event in one.handler.events) == 1
        assert len(one.handler.events) == 1 + len(said)
    renewals = {data[16:48] for data in network.of(DatagramType.INITIATION)}
    assert len(renewals) >= 4
    assert all(source == HERE for source, _, data in network.sent if data[0] == 1)
    indices = {data[4:8] for data in network.of(DatagramType.DATA)}
    assert len(indices) >= 2 * len(renewals)
    numbers = [data[:16] for data in network.of(DatagramType.DATA)]
    assert len(set(numbers)) == len(numbers), "a packet number was used twice"
    now = network.now
    network.run(now + OLD_KEYS_S + 3.0)
    for one in (low, high):
        assert len(one.endpoint._by_index) <= 12, "old keys are forgotten"


def test_packets_under_old_keys_count_for_ten_seconds_more() -> None:
    network, low, high = connected()
    late: list[bytes] = []
    network.cut(THERE, HERE)
    network.cut(HERE, THERE)
    connection = high.endpoint._connections[LOW]
    for _ in range(2):
        connection.send(b"late", Priority.CONTROL, network.now)
        late.extend(connection.datagrams(network.now))
    network.heal()
    low.act(lambda now: low.endpoint.renew_keys(HIGH, now))
    network.run(network.now + 1.0)
    assert len(low.endpoint._by_index) == 2
    network.send(late[0], THERE, HERE)
    network.run(network.now + OLD_KEYS_S - 2.0)
    assert b"late" in messages(low)
    network.run(network.now + 3.0)
    assert len(low.endpoint._by_index) == 1
    assert HIGH in low.endpoint.peers()


def test_without_new_keys_a_connection_ends_at_last(monkeypatch) -> None:
    monkeypatch.setattr(connection_module, "KEYS_S", 10.0)
    monkeypatch.setattr(connection_module, "KEYS_S_MAX", 20.0)
    network, low, high = connected()
    low.endpoint._begin = lambda *_: None
    network.run(60.0)
    assert [event.reason for event in low.handler.events[1:]] == ["its keys could not be renewed"]
    assert low.endpoint.peers() == {}
    assert high.endpoint.peers() == {}


def test_a_changed_mesh_key_keeps_connections_and_shuts_out_the_old_key() -> None:
    network, low, high = connected()
    for one in (low, high):
        one.endpoint.set_mesh_key(b"new")
    old = host(network, "2" * 32, ELSEWHERE, b"k")
    old.act(lambda now: old.endpoint.dial(HERE, now))
    low.act(lambda now: low.endpoint.send(HIGH, b"still", Priority.CONTROL, now))
    network.run(network.now + 5.0)
    assert messages(high) == [b"still"]
    assert [type(event) for event in old.handler.events] == [DialFailed]
    old.endpoint.set_mesh_key(b"new")
    old.act(lambda now: old.endpoint.dial(HERE, now))
    network.run(network.now + 5.0)
    assert LOW in old.endpoint.peers()


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_new_keys_asked_for_before_the_last_ones_were_used_renew_the_same_connection(
    lost: int,
) -> None:
    """The second question names keys that the responder has not seen a packet under."""
    network, low, high = connected()
    low.act(lambda now: low.endpoint.renew_keys(HIGH, now))
    while len(network.of(DatagramType.RESPONSE)) < 2:
        network.run(network.now + 0.0001)
    network.cut(HERE, THERE)  # what would confirm the first keys is lost
    network.run(network.now + 0.01 * lost)
    network.heal()
    low.act(lambda now: low.endpoint.renew_keys(HIGH, now))
    for number in range(20):
        for sender, node in ((low, HIGH), (high, LOW)):
            body = f"{number}".encode() * 1000
            sender.act(lambda now, s=sender, n=node, b=body: s.endpoint.send(n, b, 1, now))
        network.run(network.now + 1.0)
    for one in (low, high):
        assert len(messages(one)) == 20
        assert [type(event) for event in one.handler.events].count(Connected) == 1
        assert len(one.handler.events) == 21, "and nothing has ended"


def test_a_question_for_new_keys_of_a_connection_that_is_gone_is_not_answered() -> None:
    network, low, _ = connected()
    connection = low.endpoint._connections[HIGH]
    connection.peer_index ^= 1
    answers = len(network.of(DatagramType.RESPONSE))
    low.act(lambda now: low.endpoint.renew_keys(HIGH, now))
    network.run(network.now + 5.0)
    assert len(network.of(DatagramType.RESPONSE)) == answers
