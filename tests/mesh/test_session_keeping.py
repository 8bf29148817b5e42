"""Members keep what is asked in sessions: recorded as it grows, copied, looked up, removed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mesh_building import A, B, C, D, ask_of, sent
from session_building import answered, conversation_of

from edgellama.mesh import session_keeping
from edgellama.mesh.effects import Effect, Outbox, RemoveConversation, StoreConversation
from edgellama.mesh.session_keeping import GATHER_S, GATHERS_MAX, KEPT_MAX, SAVE_S, SessionKeeping
from edgellama.values import USER, LinkCounters, NodeId, Turn
from edgellama.wire.messages import (
    Conversation,
    Failure,
    Finished,
    ForgetSession,
    KeepSession,
    Message,
    Notice,
    Piece,
    SessionForgotten,
    SessionQuery,
    SessionReply,
)

GUEST, OTHER_GUEST = "e" * 32, "f" * 32
ASKED = conversation_of()
REQUEST = ASKED.ask.request


class Desk:
    """One member's keeping, driven by hand."""

    def __init__(self, *others: NodeId, kept: tuple[Conversation, ...] = ()) -> None:
        self.others = list(others)
        self.outbox = Outbox()
        self.keeping = SessionKeeping(A, self.outbox, lambda: self.others, kept)
        self.now = 100.0
        self.requests = {REQUEST}  # of which the gateway has not told the end

    def effects(self) -> list[Effect]:
        return self.outbox.drain()

    def stored(self) -> list[Conversation]:
        """Return what is to be brought to the disk, and forget all other effects."""
        found = [each for each in self.effects() if isinstance(each, StoreConversation)]
        return [each.conversation for each in found]

    def begin(self, conversation: Conversation = ASKED) -> None:
        self.keeping.begin(GUEST, conversation, self.now)
        self.effects()

    def says(self, message: Piece | Finished | Failure | Notice) -> None:
        self.keeping.said(message, self.now)

    def piece(self, index: int, token: int) -> None:
        self.says(Piece(REQUEST, index, (token,), f"<{token}>"))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.keeping.handle_timer(self.now, self.requests)

    def asks(self, message: SessionQuery | ForgetSession, guest: NodeId = GUEST) -> None:
        self.keeping.guest_asks(guest, message, self.now)

    def sent(self) -> list[tuple[NodeId, Message]]:
        return sent(self.effects())


def finished(text: str = "", reason: str = "stop") -> Finished:
    return Finished(REQUEST, reason, 2, text, (), 0, 0, (), LinkCounters())


# --- recording ------------------------------------------------------------------------------


def test_a_question_is_recorded_and_copied_at_once() -> None:
    desk = Desk(B)
    desk.keeping.begin(GUEST, ASKED, desk.now)
    effects = desk.effects()
    assert effects[0] == StoreConversation(ASKED)
    assert sent(effects) == [(B, KeepSession(ASKED))]
    assert desk.keeping.next_timer() is None


def test_an_answer_is_recorded_now_and_then_and_at_its_end() -> None:
    desk = Desk(B)
    desk.begin()
    desk.piece(0, 41)
    assert desk.keeping.next_timer() == desk.now + SAVE_S
    desk.wait(SAVE_S / 2)
    desk.piece(1, 42)
    assert desk.effects() == []
    desk.wait(SAVE_S / 2)
    record = answered(ASKED, 41, 42)
    effects = desk.effects()
    assert effects[0] == StoreConversation(record)
    assert sent(effects) == [(B, KeepSession(record))]
    desk.wait(10 * SAVE_S)
    assert desk.effects() == []  # nothing came meanwhile
    desk.piece(2, 43)
    assert desk.keeping.next_timer() == desk.now  # the last time is long ago
    desk.says(finished("rest", "length"))
    complete = answered(ASKED, 41, 42, 43, state="length")
    assert desk.stored() == [replace(complete, text=complete.text + "rest")]
    assert desk.keeping.next_timer() is None


@pytest.mark.parametrize(
    "how", ["failure", "cancel", "guest gone", "given up", "this member leaves"]
)
def test_what_came_is_recorded_when_the_answer_ends_early(how: str) -> None:
    desk = Desk()
    desk.begin()
    desk.piece(0, 41)
    match how:
        case "failure":
            desk.says(Failure(REQUEST, 3, "not enough memory"))
        case "cancel":
            desk.keeping.stopped(OTHER_GUEST, REQUEST, desk.now)
            assert desk.effects() == []
            desk.keeping.stopped(GUEST, REQUEST, desk.now)
        case "guest gone":
            desk.keeping.asker_gone(OTHER_GUEST, left=True, now=desk.now)
            assert desk.effects() == []
            desk.keeping.asker_gone(GUEST, left=True, now=desk.now)
        case "given up":
            desk.requests.clear()
            desk.wait(0)
        case "this member leaves":
            desk.keeping.leave(desk.now)
    assert desk.stored() == [answered(ASKED, 41)]
    desk.piece(1, 42)
    desk.wait(10)
    assert desk.effects() == []


