"""The gateway owns what is asked of it: hands over, hands over again, passes on, forgets."""

from __future__ import annotations

import pytest
from mesh_building import A, B, C, ask_of, plan_of

from edgellama.errors import EXIT_NO_MESH
from edgellama.mesh.gateway import ASKER_WAIT_S, DEVICES_WAIT_S, REQUESTS_MAX, Gateway
from edgellama.values import LinkCounters, Turn
from edgellama.wire.messages import Ask, Cancel, Failure, Finished, Message, Notice, Piece

NOW = 50.0
ASKER, OTHER_ASKER = "a" * 32, "b" * 32


class Desk:
    """A gateway, what it says to askers and what to homes."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, Message]] = []
        self.handed: list[tuple[str, Message]] = []
        self.gateway = Gateway(
            lambda asker, message: self.answers.append((asker, message)),
            lambda home, message: self.handed.append((home, message)),
        )

    def said(self) -> list[tuple[str, Message]]:
        """Return what askers have been told since the last call."""
        said, self.answers = self.answers, []
        return said

    def given(self) -> list[tuple[str, Message]]:
        """Return what homes have been given since the last call."""
        given, self.handed = self.handed, []
        return given


def piece(index: int, request: int = 7) -> Piece:
    return Piece(request, index, (100 + index,), "x")


def finished(count: int, request: int = 7) -> Finished:
    return Finished(request, "stop", count, "", (), 0, 0, (), LinkCounters())


def desk_with_plan() -> Desk:
    desk = Desk()
    desk.gateway.follow(plan_of(A, B))
    return desk


def test_an_answer_goes_through_in_order() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    assert desk.given() == [(A, ask_of())]
    for message in (finished(2), piece(1), piece(0)):
        assert desk.gateway.home_says(A, message)
    assert desk.said() == [(ASKER, piece(0)), (ASKER, piece(1)), (ASKER, finished(2))]
    assert not desk.gateway.home_says(A, piece(2))
    assert desk.said() == []


def test_before_there_is_a_plan_the_asker_is_told_what_it_waits_for() -> None:
    desk = Desk()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    assert desk.said() == [(ASKER, Notice(7, "waiting for the devices to load their layers"))]
    assert desk.given() == []
    desk.gateway.follow(plan_of(A, B))
    assert desk.given() == [(A, ask_of())]


def test_in_trouble_the_request_fails_at_once() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "too little memory", NOW)
    assert desk.said() == [(ASKER, Failure(7, EXIT_NO_MESH, "too little memory"))]
    assert desk.given() == []


def test_trouble_ends_every_request() -> None:
    desk = Desk()
    for request in (1, 2):
        desk.gateway.ask(ASKER, ask_of(request=request), "", NOW)
    desk.said()
    desk.gateway.set_trouble("gone", NOW)
    assert desk.said() == [(ASKER, Failure(each, EXIT_NO_MESH, "gone")) for each in (1, 2)]
    desk.gateway.set_trouble("gone", NOW)
    assert desk.said() == []


def waiting(text: str, seconds: float) -> Notice:
    return Notice(7, f"{text}; waiting up to {seconds:.0f} s for devices to come back")


@pytest.mark.parametrize(
    "how", ["home has it", "tokens are known", "another gateway had it", "the asker waits"]
)
def test_what_may_wait_for_devices_waits_so_long_and_no_longer(how: str) -> None:
    wait_s = DEVICES_WAIT_S
    desk = desk_with_plan() if how == "home has it" else Desk()
    if how == "the asker waits":
        wait_s = 30.0
        desk.gateway.ask(ASKER, ask_of(wait_s=30), "12 bytes are missing", NOW)
    else:
        tokens = (99,) if how == "tokens are known" else ()
        attempt = int(how == "another gateway had it")
        desk.gateway.ask(ASKER, ask_of(tokens=tokens, attempt=attempt), "", NOW)
        desk.said()
        desk.gateway.set_trouble("12 bytes are missing", NOW)
    assert desk.said() == [(ASKER, waiting("12 bytes are missing", wait_s))]
    desk.gateway.set_trouble("12 bytes are missing", NOW + 5)
    assert desk.said() == []
    desk.gateway.set_trouble("99 bytes are missing", NOW + 10)
    assert desk.said() == [(ASKER, waiting("99 bytes are missing", wait_s - 10))]
    assert desk.gateway.next_timer() == NOW + wait_s
    desk.gateway.handle_timer(NOW + wait_s)
    assert desk.said() == [(ASKER, Failure(7, EXIT_NO_MESH, "99 bytes are missing"))]
    assert desk.gateway.next_timer() is None


def test_what_waits_goes_on_when_the_devices_are_back() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.gateway.home_says(A, piece(0))
    desk.gateway.set_trouble("gone", NOW)
    desk.said()
    desk.given()
    desk.gateway.set_trouble("", NOW + 9)
    assert desk.said() == [(ASKER, Notice(7, "the devices are back"))]
    assert desk.given() == [(A, ask_of(tokens=(100,)))]
    assert desk.gateway.next_timer() is None
    desk.gateway.set_trouble("gone again", NOW + 20)
    assert desk.gateway.next_timer() == NOW + 20 + DEVICES_WAIT_S


def test_askers_are_told_what_they_wait_for() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.gateway.notice("pi is silent")
    assert desk.said() == [(ASKER, Notice(7, "pi is silent"))]


@pytest.mark.parametrize("home", [A, B])
def test_the_next_plans_home_gets_the_request_with_the_tokens_known(home: str) -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(tokens=(99,)), "", NOW)
    desk.gateway.home_says(A, piece(1))
    desk.gateway.home_says(A, piece(3))  # comes too early: not known yet
    desk.given()
    desk.gateway.follow(plan_of(home, C, epoch=6))
    assert desk.given() == [(home, ask_of(tokens=(99, 101)))]


def test_a_home_that_was_away_gets_its_requests_again() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.given()
    desk.gateway.home_connected(B)
    assert desk.given() == []
    desk.gateway.home_connected(A)
    assert desk.given() == [(A, ask_of())]


def test_what_home_refuses_at_once_ends_the_request_while_others_are_handed_over() -> None:
    desk = Desk()
    for request in (1, 2, 3):
        desk.gateway.ask(ASKER, ask_of(request=request), "", NOW)
    desk.said()

    def refuse(home: str, message: Ask | Cancel) -> None:
        desk.gateway.home_says(A, Failure(message.request, 2, "no"))

    desk.gateway._hand_over = refuse
    desk.gateway.follow(plan_of(A))
    assert desk.said() == [(ASKER, Failure(each, 2, "no")) for each in (1, 2, 3)]


def test_only_the_asker_cancels() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.given()
    desk.gateway.cancel(OTHER_ASKER, 7)
    desk.gateway.cancel(ASKER, 8)
    assert desk.given() == []
    desk.gateway.cancel(ASKER, 7)
    assert desk.given() == [(A, Cancel(7))]
    assert not desk.gateway.home_says(A, piece(0))
    assert desk.said() == []


def test_a_cancelled_request_that_was_never_handed_over() -> None:
    desk = Desk()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.gateway.cancel(ASKER, 7)
    desk.gateway.follow(plan_of(A))
    assert desk.given() == []


def test_who_is_gone_takes_its_requests_along() -> None:
    desk = desk_with_plan()
    for request, asker in ((1, ASKER), (2, OTHER_ASKER), (3, ASKER)):
        desk.gateway.ask(asker, ask_of(request=request), "", NOW)
    desk.given()
    desk.gateway.asker_gone(ASKER, left=True, now=NOW)
    assert desk.given() == [(A, Cancel(1)), (A, Cancel(3))]
    assert desk.gateway.home_says(A, piece(0, 2))


def test_who_is_lost_may_ask_again_by_another_device_for_a_while() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.given()
    desk.gateway.asker_gone(OTHER_ASKER, left=False, now=NOW)
    assert desk.gateway.next_timer() is None
    desk.gateway.asker_gone(ASKER, left=False, now=NOW)
    desk.gateway.handle_timer(NOW + ASKER_WAIT_S - 1)
    assert desk.gateway.home_says(A, piece(0))
    desk.gateway.handle_timer(NOW + ASKER_WAIT_S)
    assert desk.given() == [(A, Cancel(7))]


def test_a_later_attempt_takes_the_place_of_an_earlier_one() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.gateway.home_says(A, piece(0))
    desk.gateway.home_says(A, piece(1))
    desk.given()
    desk.gateway.asker_gone(ASKER, left=False, now=NOW)
    desk.said()
    again = ask_of(tokens=(100,), attempt=1)
    desk.gateway.ask(ASKER, again, "", NOW + 1)
    assert desk.given() == [(A, again)]
    desk.gateway.home_says(A, piece(1))  # home tells again what that asker has missed
    assert desk.said() == [(ASKER, piece(1))]
    desk.gateway.handle_timer(NOW + 2 * ASKER_WAIT_S)
    assert desk.given() == []


def test_only_the_home_in_force_may_say_that_it_cannot_go_on() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", NOW)
    desk.gateway.follow(plan_of(B, C, epoch=6))
    assert desk.gateway.home_says(A, Failure(7, 1, "this device is not home any more"))
    assert desk.said() == []
    assert desk.gateway.home_says(A, piece(0))  # its tokens are those of any home
    assert desk.said() == [(ASKER, piece(0))]
    assert desk.gateway.home_says(B, Failure(7, 1, "damaged"))
    assert desk.said() == [(ASKER, Failure(7, 1, "damaged"))]


def test_a_number_in_use_and_too_many_requests_are_refused() -> None:
    desk = desk_with_plan()
    for request in range(REQUESTS_MAX):
        desk.gateway.ask(ASKER, ask_of(request=request), "", NOW)
    assert desk.said() == []
    desk.gateway.ask(ASKER, ask_of(request=REQUESTS_MAX), "", NOW)
    ((_, refused),) = desk.said()
    assert isinstance(refused, Failure)
    assert refused.request == REQUESTS_MAX
    desk.gateway.ask(OTHER_ASKER, ask_of(request=3), "", NOW)
    ((asker, refused),) = desk.said()
    assert (asker, type(refused)) == (OTHER_ASKER, Failure)
    assert desk.gateway.home_says(A, piece(0, 3))
    assert desk.said() == [(ASKER, piece(0, 3))]


def test_turns_that_one_home_has_left_out_the_next_one_leaves_out_too() -> None:
    history = (Turn("user", "a"), Turn("assistant", "b")) * 3
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(history=history), "", NOW)
    for _ in range(2):  # one that is said again changes nothing
        desk.gateway.home_says(A, Piece(7, 0, (100,), "x", turns_kept=2))
    desk.given()
    desk.gateway.follow(plan_of(B, A, epoch=6))
    assert desk.given() == [(B, ask_of(history=history[4:], tokens=(100,)))]


def test_no_turn_may_be_left() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(history=(Turn("user", "a"),)), "", NOW)
    desk.gateway.home_says(A, Piece(7, 0, (100,), "x", turns_kept=0))
    desk.given()
    desk.gateway.follow(plan_of(B, A, epoch=6))
    assert desk.given() == [(B, ask_of(tokens=(100,)))]


def test_what_home_says_of_waiting_is_passed_on() -> None:
    desk = desk_with_plan()
    desk.gateway.ask(ASKER, ask_of(), "", 0.0)
    desk.said()
    notice = Notice(7, "yours is number 1 to wait")
    assert desk.gateway.home_says(A, notice)
    assert desk.said() == [(ASKER, notice)]
    assert desk.gateway.home_says(C, notice)  # of a home that is none any more
    assert desk.said() == []
    assert not desk.gateway.home_says(A, Notice(8, "of a request that nobody has"))
