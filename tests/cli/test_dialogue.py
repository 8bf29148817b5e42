"""A conversation by hand: what is asked, what is kept of it, and what the commands do."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import pytest

from edgellama.cli.answering import Answering
from edgellama.cli.dialogue import Dialogue
from edgellama.cli.screen import Pipe, printable
from edgellama.errors import EdgellamaError, MisuseError, NoMeshError
from edgellama.node.admission import KeyChoice
from edgellama.node.asking import LocalSettings
from edgellama.values import ASSISTANT, USER, LinkCounters, SamplingSettings, Turn
from edgellama.wire.messages import (
    HISTORY_CHARACTERS_MAX,
    TURNS_MAX,
    Ask,
    Finished,
    Notice,
    Piece,
    StatusReply,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.node.alone import AnswerMessage

SAID = Answering(
    SamplingSettings(), 9, False, "", None, (), KeyChoice(), LocalSettings(None, "auto", None)
)


class Screen(Pipe):
    """Keeps what is shown."""

    def __init__(self, stop: Event | None = None) -> None:
        self.text = ""
        self.notes: list[str] = []
        self.stop = stop

    def write(self, text: str) -> None:
        self.text += text

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def answering(self) -> Iterator[Event | None]:
        yield self.stop


class Model:
    """Answers with the words that it is given, and keeps what it was asked."""

    def __init__(self, *words: str, turns_kept: int = TURNS_MAX, reason: str = "stop") -> None:
        self.words = words
        self.turns_kept = turns_kept
        self.reason = reason
        self.is_templated = True
        self.asked: list[Ask] = []
        self.error: EdgellamaError | None = None

    def answer(self, ask: Ask, stop: Event | None = None) -> Iterator[AnswerMessage]:
        self.asked.append(ask)
        if self.error:
            raise self.error
        yield Notice(ask.request, "waiting")
        for index, word in enumerate(self.words):
            if stop is not None and stop.is_set():
                return
            yield Piece(ask.request, index, (index,), word, self.turns_kept, self.is_templated)
        count = len(self.words)
        prompt, counters = (1, 2, 3), LinkCounters()
        yield Finished(ask.request, self.reason, count, ".", prompt, 9, 1_000_000, (), counters)

    def status(self) -> StatusReply:
        return StatusReply(1, "0" * 32, True, 1, (), 64, (), "", False)


def dialogue(model: Model, screen: Screen, *, is_patient: bool = False) -> Dialogue:
    return Dialogue(model, SAID, screen, is_patient=is_patient)


def test_each_question_brings_what_was_said_before() -> None:
    model, screen = Model("Hel", "lo"), Screen()
    talk = dialogue(model, screen)
    assert talk.take("Hi")
    assert talk.take("And\nyou?")
    assert screen.text == "Hello.\nHello.\n"
    assert screen.notes == ["waiting"] * 2
    assert [(ask.prompt, ask.history) for ask in model.asked] == [
        ("Hi", ()),
        ("And\nyou?", (Turn(USER, "Hi"), Turn(ASSISTANT, "Hello."))),
    ]
    assert model.asked[0].request != model.asked[1].request
    assert model.asked[0].sampling == SAID.sampling
    assert model.asked[0].tokens_max == 9


def test_a_stopped_answer_is_kept_as_far_as_it_came() -> None:
    stop = Event()
    screen = Screen(stop)

    class Stopping(Model):
        def answer(self, ask: Ask, stop: Event | None = None) -> Iterator[AnswerMessage]:
            for message in super().answer(ask, stop):
                yield message
                if isinstance(message, Piece):
                    assert stop is not None
                    stop.set()

    model = Stopping("Hel", "lo")
    talk = dialogue(model, screen)
    talk.take("Hi")
    assert screen.text == "Hel\n"
    assert screen.notes[-1] == "stopped"
    stop.clear()
    talk.take("more")
    assert model.asked[1].history == (Turn(USER, "Hi"), Turn(ASSISTANT, "Hel"))


def test_an_answer_stopped_before_it_began_leaves_nothing() -> None:
    stop = Event()
    stop.set()
    model, screen = Model("Hello"), Screen(stop)
    talk = dialogue(model, screen)
    talk.take("Hi")
    stop.clear()
    talk.take("Hi again")
    assert model.asked[1].history == ()


def test_turns_left_out_are_forgotten_and_said_to_be() -> None:
    model, screen = Model("x"), Screen()
    talk = dialogue(model, screen)
    for word in ("a", "b", "c"):
        talk.take(word)
    model.turns_kept = 2
    talk.take("d")
    assert "its first 4 messages are left out" in screen.notes[-1]
    talk.take("e")
    assert [turn.content for turn in model.asked[-1].history] == ["c", "x.", "d", "x."]


def test_that_a_model_has_no_template_is_said_once() -> None:
    model, screen = Model("x", "y"), Screen()
    model.is_templated = False
    talk = dialogue(model, screen)
    talk.take("a")
    talk.take("b")
    assert [note for note in screen.notes if "no chat template" in note] == [
        "this model has no chat template: it goes on with the text"
    ]


@pytest.mark.parametrize(
    ("words", "why"), [(3, "the context is full"), (9, "--max-tokens allows no more")]
)
def test_why_an_answer_is_cut_is_said(words: int, why: str) -> None:
    screen = Screen()
    dialogue(Model(*["x"] * words, reason="length"), screen).take("a")
    assert screen.notes[-1] == f"cut after {words} tokens: {why}"


def test_an_error_ends_one_answer_or_all() -> None:
    model, screen = Model("x"), Screen()
    model.error = NoMeshError("gone")
    with pytest.raises(NoMeshError):
        dialogue(model, screen).take("a")
    talk = dialogue(model, screen, is_patient=True)
    assert talk.take("a")
    assert screen.notes == ["gone"]
    model.error = None
    talk.take("b")
    assert model.asked[-1].history == ()


def test_the_system_text() -> None:
    model, screen = Model("x"), Screen()
    talk = dialogue(model, screen)
    for text in ("/system Be  brief.", "a", "/system", "b", "/system none", "c"):
        assert talk.take(text)
    assert [ask.system for ask in model.asked] == ["Be  brief.", "Be  brief.", ""]
    assert screen.text.count("system: Be  brief.\n") == 2
    with pytest.raises(MisuseError, match="the text is longer than 65536 characters"):
        talk.take("/system " + "x" * 65537)


def test_clear_forgets() -> None:
    model = Model("x")
    talk = dialogue(model, Screen())
    for text in ("a", "/clear", "b"):
        talk.take(text)
    assert model.asked[-1].history == ()


@pytest.mark.parametrize("text", ["/quit", "/quit now"])
def test_quit_ends(text: str) -> None:
    assert not dialogue(Model(), Screen()).take(text)


def test_unknown_commands_are_named() -> None:
    model, screen = Model("x"), Screen()
    with pytest.raises(MisuseError, match="there is no command /etc/passwd: /help"):
        dialogue(model, screen).take("/etc/passwd is what?")
    assert not model.asked
    dialogue(model, screen).take(" /etc/passwd is what?")
    assert model.asked[0].prompt == " /etc/passwd is what?"


def test_help_lists_every_command() -> None:
    screen = Screen()
    talk = dialogue(Model(), screen)
    talk.take("/help")
    assert all(name.strip() in screen.text for name in talk.commands)
    assert max(map(len, screen.text.splitlines())) <= 80


def test_status_says_how_full_the_context_is() -> None:
    screen = Screen()
    talk = dialogue(Model("x", "y", "z"), screen)
    talk.take("/status")
    assert "0 messages\n" in screen.text
    talk.take("a")
    talk.take("/status")
    assert "2 messages, 6 tokens of a context of 64; 2.0 tokens a second\n" in screen.text


def test_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    screen = Screen()
    talk = dialogue(Model("Grüß", " Gott"), screen)
    for text in ("/system s", "Hi", "/save a.json", "/save b.md", "/save"):
        talk.take(text)
    assert json.loads(Path("a.json").read_text(encoding="utf-8")) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Grüß Gott."},
    ]
    text = Path("b.md").read_text(encoding="utf-8")
    assert text == "## system\n\ns\n\n## user\n\nHi\n\n## assistant\n\nGrüß Gott.\n"
    (unnamed,) = tmp_path.glob("edgellama-chat-*.md")
    assert unnamed.read_text(encoding="utf-8") == text
    talk.take("again")
    talk.take("/save a.json")  # its own file may be written again
    assert len(json.loads(Path("a.json").read_text(encoding="utf-8"))) == 5


def test_saving_never_destroys(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    talk = dialogue(Model("x"), Screen())
    with pytest.raises(MisuseError, match="is there already"):
        talk.take(f"/save {mine}")
    assert mine.read_text() == "precious"
    with pytest.raises(MisuseError, match="cannot write"):
        talk.take(f"/save {tmp_path}/no/such/folder")


def test_a_history_that_no_message_could_carry_is_shortened() -> None:
    model = Model("x" * (HISTORY_CHARACTERS_MAX // 3))
    talk = dialogue(model, Screen())
    for _ in range(4):
        talk.take("a")
    assert len(model.asked[-1].history) == 4
    model.words = ("x",)
    talk.take("/clear")
    for _ in range(TURNS_MAX // 2 + 2):
        talk.take("a")
    assert len(model.asked[-1].history) == TURNS_MAX


def test_a_terminal_shows_control_characters_and_does_not_obey_them() -> None:
    assert printable("a\x1b[2Jb\rc\x9bd\te\n\x07é") == "a\ufffd[2Jb\ufffdc\ufffdd\te\n\ufffdé"
