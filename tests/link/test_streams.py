"""Links over TCP: the same events, lives and silence as over datagrams."""

from __future__ import annotations

import random

import pytest
from stream_hosts import ELSEWHERE, HERE, KEY, THERE, A, B, Net, dial, ends, events, messages, say

from edgellama.link import stream_connection
from edgellama.link.endpoint import Connected, DialFailed, Identity, Priority
from edgellama.link.outbox import QUEUED_BYTES_MAX
from edgellama.link.stream_connection import GIVE_UP_S
from edgellama.link.streams import CloseStream, Streams
from edgellama.values import Address
from edgellama.wire.stream import STREAM_GREETING


def test_messages_of_every_size_arrive_once_each_way() -> None:
    net = Net()
    here, there = net.pair()
    dice = random.Random(1)
    sizes = [0, 1, 100, 16_000, 16_384, 16_385, 70_000, 1_000_000]
    sent = [dice.randbytes(size) for size in sizes]
    for message in sent:
        say(here, B, message, Priority(dice.randrange(4)))
        say(there, A, message[::-1], Priority(dice.randrange(4)))
    net.run(5.0)
    assert sorted(messages(there)) == sorted(sent)
    assert sorted(messages(here)) == sorted(message[::-1] for message in sent)
    assert here.links.unfinished() == there.links.unfinished() == 0


def test_a_small_urgent_message_overtakes_a_large_one_under_way() -> None:
    net = Net()
    here, there = net.pair()
    say(here, B, b"b" * 3_000_000, Priority.BULK)
    net.run(0.01)
    say(here, B, b"p" * 20_000, Priority.PREFILL)
    say(here, B, b"d" * 20_000, Priority.DECODE)
    say(here, B, b"c", Priority.CONTROL)
    net.run(5.0)
    assert [message[:1] for message in messages(there)] == [b"c", b"d", b"p", b"b"]


def test_messages_of_one_priority_keep_their_order() -> None:
    net = Net()
    here, there = net.pair()
    sent = [bytes([number]) * 30_000 for number in range(20)]
    for message in sent:
        say(here, B, message, Priority.DECODE)
    net.run(5.0)
    assert messages(there) == sent


def test_an_idle_connection_stays() -> None:
    net = Net()
    here, there = net.pair()
    net.run(100.0)
    assert ends(here) == ends(there) == []
    assert (here.links.peers()[B].round_trip_s or 1.0) == pytest.approx(0.004, abs=0.001)


def test_silence_ends_a_connection_and_a_message_under_way_ends_it_sooner() -> None:
    net = Net()
    here, there = net.pair()
    net.pipes.blocked.add(HERE)
    began = net.network.now
    net.network.run(began + 30.0, lambda: bool(ends(there)))
    assert 6.9 < net.network.now - began < 8.1
    assert "nothing came from it for" in ends(there)[0].reason
    net = Net()
    here, there = net.pair()
    net.pipes.blocked.add(THERE)
    began = net.network.now
    say(here, B, b"hello", Priority.DECODE)
    net.network.run(began + 30.0, lambda: bool(ends(here)))
    assert net.network.now - began == pytest.approx(GIVE_UP_S, abs=0.1)
    assert not ends(here)[0].left


def test_a_crashed_peer_is_missed_and_its_next_life_is_let_in() -> None:
    net = Net()
    here, there = net.pair()
    there.crash()
    again = net.host(B, THERE, incarnation=2)
    dial(again, HERE)
    net.run(1.0)
    assert [type(event).__name__ for event in events(here)] == [
        *("Connected", "Disconnected", "Connected")
    ]
    assert ends(here)[0].reason == "it started anew"
    connected = events(here)[-1]
    assert isinstance(connected, Connected)
    assert connected.identity == Identity(B, 2)
    say(again, A, b"new", Priority.CONTROL)
    net.run(1.0)
    assert messages(here) == [b"new"]