def test_the_answer_of_an_asker_that_is_lost_goes_on() -> None:
    """It may ask by another device; what is made meanwhile is recorded."""
    desk = Desk()
    desk.begin()
    desk.piece(0, 41)
    desk.keeping.asker_gone(GUEST, left=False, now=desk.now)
    assert desk.stored() == [answered(ASKED, 41)]
    desk.piece(1, 42)
    desk.wait(SAVE_S)
    assert desk.stored() == [answered(ASKED, 41, 42)]


def test_a_resumed_answer_grows_from_what_is_known() -> None:
    desk = Desk()
    desk.begin(answered(ASKED, 41, 42))
    desk.piece(2, 43)
    desk.says(finished())
    assert desk.stored() == [answered(ASKED, 41, 42, 43, state="stop")]


def test_turns_that_were_left_out_are_left_out_of_the_record() -> None:
    history = (Turn(USER, "1"), Turn(USER, "2"), Turn(USER, "3"))
    asked = replace(ASKED, ask=ask_of(history=history))
    desk = Desk()
    desk.begin(asked)
    desk.says(Piece(REQUEST, 0, (41,), "<41>", turns_kept=1))
    desk.says(finished())
    (record,) = desk.stored()
    assert record.ask.history == history[2:]
    assert [turn.content for turn in record.turns()] == ["3", "ab", "<41>"]


def test_what_is_asked_outside_of_sessions_is_not_recorded() -> None:
    desk = Desk(B)
    for message in (Piece(9, 0, (1,), "x"), Notice(9, "wait"), Failure(9, 1, "no")):
        desk.says(message)
    desk.says(Notice(REQUEST, "wait"))
    assert desk.effects() == []
    assert desk.keeping.next_timer() is None


def test_a_long_record_is_copied_less_often() -> None:
    long = replace(ASKED, ask=ask_of(prompt="x" * 10 * session_keeping.SAVE_CHARACTERS_PER_S))
    desk = Desk(B)
    desk.begin(long)
    desk.piece(0, 41)
    timer = desk.keeping.next_timer()
    assert timer is not None
    assert 10.0 <= timer - desk.now < 10.1


def test_copies_of_one_session_go_to_the_same_member_and_spread_over_all() -> None:
    desk = Desk(B, C, D)
    keepers = {}
    for number in range(40):
        named = replace(ASKED, name=f"s{number}", ask=ask_of(request=number))
        for _ in range(2):
            desk.keeping.begin(GUEST, named, desk.now)
            ((keeper, _),) = desk.sent()
            assert keepers.setdefault(number, keeper) == keeper
    assert set(keepers.values()) == {B, C, D}


# --- keeping --------------------------------------------------------------------------------


def test_the_newer_record_stands() -> None:
    second = replace(ASKED, question=2, asked_ms=ASKED.asked_ms + 1)
    other = replace(ASKED, identity="cd" * 16, asked_ms=ASKED.asked_ms - 5)
    rising = [other, ASKED, answered(ASKED, 1), answered(ASKED, 1, 2)]
    rising += [answered(ASKED, 1, 2, state="stop"), second, answered(second, 1)]
    for index, record in enumerate(rising):
        for older in rising[: index + 1]:
            desk = Desk(kept=(record,))
            desk.keeping.member_says(B, KeepSession(older), desk.now)
            assert desk.stored() == []
        for newer in rising[index + 1 :]:
            desk = Desk(kept=(record,))
            desk.keeping.member_says(B, KeepSession(newer), desk.now)
            assert desk.stored() == [newer]


def test_what_is_kept_is_bounded_and_the_oldest_goes() -> None:
    desk = Desk()
    for number in range(KEPT_MAX + 2):
        record = replace(ASKED, name=f"s{number}", asked_ms=1000 + number)
        desk.keeping.member_says(B, KeepSession(record), desk.now)
    removed = [each for each in desk.effects() if isinstance(each, RemoveConversation)]
    assert removed == [RemoveConversation("s0"), RemoveConversation("s1")]


def test_a_few_huge_records_are_too_much_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_keeping, "KEPT_CHARACTERS_MAX", 1000)
    desk = Desk()
    for number in range(3):
        record = replace(ASKED, name=f"s{number}", asked_ms=1000 + number, text="x" * 600)
        desk.keeping.member_says(B, KeepSession(record), desk.now)
    removed = [each for each in desk.effects() if isinstance(each, RemoveConversation)]
    assert removed == [RemoveConversation("s0"), RemoveConversation("s1")]


# --- looking up -----------------------------------------------------------------------------


