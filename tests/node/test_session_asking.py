"""Questions in sessions: what comes next, what goes on, and what this device keeps of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from mesh_building import MODEL, ask_of
from session_building import answered, conversation_of

from edgellama.errors import EdgellamaError, MisuseError, NoMeshError
from edgellama.net.session_files import SessionFiles
from edgellama.node import session_asking
from edgellama.node.session_asking import SessionAsking
from edgellama.node.session_shelf import Nowhere, SessionShelf
from edgellama.values import ASSISTANT, KV_F16, USER, LinkCounters, ModelFacts, Turn
from edgellama.wire.messages import (
    HISTORY_CHARACTERS_MAX,
    Ask,
    Conversation,
    Finished,
    Notice,
    Piece,
    StatusReply,
    Summary,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from threading import Event

    from edgellama.node.alone import AnswerMessage

FACTS = MODEL.facts
ASKED = conversation_of(model_root=FACTS.root, model_name=FACTS.name)


class FakeAsker:
    """Answers ``<1><2>...`` from the first token that is not known, and may break off."""

    def __init__(self) -> None:
        self.model: tuple[ModelFacts, ...] = (FACTS,)
        self.kv_kind = KV_F16
        self.kept: dict[str, Conversation] = {}
        self.asked: list[tuple[Ask, Conversation | None]] = []
        self.breaks_off_at = 100
        self.turns_kept = 1000

    def answer(
        self, ask: Ask, stop: Event | None = None, session: Conversation | None = None
    ) -> Iterator[AnswerMessage]:
        self.asked.append((ask, session))
        yield Notice(ask.request, "wait")
        for index in range(len(ask.tokens), ask.tokens_max):
            if index == self.breaks_off_at:
                raise NoMeshError("gone")
            yield Piece(ask.request, index, (index + 1,), f"<{index + 1}>", self.turns_kept)
        yield Finished(ask.request, "length", ask.tokens_max, "!", (), 0, 0, (), LinkCounters())

    def status(self) -> StatusReply:
        return StatusReply(1, "", True, 1, self.model, 64, (), "", False, self.kv_kind)

    def session(self, name: str) -> Conversation | None:
        return self.kept.get(name)

    def sessions(self) -> tuple[Summary, ...]:
        return tuple(each.summary() for each in self.kept.values())

    def forget_session(self, name: str) -> int:
        return int(self.kept.pop(name, None) is not None)


class Desk:
    def __init__(self, folder: Path) -> None:
        self.asker = FakeAsker()
        self.files = SessionFiles(folder / "sessions")
        self.told: list[str] = []
        self.shelf = SessionShelf(self.files, self.asker)
        self.sessions = SessionAsking(self.asker, self.shelf, self.told.append)

    def ask(self, name: str, ask: Ask) -> list[AnswerMessage]:
        return list(self.sessions.answer(self.sessions.question(name, ask)))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_each_question_brings_along_what_was_said(desk: Desk) -> None:
    desk.ask("trip", ask_of("one", tokens_max=2, system="be kind", raw=False))
    desk.ask("trip", ask_of("two", tokens_max=1, raw=False))
    desk.ask("trip", ask_of("three", tokens_max=1, raw=False, system="be brief"))
    history = [ask.history for ask, _ in desk.asker.asked]
    assert history[0] == ()
    assert history[1] == (Turn(USER, "one"), Turn(ASSISTANT, "<1><2>!"))
    assert history[2] == (*history[1], Turn(USER, "two"), Turn(ASSISTANT, "<1>!"))
    assert [ask.system for ask, _ in desk.asker.asked] == ["be kind", "be kind", "be brief"]
    record = desk.files.find("trip")
    assert record is not None
    assert (record.question, record.state, record.text) == (3, "length", "<1>!")
    assert (record.model_root, record.model_name) == (FACTS.root, FACTS.name)
    identities = {session.identity for _, session in desk.asker.asked if session}
    assert len(identities) == 1
    assert desk.told == []


def test_the_newest_record_goes_on_wherever_it_is(desk: Desk) -> None:
    desk.files.keep(answered(ASKED, 1, 2))
    desk.asker.kept["trip"] = answered(ASKED, 1, 2, 3, state="stop")
    asked = desk.sessions.question("trip", ask_of("next"))
    assert asked.ask.history[-1] == Turn(ASSISTANT, "<1><2><3>")
    assert (asked.identity, asked.question) == (ASKED.identity, 2)
    desk.asker.kept["trip"] = answered(ASKED, 1)
    asked = desk.sessions.question("trip", ask_of("next"))
    assert asked.ask.history[-1] == Turn(ASSISTANT, "<1><2>")


def test_a_clock_that_was_set_back_makes_no_question_older(desk: Desk) -> None:
    ahead = replace(ASKED, asked_ms=1 << 50, state="stop")
    desk.files.keep(ahead)
    asked = desk.sessions.question("trip", ask_of("next"))
    assert asked.asked_ms == (1 << 50) + 1
    assert asked.is_newer_than(ahead)


def test_an_answer_that_breaks_off_is_kept_and_resumed(desk: Desk) -> None:
    desk.asker.breaks_off_at = 3
    with pytest.raises(NoMeshError):
        desk.ask("trip", ask_of(tokens_max=5))
    kept = desk.files.find("trip")
    assert kept is not None
    assert (kept.state, kept.ask.tokens, kept.text) == ("open", (1, 2, 3), "<1><2><3>")
    desk.asker.breaks_off_at = 100
    resumed = desk.sessions.resumed("", None)
    assert resumed.ask.request != kept.ask.request
    assert replace(resumed, ask=kept.ask) == kept
    pieces = [each for each in desk.sessions.answer(resumed) if isinstance(each, Piece)]
    assert [each.tokens for each in pieces] == [(4,), (5,)]
    kept = desk.files.find("trip")
    assert kept is not None
    assert (kept.state, kept.ask.tokens, kept.text) == (
        "length",
        (1, 2, 3, 4, 5),
        "<1><2><3><4><5>!",
    )
    with pytest.raises(MisuseError, match="no interrupted answer is known"):
        desk.sessions.resumed("", None)


def test_a_question_after_an_answer_that_was_cut_off_says_so(desk: Desk) -> None:
    desk.files.keep(answered(ASKED, 1, 2))
    desk.ask("trip", ask_of("next", tokens_max=1))
    assert desk.told == ["the last answer in trip was cut off after 2 tokens, and stays so"]


def test_a_complete_answer_can_only_become_longer(desk: Desk) -> None:
    for state in ("stop", "length"):
        desk.files.remove("trip")
        desk.files.keep(answered(ASKED, 1, 2, state=state))
        assert desk.sessions.resumed("trip", None).is_complete
        assert desk.sessions.resumed("trip", 2).is_complete
        assert desk.sessions.resumed("trip", 9).is_complete == (state == "stop")


def test_the_one_cut_off_last_is_resumed_without_a_name(desk: Desk) -> None:
    desk.files.keep(answered(replace(ASKED, name="old", asked_ms=5), 1))
    desk.asker.kept["new"] = answered(replace(ASKED, name="new", asked_ms=7), 1)
    desk.files.keep(answered(replace(ASKED, name="done", asked_ms=9), 1, state="stop"))
    assert desk.sessions.resumed("", None).name == "new"
    assert list(desk.shelf.known()) == ["done", "new", "old"]


def test_other_tokens_are_not_mixed_in(desk: Desk) -> None:
    desk.files.keep(answered(ASKED, 1))
    desk.asker.kv_kind = "q8"
    with pytest.raises(
        MisuseError, match="--kv f16, and would go on with other tokens under --kv q8"
    ):
        desk.sessions.resumed("trip", None)
    desk.asker.kv_kind = KV_F16
    desk.asker.model = (replace(FACTS, root="00" * 32, name="other"),)
    with pytest.raises(MisuseError, match="was begun by hashes and other would go on with"):
        desk.sessions.resumed("trip", None)
    desk.asker.model = ()  # a mesh that is about to load: it is the same one, as far as is known
    assert desk.sessions.resumed("trip", None).name == "trip"
    with pytest.raises(MisuseError, match="no session tale is known"):
        desk.sessions.resumed("tale", None)


def test_turns_that_were_left_out_stay_out(desk: Desk) -> None:
    for prompt in ("one", "two"):
        desk.ask("trip", ask_of(prompt, tokens_max=1))
    desk.asker.turns_kept = 2
    desk.ask("trip", ask_of("three", tokens_max=1))
    record = desk.files.find("trip")
    assert record is not None
    assert record.ask.history == (Turn(USER, "two"), Turn(ASSISTANT, "<1>!"))


def test_a_history_that_no_question_could_carry_loses_its_beginning(desk: Desk) -> None:
    half = "x" * (HISTORY_CHARACTERS_MAX // 2)
    history = (Turn(USER, half), Turn(ASSISTANT, "a"), Turn(USER, half), Turn(ASSISTANT, "b"))
    desk.asker.kept["trip"] = replace(
        ASKED, state="stop", ask=replace(ASKED.ask, history=history, prompt="p"), text="t"
    )
    asked = desk.sessions.question("trip", ask_of("next"))
    assert asked.ask.history == (*history[2:], Turn(USER, "p"), Turn(ASSISTANT, "t"))


def test_an_answer_goes_on_where_the_disk_takes_nothing_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = desk.sessions.question("trip", ask_of(tokens_max=2))
    answer = desk.sessions.answer(asked)
    next(answer)
    monkeypatch.setattr(session_asking, "SAVE_S", 0.0)

    def refuse(conversation: Conversation) -> None:
        raise EdgellamaError("the disk is full")

    monkeypatch.setattr(desk.shelf, "keep", refuse)
    assert isinstance(list(answer)[-1], Finished)
    assert set(desk.told) == {"the disk is full"}
    # But where it takes nothing from the beginning, a person should know before the answer.
    with pytest.raises(EdgellamaError, match="the disk is full"):
        next(desk.sessions.answer(asked))


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 65, "a\x00", " a", "\u2028"])
def test_what_cannot_be_a_name(desk: Desk, name: str) -> None:
    for call in (desk.shelf.find, desk.shelf.remove):
        with pytest.raises(MisuseError, match="cannot be the name of a session"):
            call(name)


def test_removing(desk: Desk, tmp_path: Path) -> None:
    desk.files.keep(ASKED)
    assert desk.shelf.remove("trip")
    assert not desk.shelf.remove("trip")
    desk.asker.kept["trip"] = ASKED
    assert desk.shelf.remove("trip")
    alone = SessionShelf(desk.files, Nowhere())
    desk.files.keep(ASKED)
    assert list(alone.known()) == ["trip"]
    assert alone.remove("trip")
    assert alone.known() == {}