def test_an_earlier_life_is_let_in_no_more() -> None:
    net = Net()
    here = net.host(A, HERE)
    late = net.host(B, THERE, incarnation=2)
    dial(late, HERE)
    net.run(1.0)
    early = net.host(B, ELSEWHERE, incarnation=1)
    dial(early, HERE)
    dial(here, ELSEWHERE)
    net.run(5.0)
    assert [type(event) for event in events(here)] == [Connected]
    assert not [event for event in events(early) if isinstance(event, Connected)]


def test_leaving_is_told() -> None:
    net = Net()
    here, there = net.pair()
    here.act(lambda now: here.links.disconnect(B, now))
    net.run(0.1)
    assert ends(there)[0].left
    assert ends(there)[0].reason == "it left"
    assert ends(here) == []
    assert here.links.peers() == there.links.peers() == {}


def test_both_dialling_at_once_leaves_one_connection() -> None:
    for delay in (0.0, 0.001, 0.003, 0.005, 0.007):
        net = Net()
        here, there = net.host(A, HERE), net.host(B, THERE)
        dial(here, THERE)
        net.run(delay)
        dial(there, HERE)
        net.run(2.0)
        for host, node in ((here, B), (there, A)):
            assert list(host.links.peers()) == [node]
            assert ends(host) == []
        say(here, B, b"one", Priority.CONTROL)
        say(there, A, b"two", Priority.CONTROL)
        net.run(1.0)
        assert (messages(there), messages(here)) == ([b"one"], [b"two"])
        assert len(here.streams._streams) == len(there.streams._streams) == 1


def test_a_peer_that_lost_its_side_is_let_in_again() -> None:
    net = Net()
    here, there = net.pair()
    (stream,) = there.streams._streams
    net.pipes.blocked.add(HERE)
    there.act(lambda now: there.streams.broken(stream, "reset", now))
    net.pipes.blocked.clear()  # here still believes in it
    dial(there, HERE)
    net.run(1.0)
    assert [end.reason for end in ends(here)] == ["it lost the connection"]
    say(here, B, b"again", Priority.CONTROL)
    net.run(0.5)
    assert messages(there) == [b"again"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda net: net.host(B, THERE, key=b"other"), "it was closed without an answer"),
        (lambda net: net.pipes.refusing.add(THERE), "connection refused"),
        (lambda net: net.pipes.blocked.add(THERE), "no answer"),
        (lambda net: net.host(A, THERE), "another mesh"),
    ],
    ids=["another mesh", "refused", "nothing answers", "the same identity"],
)
def test_a_dial_that_fails_says_why(prepare, words: str) -> None:  # type: ignore[no-untyped-def]
    net = Net()
    here = net.host(A, HERE)
    prepare(net)
    dial(here, THERE)
    net.run(4.0)
    (failed,) = events(here)
    assert isinstance(failed, DialFailed)
    assert failed.address == THERE
    assert words in failed.reason
    assert here.streams._streams == {}


def test_a_device_that_dials_itself_is_told() -> None:
    net = Net()
    here = net.host(A, HERE)
    dial(here, HERE)
    net.run(1.0)
    (failed,) = events(here)
    assert isinstance(failed, DialFailed)
    assert failed.reason == "that is this device itself"


def test_far_too_many_messages_end_the_connection() -> None:
    net = Net()
    here, _ = net.pair()
    net.pipes.blocked.add(THERE)
    for _ in range(QUEUED_BYTES_MAX // (60 << 20) + 1):
        say(here, B, bytes(60 << 20), Priority.BULK)
    assert ends(here)[0].reason == "it takes messages too slowly"


def test_keys_are_renewed_inside_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_connection, "KEYS_S", 20.0)
    net = Net()
    here, there = net.pair()
    first = here.streams.peers()[B]._sealing, there.streams.peers()[A]._sealing
    sent = []
    for number in range(60):
        message = bytes([number]) * 40_000
        sent.append(message)
        say(here, B, message, Priority.BULK)
        say(there, A, message, Priority.BULK)
        net.run(1.0)
    assert messages(there) == messages(here) == sent
    assert ends(here) == ends(there) == []
    last = here.streams.peers()[B]._sealing, there.streams.peers()[A]._sealing
    assert first[0] is not last[0]
    assert first[1] is not last[1]


