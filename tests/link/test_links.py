"""Datagrams first, TCP where they do not get through, and one link to the layer above."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from stream_hosts import GUEST, HERE, THERE, A, B, Net, dial, ends, events, messages, say

from edgellama.link.endpoint import Connected, DialFailed, Disconnected, Priority
from edgellama.link.links import BACK_TO_UDP_S, MOVING_S, TCP_AFTER_S
from edgellama.testing.network import Conditions
from edgellama.values import Address
from edgellama.wire.frames import CloseCode

if TYPE_CHECKING:
    from edgellama.testing.streams import StreamingHost

NOTHING = Conditions(loss=1.0, jitter_s=0.0)
CLEAR = Conditions(jitter_s=0.0)


def connected(host: StreamingHost) -> list[Connected]:
    return [event for event in events(host) if isinstance(event, Connected)]


def alternates(host: StreamingHost) -> bool:
    """Whether links come and go by turns; that of one life may come again without going."""
    life = None
    for event in events(host):
        if isinstance(event, Connected):
            if life not in (None, event.identity):
                return False
            life = event.identity
        elif isinstance(event, Disconnected):
            if life is None:
                return False
            life = None
    return True


def test_by_itself_datagrams_are_used_and_no_pipe_is_opened() -> None:
    net = Net()
    here, there = net.pair("auto")
    net.run(5.0)
    assert here.links.transport_of(B) == there.links.transport_of(A) == "udp"
    assert here.streams._streams == there.streams._streams == {}


def test_tcp_is_taken_after_a_second_without_an_answer() -> None:
    net = Net(NOTHING)
    here, there = net.host(A, HERE, "auto"), net.host(B, THERE, "auto")
    dial(here, THERE)
    net.run(TCP_AFTER_S - 0.01)
    assert events(here) == []
    net.run(0.1)
    assert here.links.transport_of(B) == there.links.transport_of(A) == "tcp"
    (event,) = connected(here)
    assert event.address == THERE
    (event,) = connected(there)
    assert event.address == Address(HERE.host, 0)  # nobody listens where it came from
    say(here, B, b"x" * 100_000, Priority.BULK)
    say(there, A, b"y", Priority.CONTROL)
    net.run(1.0)
    assert messages(there) == [b"x" * 100_000]
    assert messages(here) == [b"y"]
    net.run(30.0)
    assert ends(here) == ends(there) == []
    assert not [event for event in events(here) if isinstance(event, DialFailed)]


def test_where_neither_answers_the_dial_fails_once_and_names_both() -> None:
    net = Net(NOTHING)
    here = net.host(A, HERE, "auto")
    net.pipes.refusing.add(THERE)
    dial(here, THERE)
    dial(here, THERE)
    net.run(10.0)
    (failed,) = events(here)
    assert failed == DialFailed(THERE, "by TCP: connection refused; no answer")


def test_a_link_goes_back_to_datagrams_when_they_get_through() -> None:
    net = Net(NOTHING)
    here, there = net.host(A, HERE, "auto"), net.host(B, THERE, "auto")
    dial(here, THERE)
    net.run(2.0)
    net.network.set_conditions(CLEAR)
    net.run(BACK_TO_UDP_S + 1.0)
    assert here.links.transport_of(B) == there.links.transport_of(A) == "udp"
    assert here.streams._streams == there.streams._streams == {}
    assert alternates(here)
    assert alternates(there)
    assert ends(here) == ends(there) == []
    say(here, B, b"still", Priority.CONTROL)
    net.run(1.0)
    assert messages(there) == [b"still"]
    net.run(BACK_TO_UDP_S * 3)
    assert len(connected(here)) == len(connected(there)) == 2


def test_a_pipe_that_is_closed_for_another_link_ends_when_none_comes() -> None:
    net = Net(NOTHING)
    here, there = net.host(A, HERE, "auto"), net.host(B, THERE, "auto")
    dial(here, THERE)
    net.run(2.0)
    there.act(lambda now: there.streams.disconnect(A, CloseCode.MOVED, now))
    net.run(MOVING_S - 0.1)
    assert ends(here) == []
    assert here.links.peers() == {}
    net.run(0.2)
    assert [end.reason for end in ends(here)] == ["it goes on over another transport"]
    assert not ends(here)[0].left


def test_a_link_goes_over_to_tcp_when_datagrams_stop() -> None:
    net = Net()
    here, there = net.pair("auto")
    net.network.set_conditions(NOTHING)
    net.run(9.0)
    assert ends(here)
    assert ends(there)
    dial(here, THERE)  # as the mesh does every two seconds
    net.run(2.0)
    assert here.links.transport_of(B) == there.links.transport_of(A) == "tcp"
    assert alternates(here)
    assert alternates(there)


def test_a_pipe_takes_the_place_of_datagrams_that_only_one_side_believes_in() -> None:
    net = Net()
    here, there = net.pair("auto")
    net.network.set_conditions(NOTHING)
    there.act(lambda now: there.links.disconnect(A, now))  # the word of it is lost
    net.run(3.0)
    assert here.links.transport_of(B) == "udp"
    dial(there, HERE)
    net.run(2.0)
    assert here.links.transport_of(B) == there.links.transport_of(A) == "tcp"
    assert ends(here) == []
    assert len(connected(here)) == 2  # what was under way may be lost


def test_a_pipe_beside_datagrams_that_were_just_heard_is_closed() -> None:
    net = Net()
    here, there = net.pair("auto")
    there.act(lambda now: there.streams.dial(HERE, now))
    net.run(2.0)
    assert here.links.transport_of(B) == there.links.transport_of(A) == "udp"
    assert ends(here) == []
    assert alternates(there)
    assert here.streams._streams == there.streams._streams == {}


@pytest.mark.parametrize("order", [("udp", "tcp"), ("tcp", "udp")])
def test_a_later_life_replaces_an_earlier_one_whatever_carries_them(
    order: tuple[str, str],
) -> None:
    net = Net()
    here = net.host(A, HERE, "auto")
    first = net.host(B, THERE, order[0])
    dial(first, HERE)
    net.run(1.0)
    assert here.links.transport_of(B) == order[0]
    first.crash()
    second = net.host(B, THERE, order[1], incarnation=2)
    dial(second, HERE)
    net.run(2.0)
    assert here.links.transport_of(B) == order[1]
    assert [event.identity.incarnation for event in connected(here)] == [1, 2]
    assert alternates(here)
    # And the earlier one is not let in by the other way, either.
    again = net.host(B, Address("10.0.0.9", 7711), order[0], incarnation=1)
    dial(again, HERE)
    net.run(4.0)
    assert len(connected(here)) == 2


def test_a_guest_keeps_the_pipe_that_it_asked_over() -> None:
    net = Net(NOTHING)
    here = net.host(A, HERE, "auto")
    guest = net.host(GUEST, THERE, "auto", guest=True)
    dial(guest, HERE)
    net.run(TCP_AFTER_S + 0.1)
    assert guest.links.transport_of(A) == "tcp"
    net.network.set_conditions(CLEAR)
    net.run(5.0)
    assert guest.links.transport_of(A) == here.links.transport_of(GUEST) == "tcp"
    assert ends(guest) == ends(here) == []


def test_what_is_told_to_speak_one_transport_speaks_no_other() -> None:
    net = Net()
    tcp, udp = net.host(A, HERE, "tcp"), net.host(B, THERE, "udp")
    dial(tcp, THERE)
    dial(udp, HERE)
    net.run(5.0)
    assert all(isinstance(event, DialFailed) for event in (*events(tcp), *events(udp)))
    assert (len(events(tcp)), len(events(udp))) == (1, 1)
    assert tcp.links.total_counters().packets_received == 0


def test_another_port_for_tcp() -> None:
    net = Net(NOTHING)
    here = net.host(A, HERE, "auto")
    there = net.host(B, Address(THERE.host, 9000), "auto")
    here.act(lambda now: here.links.dial(THERE, now, Address(THERE.host, 9000)))
    net.run(2.0)
    assert here.links.transport_of(B) == there.links.transport_of(A) == "tcp"
    assert here.links.stream_address(B) == Address(THERE.host, 9000)
    assert there.links.stream_address(A) is None


def test_counters_count_both() -> None:
    net = Net(NOTHING)
    here, there = net.host(A, HERE, "auto"), net.host(B, THERE, "auto")
    dial(here, THERE)
    net.run(2.0)
    say(here, B, bytes(50_000), Priority.BULK)
    net.run(0.3)
    sent, received = here.links.counters(B), there.links.counters(A)
    assert 50_000 < sent.bytes_sent < 51_000
    assert received.bytes_received == sent.bytes_sent
    assert sent == here.links.total_counters()
    before = here.links.total_counters()
    here.act(lambda now: here.links.disconnect(B, now))
    net.run(0.5)
    assert here.links.total_counters().bytes_sent >= before.bytes_sent
