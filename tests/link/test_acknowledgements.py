"""When packets are acknowledged, and which ones are named."""

from __future__ import annotations

from edgellama.link.acknowledgements import (
    ACK_DELAY_MAX_S,
    ACK_DELAY_MIN_S,
    ACK_PACKETS_MAX,
    RANGES_KEPT_MAX,
    ReceivedPackets,
    acknowledgement_delay,
)
from edgellama.wire.datagram import FRAMES_BYTES_BASE
from edgellama.wire.frames import RANGES_MAX, Acknowledgement, parse_frames


def acknowledged(received: ReceivedPackets, now: float) -> Acknowledgement:
    (frame,) = parse_frames(received.frame(now, FRAMES_BYTES_BASE))
    assert isinstance(frame, Acknowledgement)
    return frame


def test_a_single_packet_waits_for_data_to_ride_on() -> None:
    received = ReceivedPackets(166)
    assert received.timer() is None
    received.record(0, 1.0, eliciting=True)
    assert received.waiting
    assert not received.due(1.0)
    assert received.timer() == 1.0 + ACK_DELAY_MAX_S
    assert received.due(1.0 + ACK_DELAY_MAX_S)
    assert acknowledged(received, 1.0).ranges == ((0, 0),)
    assert not received.waiting
    assert received.timer() is None


def test_a_whole_message_a_gap_and_the_eighth_packet_are_acknowledged_at_once() -> None:
    received = ReceivedPackets(166)
    received.record(0, 1.0, eliciting=True)
    received.acknowledge_at_once()
    assert received.due(1.0)
    acknowledged(received, 1.0)
    for number in range(1, ACK_PACKETS_MAX):
        received.record(number, 1.0, eliciting=True)
        assert not received.due(1.0)
    received.record(ACK_PACKETS_MAX, 1.0, eliciting=True)
    assert received.due(1.0)
    acknowledged(received, 1.0)
    received.record(ACK_PACKETS_MAX + 2, 1.0, eliciting=True)
    assert received.due(1.0)
    acknowledged(received, 1.0)
    received.record(ACK_PACKETS_MAX + 1, 1.0, eliciting=True)
    assert received.due(1.0), "what fills a gap is news too"


def test_acknowledgements_alone_are_never_acknowledged() -> None:
    received = ReceivedPackets(166)
    for number in (0, 3, 1):
        received.record(number, 1.0, eliciting=False)
    assert not received.waiting
    assert not received.due(9.0)
    assert received.timer() is None
    received.record(7, 1.0, eliciting=True)
    assert acknowledged(received, 1.0).ranges == ((7, 7), (3, 3), (0, 1)), "but they are named"


def test_the_delay_is_that_of_the_newest_packet() -> None:
    received = ReceivedPackets(166)
    received.record(1, 1.0, eliciting=True)
    received.record(0, 2.0, eliciting=True)
    frame = acknowledged(received, 1.0 + 16e-6 * 1000)
    assert frame.delay_s == 16e-6 * 1000
    assert frame.window_packets == 166


def test_many_gaps_are_forgotten_from_below_and_count_as_seen() -> None:
    received = ReceivedPackets(166)
    for number in range(0, 4 * RANGES_KEPT_MAX, 2):
        received.record(number, 1.0, eliciting=True)
    newest = 4 * RANGES_KEPT_MAX - 2
    frame = acknowledged(received, 1.0)
    assert frame.ranges == tuple((newest - 2 * n, newest - 2 * n) for n in range(RANGES_MAX))
    assert received.seen(1), "too old to tell: taken for a duplicate, to be sent again"
    assert not received.seen(newest - 1)
    assert received.seen(newest)


def test_an_acknowledgement_without_room_stays_due() -> None:
    received = ReceivedPackets(166)
    received.record(0, 1.0, eliciting=True)
    received.acknowledge_at_once()
    assert received.frame(1.0, 15) == b""
    assert received.due(1.0)
    assert len(received.frame(1.0, 16)) == 16


def test_an_acknowledgement_waits_for_a_part_of_a_short_round_trip() -> None:
    assert acknowledgement_delay(0.0001) == ACK_DELAY_MIN_S
    assert acknowledgement_delay(0.004) == 0.001
    assert acknowledgement_delay(0.1) == ACK_DELAY_MAX_S
    received = ReceivedPackets(100)
    received.record(0, 1.0, eliciting=True, delay_s=0.001)
    assert received.timer() == 1.0 + 0.001
