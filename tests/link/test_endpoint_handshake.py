"""Dials, answers, lives of a node and addresses, on a simulated network."""

from __future__ import annotations

import pytest

from edgellama.link.connection import CLOSE_REASONS
from edgellama.link.endpoint import (
    Connected,
    DialFailed,
    Disconnected,
    Endpoint,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.link.handshake import DIAL_TIMEOUT_S, HALF_OPEN_S
from edgellama.testing.network import (
    Conditions,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.values import Address
from edgellama.wire.frames import CloseCode

LOW, HIGH = "0" * 31 + "1", "f" * 32
HERE, THERE, ELSEWHERE = (
    Address("10.0.0.1", 7711),
    Address("10.0.0.2", 7711),
    Address("10.0.0.3", 9),
)


class Host(SimulatedHost):
    """A host with its events at hand."""

    def __init__(self, network: SimulatedNetwork, identity: Identity, address: Address, key=b"k"):
        super().__init__(network, identity, address, key)
        self.handler = RecordingHandler()

    @property
    def events(self) -> list[object]:
        return self.handler.events

    def dial(self, address: Address) -> None:
        self.act(lambda now: self.endpoint.dial(address, now))

    def say(self, node: str, message: bytes) -> None:
        self.act(lambda now: self.endpoint.send(node, message, Priority.CONTROL, now))

    def heard(self) -> list[bytes]:
        return [event.message for event in self.events if isinstance(event, MessageReceived)]


def pair(
    seed: int = 1, conditions: Conditions | None = None
) -> tuple[SimulatedNetwork, Host, Host]:
    network = SimulatedNetwork(seed, conditions)
    return network, Host(network, Identity(LOW, 5), HERE), Host(network, Identity(HIGH, 5), THERE)


def test_both_sides_learn_of_one_dial() -> None:
    network, low, high = pair()
    low.dial(THERE)
    low.dial(THERE)
    network.run(1.0)
    assert low.events == [Connected(Identity(HIGH, 5), THERE)]
    assert high.events == [Connected(Identity(LOW, 5), HERE)]
    (info,) = low.endpoint.peers().values()
    assert info.identity == Identity(HIGH, 5)
    assert info.round_trip_s is not None
    low.say(HIGH, b"there")
    high.say(LOW, b"and back")
    network.run(2.0)
    assert high.heard() == [b"there"]
    assert low.heard() == [b"and back"]


def test_a_guest_is_known_as_one() -> None:
    network = SimulatedNetwork(1)
    guest = Host(network, Identity(LOW, 5, guest=True), HERE)
    member = Host(network, Identity(HIGH, 5), THERE)
    guest.dial(THERE)
    network.run(1.0)
    assert member.events == [Connected(Identity(LOW, 5, guest=True), HERE)]
    assert guest.events == [Connected(Identity(HIGH, 5), THERE)]


@pytest.mark.parametrize("seed", range(60))
def test_dialling_each_other_at_once_makes_exactly_one_connection(seed: int) -> None:
    conditions = Conditions(loss=0.2 if seed % 3 else 0.0, duplication=0.2, reordering=0.3)
    network, low, high = pair(seed, conditions)
    low.dial(THERE)
    network.at(0.0005 * (seed % 7), lambda: high.dial(HERE))
    network.run(DIAL_TIMEOUT_S + 1.0)
    for host in (low, high):  # a lost handshake is for the layer above to try again
        if not host.endpoint.peers():
            host.dial(THERE if host is low else HERE)
    network.run(2 * DIAL_TIMEOUT_S + 2.0)
    network.set_conditions(Conditions())
    low.say(HIGH, b"one")
    high.say(LOW, b"two")
    network.run(network.now + HALF_OPEN_S + 5.0)
    made = [event for event in low.events if isinstance(event, Connected)]
    assert made == [Connected(Identity(HIGH, 5), THERE)]
    made = [event for event in high.events if isinstance(event, Connected)]
    assert made == [Connected(Identity(LOW, 5), HERE)]
    for host in (low, high):
        assert not any(isinstance(event, Disconnected) for event in host.events)
    assert (low.heard(), high.heard()) == ([b"two"], [b"one"])


@pytest.mark.parametrize("seed", range(20))
def test_two_addresses_of_one_node_make_one_connection(seed: int) -> None:
    network, low, high = pair(seed, Conditions(loss=0.1, reordering=0.5))
    network.attach(ELSEWHERE, lambda data, source: high._receive(data, source))
    low.dial(THERE)
    low.dial(ELSEWHERE)
    high.dial(HERE)
    network.run(10.0)
    network.set_conditions(Conditions())
    network.run(30.0)
    assert sum(isinstance(event, Connected) for event in low.events) == 1
    assert sum(isinstance(event, Connected) for event in high.events) == 1
    assert not any(isinstance(event, Disconnected) for event in low.events + high.events)


def test_dialling_a_peer_again_changes_nothing() -> None:
    network, low, high = pair()
    low.dial(THERE)
    network.run(1.0)
    for _ in range(3):
        low.dial(THERE)
        high.dial(HERE)
        network.run(network.now + 5.0)
    assert len(low.events) == len(high.events) == 1


@pytest.mark.parametrize("seed", range(20))
def test_dialling_again_before_the_first_packet_has_come_changes_nothing(seed: int) -> None:
    """As a guest does that hears of one member twice."""
    network, low, high = pair(seed, Conditions(loss=0.2, reordering=0.3))
    network.attach(ELSEWHERE, lambda data, source: high._receive(data, source))
    low.dial(THERE)

    class Again(RecordingHandler):
        def handle_event(self, event: object, now: float) -> None:
            super().handle_event(event, now)
            if isinstance(event, Connected):
                low.endpoint.dial(THERE, now)
                low.endpoint.dial(ELSEWHERE, now + 1e-9)

    low.handler = Again()
    network.run(10.0)
    for host in (low, high):
        assert not any(isinstance(event, Disconnected) for event in host.events)
    assert sum(isinstance(event, Connected) for event in low.events) <= 1


def test_no_answer_is_a_failed_dial_after_its_time() -> None:
    network, low, _ = pair()
    sent: list[tuple[float, int]] = []
    network.attach(ELSEWHERE, lambda data, source: sent.append((round(network.now, 2), len(data))))
    low.dial(ELSEWHERE)
    network.run(DIAL_TIMEOUT_S - 0.1)
    assert low.events == []
    network.run(DIAL_TIMEOUT_S + 0.1)
    assert low.events == [DialFailed(ELSEWHERE, "no answer")]
    network.run(60.0)
    assert sent == [(0.0, 1200), (0.25, 1200), (0.75, 1200), (1.75, 1200)]


def test_another_mesh_gets_silence() -> None:
    network = SimulatedNetwork(1)
    ours = Host(network, Identity(LOW, 5), HERE, key=b"ours")
    for key in (b"theirs", b""):
        theirs = Host(network, Identity(HIGH, 5), THERE, key=key)
        ours.dial(THERE)
        network.run(network.now + 5.0)
        assert ours.events[-1] == DialFailed(THERE, "no answer")
        assert theirs.events == []
        assert theirs.endpoint.total_counters().bytes_sent == 0


def test_another_version_is_named_as_a_possible_reason() -> None:
    network, low, _ = pair()
    low.dial(ELSEWHERE)
    network.send(bytes([2, 9]) + bytes(98), ELSEWHERE, HERE)
    network.run(5.0)
    assert low.events == [DialFailed(ELSEWHERE, "it may run another version of edgellama")]


def test_dialling_oneself_fails_at_once_and_a_copied_identity_is_named() -> None:
    network, low, _ = pair()
    low.dial(HERE)
    network.run(0.1)
    assert low.events == [DialFailed(HERE, "that is this device itself")]
    copy = Host(network, Identity(LOW, 6), ELSEWHERE)
    copy.dial(HERE)
    network.run(5.0)
    assert [type(event) for event in copy.events] == [DialFailed]
    assert low.events[1:] == []


def test_a_new_life_of_a_node_voids_the_old_connection() -> None:
    network, low, high = pair()
    low.dial(THERE)
    network.run(1.0)
    high.crash()
    reborn = Host(network, Identity(HIGH, 6), THERE)
    reborn.dial(HERE)
    network.run(2.0)
    assert low.events[1:] == [
        Disconnected(HIGH, "it started anew"),
        Connected(Identity(HIGH, 6), THERE),
    ]
    low.say(HIGH, b"hello again")
    network.run(3.0)
    assert reborn.heard() == [b"hello again"]


def test_a_node_is_told_of_another_with_its_identity_that_started_later() -> None:
    network, low, high = pair()
    low.dial(THERE)
    network.run(1.0)
    copy = Host(network, Identity(HIGH, 6), ELSEWHERE)
    copy.dial(HERE)
    network.run(2.0)
    assert high.events[1:] == [Disconnected(LOW, CLOSE_REASONS[CloseCode.REPLACED])]
    assert copy.events == [Connected(Identity(LOW, 5), HERE)]


def test_an_older_life_of_a_node_is_ignored() -> None:
    network, low, high = pair()
    low.dial(THERE)
    network.run(1.0)
    ghost = Host(network, Identity(HIGH, 4), ELSEWHERE)
    ghost.dial(HERE)
    network.run(5.0)
    assert [type(event) for event in ghost.events] == [DialFailed]
    high.act(lambda now: high.endpoint.disconnect(LOW, now))
    network.run(6.0)
    assert low.events[1:] == [Disconnected(HIGH, "it left", left=True)]
    ghost.dial(HERE)
    low.dial(ELSEWHERE)
    network.run(12.0)
    assert not any(isinstance(event, Connected) for event in low.events[1:] + ghost.events)


def test_a_peer_that_lost_the_connection_may_have_a_new_one() -> None:
    network, low, high = pair()
    low.dial(THERE)
    network.run(1.0)
    network.cut(THERE, HERE)
    network.cut(HERE, THERE)
    high.act(lambda now: high.endpoint.disconnect(LOW, now))
    network.run(2.0)
    network.heal()
    high.dial(HERE)
    network.run(3.0)
    assert low.events[1:] == [
        Disconnected(HIGH, "it lost the connection"),
        Connected(Identity(HIGH, 5), THERE),
    ]
    low.say(HIGH, b"as before")
    network.run(4.0)
    assert high.heard() == [b"as before"]


def test_a_replayed_handshake_does_not_disturb_a_connection() -> None:
    network, low, high = pair()
    recorded: list[bytes] = []
    network.attach(THERE, lambda data, source: (recorded.append(data), high._receive(data, source)))
    low.dial(THERE)
    network.run(1.0)
    for data in recorded:
        network.send(data, ELSEWHERE, THERE)
    network.run(60.0)
    for data in recorded:
        network.send(data, ELSEWHERE, THERE)
    low.say(HIGH, b"still here")
    network.run(61.0)
    assert len(low.events) == 1
    assert high.events[1:] == [MessageReceived(LOW, b"still here")]
    assert high.endpoint.peers()[LOW].address == HERE


def test_a_peer_that_moves_is_followed() -> None:
    network, low, high = pair()
    low.dial(THERE)
    network.run(1.0)
    high.move(ELSEWHERE)
    high.say(LOW, b"from elsewhere")
    network.run(2.0)
    assert low.endpoint.peers()[HIGH].address == ELSEWHERE
    low.say(HIGH, b"found you")
    network.run(3.0)
    assert high.heard() == [b"found you"]
    assert [type(event) for event in low.events] == [Connected, MessageReceived]


def test_leaving_is_told_at_once_and_what_is_not_connected_cannot_be_sent_to() -> None:
    network, low, high = pair()
    with pytest.raises(KeyError):
        low.say(HIGH, b"too early")
    with pytest.raises(KeyError):
        low.endpoint.counters(HIGH)
    low.dial(THERE)
    network.run(1.0)
    sent = low.endpoint.counters(HIGH)
    assert sent.bytes_sent > 0
    low.act(lambda now: low.endpoint.disconnect(HIGH, now))
    network.run(1.1)
    assert high.events[1:] == [Disconnected(LOW, "it left", left=True)]
    assert len(low.events) == 1
    low.act(lambda now: low.endpoint.disconnect(HIGH, now))
    with pytest.raises(KeyError):
        low.say(HIGH, b"too late")
    total = low.endpoint.total_counters()
    assert total.bytes_sent > sent.bytes_sent, "what is over still counts"


def test_the_number_of_dials_and_half_open_connections_is_bounded() -> None:
    network, low, high = pair()
    for port in range(1, 600):
        low.dial(Address("10.1.0.1", port))
    failed = [event for event in low.events if isinstance(event, DialFailed)]
    assert len(failed) == 599 - 512
    network.run(4.0)
    for number in range(200):  # answered, but never confirmed
        guest = Endpoint(Identity(f"{number:032x}", 1), b"k", 100, network.entropy(str(number)))
        guest.dial(THERE, network.now)
        ((initiation, _),) = guest.datagrams_to_send(network.now)
        high._receive(initiation, ELSEWHERE)
    low.dial(THERE)
    network.run(5.0)
    assert HIGH in low.endpoint.peers()


def test_a_dial_that_is_never_confirmed_is_forgotten() -> None:
    network, low, high = pair()
    network.cut(THERE, HERE)
    low.dial(THERE)
    network.run(DIAL_TIMEOUT_S + HALF_OPEN_S + 1.0)
    assert low.events == [DialFailed(THERE, "no answer")]
    assert high.events == []
    assert low.endpoint.next_timer() is None
    assert high.endpoint.next_timer() is None