def test_keys_too_old_end_the_connection_where_the_mesh_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_connection, "KEYS_S", 20.0)
    monkeypatch.setattr(stream_connection, "KEYS_S_MAX", 50.0)
    net = Net()
    here, there = net.pair()
    there.act(lambda now: there.links.set_mesh_key(b"changed"))
    net.run(49.0)
    assert ends(here) == ends(there) == []
    net.run(5.0)
    assert any("keys could not be renewed" in end.reason for end in (*ends(here), *ends(there)))


class Wire:
    """One end alone, with bytes by hand."""

    def __init__(self, key: bytes = KEY, node: str = B) -> None:
        dice = random.Random(node)
        self.streams = Streams(Identity(node, 1), key, dice.randbytes)
        self.now = 0.0

    def accept(self) -> int:
        stream = self.streams.accept("10.0.0.9", self.now)
        assert stream is not None
        return stream

    def said(self, stream: int) -> bytes:
        data = b""
        while piece := self.streams.next_data(stream):
            data += piece
        return data

    def is_closed(self, stream: int) -> bool:
        wishes = []
        while (wish := self.streams.next_wish()) is not None:
            wishes.append(wish)
        return CloseStream(stream) in wishes


def opening(asker: Wire) -> tuple[int, bytes]:
    """Return what an asker says first, without the greeting that the server has read."""
    asker.streams.dial(THERE, 0.0)
    wish = asker.streams.next_wish()
    assert wish is not None
    asker.streams.opened(wish.stream, 0.0)
    said = asker.said(wish.stream)
    assert said.startswith(STREAM_GREETING)
    return wish.stream, said[len(STREAM_GREETING) :]


def test_strangers_get_not_one_byte() -> None:
    """Every length cut, every bit turned, another key: silence, and the end of the socket."""
    _, said = opening(Wire(node=A))
    _, foreign = opening(Wire(key=b"other", node=A))
    for junk in [b"", foreign, bytes(len(said)), said[:-1], b"\xff\xff" + bytes(600)]:
        victim = Wire()
        stream = victim.accept()
        victim.streams.receive(stream, junk, 0.0)
        assert victim.said(stream) == b""
        victim.streams.handle_timer(10.1)
        assert victim.is_closed(stream)
        assert victim.streams.next_event() is None
    for bit in range(0, 8 * len(said), 3):
        turned = bytearray(said)
        turned[bit // 8] ^= 1 << bit % 8
        victim = Wire()
        stream = victim.accept()
        victim.streams.receive(stream, bytes(turned), 0.0)
        assert victim.said(stream) == b""
        victim.streams.handle_timer(10.1)
        assert victim.is_closed(stream)


def test_a_recorded_opening_is_answered_once() -> None:
    _, said = opening(Wire(node=A))
    victim = Wire()
    first, second = victim.accept(), victim.accept()
    victim.streams.receive(first, said, 0.0)
    assert victim.said(first) != b""
    victim.streams.receive(second, said, 0.0)
    assert victim.said(second) == b""
    assert victim.is_closed(second)
    assert victim.streams.next_event() is None  # nothing is open before the asker is heard
    victim.streams.handle_timer(10.1)
    assert victim.is_closed(first)


def test_a_damaged_record_ends_the_connection() -> None:
    net = Net()
    here, there = net.pair()
    (stream,) = there.streams._streams
    there.act(lambda now: there.streams.receive(stream, b"\x00\x20" + bytes(32), now))
    assert "damaged or not its own" in ends(there)[0].reason
    net.run(0.1)
    assert "it was closed" in ends(here)[0].reason


def test_strangers_do_not_fill_the_tables() -> None:
    victim = Wire()
    accepted = [victim.streams.accept("10.0.0.9", 0.0) for _ in range(100)]
    assert accepted.count(None) == 100 - 64
    victim.streams.handle_timer(10.1)
    assert victim.streams._streams == {}
    asker = Wire(node=A)
    for number in range(100):
        asker.streams.dial(Address(f"10.1.0.{number}", 1), 0.0)
    failed = asker.streams.next_event()
    assert isinstance(failed, DialFailed)
    assert failed.reason == "too many dials at once"
