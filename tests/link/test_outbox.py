"""What is sent next, what is sent again, and how much may be under way."""

from __future__ import annotations

from edgellama.link.outbox import QUEUED_BYTES_MAX, Outbox, Piece
from edgellama.link.reassembly import LARGE_BYTES_MIN, STARTED_MESSAGES_MAX
from edgellama.wire.frames import Fragment, Priority, parse_frames

LARGE_FRAGMENTS = -(-LARGE_BYTES_MIN // 1155)


def send_all(outbox: Outbox, lowest: Priority = Priority.BULK, first: int = 0) -> list[Piece]:
    pieces = []
    while (piece := outbox.next(lowest)) is not None:
        outbox.take(piece, first + len(pieces))
        pieces.append(piece)
    return pieces


def test_a_more_urgent_message_overtakes_between_fragments() -> None:
    outbox = Outbox()
    outbox.push(b"b" * 3000, Priority.BULK)
    first = outbox.next(Priority.BULK)
    assert first is not None
    outbox.take(first, 0)
    outbox.push(b"p", Priority.PREFILL)
    outbox.push(b"d", Priority.DECODE)
    outbox.push(b"c", Priority.CONTROL)
    assert [piece.message.data[:1] for piece in send_all(outbox)] == [b"c", b"d", b"p", b"b", b"b"]


def test_a_closed_window_lets_only_urgent_messages_through() -> None:
    outbox = Outbox()
    outbox.push(b"p", Priority.PREFILL)
    assert outbox.next(Priority.DECODE) is None
    outbox.push(b"d", Priority.DECODE)
    assert [piece.message.data for piece in send_all(outbox, Priority.DECODE)] == [b"d"]


def test_a_lost_fragment_goes_again_before_fresh_ones_and_only_once() -> None:
    outbox = Outbox()
    outbox.push(bytes(range(200)) * 12, Priority.PREFILL)
    pieces = send_all(outbox)
    assert len(pieces) == 3
    outbox.push(b"next", Priority.PREFILL)
    assert outbox.lost(pieces[1], 1)
    assert not outbox.lost(pieces[1], 1), "it waits already"
    again = outbox.next(Priority.BULK)
    assert again == pieces[1]
    assert outbox.take(again, 7)
    assert not outbox.lost(pieces[1], 1), "a later packet carries it"
    assert outbox.lost(pieces[1], 7)
    outbox.arrived(pieces[1])  # the first copy came after all
    after = outbox.next(Priority.BULK)
    assert after is not None
    assert after.message.data == b"next"
    assert not outbox.lost(pieces[1], 7)


def test_a_message_is_finished_when_every_fragment_arrived() -> None:
    outbox = Outbox()
    outbox.push(b"x" * 4096, Priority.DECODE)
    pieces = send_all(outbox)
    for piece in pieces[1:] + pieces[1:]:
        outbox.arrived(piece)
        assert outbox.unfinished == 1
    outbox.arrived(pieces[0])
    assert outbox.unfinished == 0
    assert outbox.queued_bytes == 0


def test_the_frames_of_a_message_are_its_fragments() -> None:
    outbox = Outbox()
    outbox.push(b"first", Priority.CONTROL)
    message = bytes(range(256)) * 20
    outbox.push(message, Priority.DECODE)
    pieces = send_all(outbox)
    frames = [frame for piece in pieces for frame in parse_frames(piece.frame())]
    assert [len(piece.frame()) for piece in pieces] == [piece.frame_bytes for piece in pieces]
    assert [frame.message_id for frame in frames if isinstance(frame, Fragment)] == [0] + [1] * 5
    assert b"".join(f.payload for f in frames if isinstance(f, Fragment)) == b"first" + message


def test_no_more_is_under_way_than_the_receiver_takes() -> None:
    outbox = Outbox()
    for _ in range(3):
        outbox.push(bytes(LARGE_BYTES_MIN), Priority.PREFILL)
    outbox.push(b"small", Priority.BULK)
    pieces = send_all(outbox)
    assert len(pieces) == 2 * LARGE_FRAGMENTS + 1, "two large ones, and what is not large"
    for _ in range(STARTED_MESSAGES_MAX):
        outbox.push(b"", Priority.CONTROL)
    assert len(send_all(outbox)) == STARTED_MESSAGES_MAX - 3
    for piece in pieces[:LARGE_FRAGMENTS]:
        outbox.arrived(piece)
    freed = outbox.next(Priority.BULK)
    assert freed is not None
    assert freed.message.priority == Priority.CONTROL
    outbox.take(freed, 0)
    assert outbox.next(Priority.BULK) is None
    outbox.arrived(freed)
    for _ in range(2):
        following = outbox.next(Priority.BULK)
        assert following is not None
        outbox.take(following, 0)
        outbox.arrived(following)
    following = outbox.next(Priority.BULK)
    assert following is not None
    assert following.message.large, "the third large one has its turn"


def test_a_peer_that_takes_nothing_fills_the_outbox_to_a_bound() -> None:
    outbox = Outbox()
    message = bytes(64 << 20)
    for _ in range(QUEUED_BYTES_MAX // len(message)):
        outbox.push(message, Priority.BULK)
    assert not outbox.overfull
    outbox.push(b"x", Priority.CONTROL)
    assert outbox.overfull


def test_parity_that_arrived_stands_for_the_one_fragment_that_did_not() -> None:
    outbox = Outbox()
    outbox.push(b"x" * 4096, Priority.DECODE)
    pieces = send_all(outbox)
    for piece in pieces[2:]:
        outbox.arrived(piece)
    outbox.parity_arrived(pieces[0].message)
    assert outbox.unfinished == 1
    outbox.arrived(pieces[0])
    assert outbox.unfinished == 0
    assert not outbox.lost(pieces[1], 1), "the receiver has the message"
    outbox.parity_arrived(pieces[0].message)
    assert outbox.unfinished == outbox.queued_bytes == 0


def test_what_is_on_its_way_can_be_repeated_once() -> None:
    outbox = Outbox()
    outbox.push(b"x" * 3000, Priority.DECODE)
    pieces = send_all(outbox)
    outbox.arrived(pieces[0])
    outbox.repeat(pieces[0].message)
    outbox.repeat(pieces[0].message)
    assert send_all(outbox, first=10) == pieces[1:]
    assert not outbox.lost(pieces[1], 1), "the copy carries it"
    assert outbox.lost(pieces[1], 10)


def test_messages_are_cut_for_the_path_when_they_begin() -> None:
    outbox = Outbox()
    outbox.push(bytes(4096), Priority.DECODE)
    outbox.push(bytes(4096), Priority.DECODE)
    first = outbox.next(Priority.BULK)
    assert first is not None
    outbox.take(first, 0)
    outbox.fit(1427)
    assert len(send_all(outbox, first=1)) == 3 + 3


def test_messages_under_way_are_cut_anew_for_a_path_that_has_become_narrower() -> None:
    outbox = Outbox()
    outbox.fit(1427)
    bodies = [bytes([number]) * 5000 for number in range(3)]
    for body in bodies:
        outbox.push(body, Priority.PREFILL)
    old = []
    for number in range(6):  # the first as a whole, the second in part
        piece = outbox.next(Priority.BULK)
        assert piece is not None
        outbox.take(piece, number)
        old.append(piece)
    assert outbox.lost(old[0], 0)
    outbox.fit(1155)
    outbox.fit(1100)
    for piece in old:
        outbox.arrived(piece)
        assert not outbox.lost(piece, old.index(piece))
    assert outbox.unfinished == 3, "what arrived of the former cut does not count"
    pieces = send_all(outbox, first=6)
    frames = [frame for piece in pieces for frame in parse_frames(piece.frame())]
    whole = {0: b"", 1: b"", 2: b""}
    for frame in frames:
        assert isinstance(frame, Fragment)
        assert len(frame.payload) <= 1100
        whole[frame.message_id] += frame.payload
    assert list(whole.values()) == bodies
    for piece in pieces:
        outbox.arrived(piece)
    assert outbox.unfinished == outbox.queued_bytes == 0