def test_a_guest_is_given_the_newest_that_any_member_has() -> None:
    desk = Desk(B, C, kept=(ASKED,))
    desk.asks(SessionQuery(77, "trip"))
    (b, asked_b), (c, asked_c) = desk.sent()
    assert (b, c) == (B, C)
    assert isinstance(asked_b, SessionQuery)
    assert asked_b == asked_c
    newest = answered(ASKED, 1, 2)
    desk.keeping.member_says(B, SessionReply(asked_b.request, (newest,), ()), desk.now)
    assert desk.sent() == []
    desk.keeping.member_says(C, SessionReply(asked_b.request, (answered(ASKED, 1),), ()), desk.now)
    assert desk.sent() == [(GUEST, SessionReply(77, (newest,), ()))]
    desk.keeping.member_says(C, SessionReply(asked_b.request, (newest,), ()), desk.now)
    assert desk.sent() == []


def test_an_answer_under_way_is_told_as_far_as_it_is() -> None:
    desk = Desk()
    desk.begin()
    desk.piece(0, 41)
    desk.asks(SessionQuery(77, "trip"))
    assert desk.sent() == [(GUEST, SessionReply(77, (answered(ASKED, 41),), ()))]
    desk.keeping.member_says(B, SessionQuery(5, "trip"), desk.now)
    assert desk.sent() == [(B, SessionReply(5, (answered(ASKED, 41),), ()))]


def test_members_that_are_silent_or_gone_are_not_waited_for() -> None:
    desk = Desk(B, C, D)
    desk.asks(SessionQuery(77, "trip"))
    desk.sent()
    desk.keeping.member_gone(C, desk.now)
    desk.keeping.member_says(B, SessionReply(1, (ASKED,), ()), desk.now)
    assert desk.sent() == []
    assert desk.keeping.next_timer() == desk.now + GATHER_S
    desk.wait(GATHER_S)
    assert desk.sent() == [(GUEST, SessionReply(77, (ASKED,), ()))]
    assert desk.keeping.next_timer() is None


def test_a_member_that_answers_something_else_is_not_believed() -> None:
    desk = Desk(B)
    desk.asks(SessionQuery(77, "trip"))
    other = replace(ASKED, name="another")
    desk.keeping.member_says(C, SessionReply(1, (ASKED,), ()), desk.now)  # it was not asked
    desk.keeping.member_says(B, SessionReply(1, (other,), ()), desk.now)
    assert desk.sent()[-1] == (GUEST, SessionReply(77, (), ()))


def test_a_list_holds_each_session_once_the_latest_first() -> None:
    first, second = ASKED, replace(ASKED, name="tale", asked_ms=ASKED.asked_ms + 5)
    desk = Desk(B, kept=(first,))
    desk.asks(SessionQuery(77, ""))
    desk.sent()
    theirs = (answered(first, 1).summary(), second.summary())
    desk.keeping.member_says(B, SessionReply(1, (), theirs), desk.now)
    known = (second.summary(), answered(first, 1).summary())
    assert desk.sent() == [(GUEST, SessionReply(77, (), known))]


def test_the_number_of_lookups_under_way_is_bounded() -> None:
    desk = Desk(B)
    for number in range(GATHERS_MAX + 3):
        desk.asks(SessionQuery(number, "trip"))
    answers = [message for node, message in desk.sent() if node == GUEST]
    assert answers == [SessionReply(number, (), ()) for number in range(3)]


# --- removing -------------------------------------------------------------------------------


def test_a_session_is_removed_at_all_members() -> None:
    desk = Desk(B, C, kept=(ASKED,))
    desk.asks(ForgetSession(77, "trip"))
    effects = desk.effects()
    assert RemoveConversation("trip") in effects
    assert sent(effects) == [(node, ForgetSession(1, "trip")) for node in (B, C)]
    desk.keeping.member_says(B, SessionForgotten(1, (B,)), desk.now)
    desk.keeping.member_says(C, SessionForgotten(1, ()), desk.now)
    assert desk.sent() == [(GUEST, SessionForgotten(77, (A, B)))]
    desk.keeping.member_says(C, SessionQuery(5, "trip"), desk.now)
    assert desk.sent() == [(C, SessionReply(5, (), ()))]


def test_an_answer_under_way_in_a_removed_session_is_not_recorded_any_more() -> None:
    desk = Desk()
    desk.begin()
    desk.keeping.member_says(B, ForgetSession(5, "trip"), desk.now)
    assert desk.sent() == [(B, SessionForgotten(5, (A,)))]
    desk.piece(0, 41)
    desk.says(finished())
    assert desk.effects() == []
    desk.keeping.member_says(B, ForgetSession(6, "trip"), desk.now)
    assert desk.sent() == [(B, SessionForgotten(6, ()))]
