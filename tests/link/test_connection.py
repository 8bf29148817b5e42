"""One connection's timing, order and limits, on a simulated network."""

from __future__ import annotations

import pytest

from edgellama.link.endpoint import (
    Connected,
    Disconnected,
    Event,
    Identity,
    MessageReceived,
    Priority,
)
from edgellama.link.sending import URGENT_EXCESS_PACKETS
from edgellama.testing.network import (
    Conditions,
    RecordingHandler,
    SimulatedHost,
    SimulatedNetwork,
)
from edgellama.values import Address

A, B = "a" * 32, "b" * 32
HERE, THERE = Address("10.0.0.1", 7711), Address("10.0.0.2", 7711)


class Times(RecordingHandler):
    """Also notes when each event came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def handle_event(self, event: Event, now: float) -> None:
        super().handle_event(event, now)
        self.times.append(now)


def connected(
    conditions: Conditions | None = None, seed: int = 3, window_packets: int = 166
) -> tuple[SimulatedNetwork, SimulatedHost, SimulatedHost]:
    network = SimulatedNetwork(seed, conditions or Conditions(jitter_s=0.0))
    here = SimulatedHost(network, Identity(A, 1), HERE, window_packets=window_packets)
    there = SimulatedHost(network, Identity(B, 1), THERE, window_packets=window_packets)
    here.handler, there.handler = Times(), Times()
    here.act(lambda now: here.endpoint.dial(THERE, now))
    network.run(0.5)
    assert isinstance(there.handler.events[0], Connected)
    return network, here, there


def say(host: SimulatedHost, node: str, message: bytes, priority: Priority) -> None:
    host.act(lambda now: host.endpoint.send(node, message, priority, now))


def messages(host: SimulatedHost) -> list[bytes]:
    return [event.message for event in host.handler.events if isinstance(event, MessageReceived)]


def test_an_urgent_message_overtakes_a_large_one() -> None:
    network, here, there = connected()
    say(here, B, b"b" * 1_000_000, Priority.BULK)
    network.run(network.now + 0.05)
    say(here, B, b"p" * 4000, Priority.PREFILL)
    say(here, B, b"d" * 4000, Priority.DECODE)
    network.run(network.now + 5.0)
    assert [message[:1] for message in messages(there)] == [b"d", b"p", b"b"]


class Sampling(Times):
    """Answers bulk with a word and requests in full; asks on, and transfers on, without end."""

    def __init__(self, network: SimulatedNetwork, host: SimulatedHost, peer: str) -> None:
        super().__init__()
        self.round_trips: list[float] = []
        self.bulk_bytes = 0
        self._network, self._host, self._peer = network, host, peer
        self._asked_at = 0.0

    def ask(self) -> None:
        self._asked_at = self._network.now
        say(self._host, self._peer, REQUEST, Priority.DECODE)

    def handle_event(self, event: Event, now: float) -> None:
        if not isinstance(event, MessageReceived):
            return
        send = self._host.endpoint.send
        if event.message == b"next":
            send(self._peer, BULK, Priority.BULK, now)
        elif len(event.message) == len(BULK):
            self.bulk_bytes += len(BULK)
            send(self._peer, b"next", Priority.CONTROL, now)
        elif event.message == REQUEST:
            send(self._peer, REPLY, Priority.DECODE, now)
        else:
            self.round_trips.append(self._network.now - self._asked_at)
            # Not in step with anything that the link does.
            pause_s = 0.02 + 0.01 * (0.618 * len(self.round_trips) % 1)
            self._network.at(self._network.now + pause_s, self.ask)


REQUEST, REPLY, BULK = b"q" * 4096, b"r" * 4096, bytes(1 << 20)


def sampled(conditions: Conditions, *, beside: bool) -> tuple[list[float], float]:
    """Return 200 round trips by length, and the bytes of a transfer beside them in a second."""
    network, here, there = connected(conditions, window_packets=2048)
    asking = here.handler = Sampling(network, here, B)
    answering = there.handler = Sampling(network, there, A)
    start = network.now
    if beside:
        for _ in range(2):  # the next one waits already when one has come
            say(here, B, BULK, Priority.BULK)
        network.run(start + 0.5)  # until the window has found its size
        answering.bulk_bytes, start = 0, network.now
    asking.ask()
    assert network.run(start + 60.0, lambda: len(asking.round_trips) == 200)
    return sorted(asking.round_trips), answering.bulk_bytes / (network.now - start)


@pytest.mark.parametrize(
    ("delay_s", "bytes_per_second"),
    [(0.0002, 6.25e6), (0.0005, 6.25e6), (0.0015, 6.25e6), (0.005, 6.25e6), (0.0002, 25e6)],
)
def test_decode_beside_bulk_takes_less_than_twice_its_time_and_leaves_bulk_the_path(
    delay_s: float, bytes_per_second: float
) -> None:
    conditions = Conditions(delay_s, 0.0, bytes_per_second=bytes_per_second, queue_packets=1000)
    alone, _ = sampled(conditions, beside=False)
    beside, bulk_bytes_per_second = sampled(conditions, beside=True)
    assert beside[100] < 2 * alone[100]
    assert beside[198] < 2 * alone[198], "the 99th percentile"
    assert bulk_bytes_per_second > 0.7 * bytes_per_second


def test_no_more_is_in_flight_than_the_peers_buffer_holds() -> None:
    window = 20
    conditions = Conditions(delay_s=0.1, jitter_s=0.0, bytes_per_second=1e9, queue_packets=10**6)
    network, here, there = connected(conditions, window_packets=window)
    in_flight = peak = 0

    def arrives(data: bytes, source: Address) -> None:
        nonlocal in_flight
        in_flight -= 1
        there._receive(data, source)

    network.attach(THERE, arrives)
    send = network.send

    def leaves(data: bytes, source: Address, to: Address) -> None:
        nonlocal in_flight, peak
        if to == THERE:
            in_flight += 1
            peak = max(peak, in_flight)
        send(data, source, to)

    network.send = leaves  # type: ignore[method-assign]
    say(here, B, bytes(500_000), Priority.PREFILL)
    network.run(60.0)
    assert messages(there) == [bytes(500_000)]
    assert window - 1 <= peak <= window


def test_a_full_window_does_not_hold_up_decode_but_is_exceeded_by_a_bounded_count() -> None:
    network, here, _there = connected(window_packets=20)
    network.cut(HERE, THERE)
    sent = 0
    send = network.send

    def leaves(data: bytes, source: Address, to: Address) -> None:
        nonlocal sent
        sent += source == HERE
        send(data, source, to)

    network.send = leaves  # type: ignore[method-assign]
    say(here, B, bytes(1_000_000), Priority.PREFILL)
    assert sent == 20
    say(here, B, bytes(4096), Priority.DECODE)
    assert sent == 23
    for _ in range(50):
        say(here, B, bytes(4096), Priority.DECODE)
    assert sent == 20 + URGENT_EXCESS_PACKETS


def test_the_reply_carries_the_acknowledgement() -> None:
    network, here, there = connected()
    say(here, B, bytes(4096), Priority.DECODE)
    network.run(network.now + 0.5)
    say(there, A, bytes(4096), Priority.DECODE)
    network.run(network.now + 0.5)

    class Echo(Times):
        def handle_event(self, event: Event, now: float) -> None:
            super().handle_event(event, now)
            if isinstance(event, MessageReceived):
                there.endpoint.send(A, event.message, Priority.DECODE, now)

    there.handler = Echo()
    before = there.endpoint.counters(A)
    say(here, B, bytes(4096), Priority.DECODE)
    network.run(network.now + 0.02)
    assert messages(here)[-1] == bytes(4096)
    assert (there.endpoint.counters(A) - before).packets_sent == 3


def test_small_messages_share_a_datagram() -> None:
    network, here, there = connected()
    before = here.endpoint.counters(B)

    def many(now: float) -> None:
        for number in range(40):
            here.endpoint.send(B, bytes([number]), Priority.CONTROL, now)

    here.act(many)
    network.run(network.now + 0.1)
    assert messages(there) == [bytes([number]) for number in range(40)]
    assert (here.endpoint.counters(B) - before).packets_sent == 1


def test_a_lost_tail_is_probed_soon_and_as_a_whole() -> None:
    network, here, there = connected()
    network.cut(HERE, THERE)
    start = network.now
    say(here, B, bytes(4096), Priority.DECODE)
    network.at(start + 0.005, network.heal)
    network.run(start + 2.0)
    assert messages(there) == [bytes(4096)]
    assert there.handler.times[-1] - start < 0.05
    assert here.endpoint.counters(B).packets_retransmitted == 3


def test_an_idle_connection_lives_and_says_little() -> None:
    network, here, there = connected()
    before = network.delivered
    network.run(network.now + 60.0)
    assert len(here.handler.events) == len(there.handler.events) == 1
    assert network.delivered - before <= 4 * 60
    assert network.now - here.endpoint.peers()[B].silent_since < 2.0


def test_silence_with_a_message_under_way_ends_the_connection_in_three_seconds() -> None:
    network, here, there = connected()
    network.cut(THERE, HERE)
    start = network.now
    say(here, B, b"anyone?", Priority.CONTROL)
    network.run(start + 20.0)
    (ended,) = (event for event in here.handler.events if isinstance(event, Disconnected))
    assert ended.node == B
    assert 3.0 <= here.handler.times[-1] - start < 4.0
    # The other direction worked: the peer was told, and had the message once.
    assert there.handler.events[1:] == [
        MessageReceived(A, b"anyone?"),
        Disconnected(A, "it no longer hears this device"),
    ]


def test_slow_round_trips_do_not_hide_a_death_for_minutes() -> None:
    """A stalled radio stretches probe timeouts, and with them the patience; found by fuzzing."""
    network, here, there = connected()
    network.set_conditions(Conditions(delay_s=1.4, jitter_s=0.0))
    for _ in range(4):
        say(here, B, b"late", Priority.CONTROL)
        network.run(network.now + 4.0)
    assert (here.endpoint.peers()[B].round_trip_s or 0.0) > 0.5
    there.crash()
    say(here, B, b"more", Priority.CONTROL)
    network.run(network.now + 60.0)
    last = here.handler.events[-1]
    assert isinstance(last, Disconnected)
    # 8 s from the message on, which waits since a ping was answered
    assert float(last.reason.split()[-2]) < 12.0


def test_silence_alone_ends_the_connection_later() -> None:
    network, here, there = connected()
    start = network.now
    there.crash()
    network.run(start + 60.0)
    (ended,) = (event for event in here.handler.events if isinstance(event, Disconnected))
    assert "nothing came from it for 8." in ended.reason
    assert 7.0 <= here.handler.times[-1] - start < 9.0
    assert here.endpoint.peers() == {}
    assert here.endpoint.next_timer() is None, "nothing is left to wait for"


def test_a_pause_shorter_than_that_loses_nothing() -> None:
    network, here, there = connected()
    network.cut(HERE, THERE)
    network.cut(THERE, HERE)
    start = network.now
    say(here, B, bytes(300_000), Priority.PREFILL)
    say(there, A, b"reply", Priority.CONTROL)
    network.at(start + 2.5, network.heal)
    network.run(start + 20.0)
    assert messages(there) == [bytes(300_000)]
    assert messages(here) == [b"reply"]


def test_what_a_peer_does_not_take_does_not_grow_without_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgellama.link.outbox.QUEUED_BYTES_MAX", 10_000)
    network, here, there = connected()
    network.cut(THERE, HERE)
    say(here, B, bytes(6_000), Priority.BULK)
    assert len(here.handler.events) == 1
    say(here, B, bytes(6_000), Priority.BULK)
    assert here.handler.events[1:] == [Disconnected(B, "it takes messages too slowly")]
    network.run(network.now + 1.0)
    assert isinstance(there.handler.events[-1], Disconnected)
