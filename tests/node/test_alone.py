"""One device alone: the mesh's own code in one thread, so the mesh's own answer."""

from __future__ import annotations

from contextlib import closing
from threading import Event
from typing import TYPE_CHECKING

import pytest
from mesh_building import A, ask_of
from model_running import Ring

from edgellama.errors import EdgellamaError, UnplaceableError
from edgellama.model.tokenizer import Tokenizer
from edgellama.net.packed import PackedCache
from edgellama.net.store import Store
from edgellama.node.alone import Alone, AnswerMessage
from edgellama.node.loading import SpanLoader, own_model_facts
from edgellama.values import SamplingSettings, Span
from edgellama.wire.messages import Ask, Finished, Notice, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellama_kernels import Kernels
    from model_running import PackedModel

    Answer = Callable[..., list[AnswerMessage]]

TEXT = "once upon"


@pytest.fixture
def answer(model_path: Path, tmp_path: Path, kernels: Kernels) -> Iterator[Answer]:
    """Return what asks a device that has the model's file and plenty of memory."""
    store = Store(tmp_path / "store")
    own = store.adopt(model_path)
    facts = own_model_facts(own, model_path)
    told: list[str] = []
    loader = SpanLoader(store, PackedCache(tmp_path / "packed"), b"", told.append)

    def ask_alone(ask: Ask, ram_bytes: int = 1 << 30, context: int = 0) -> list[AnswerMessage]:
        alone = Alone(
            facts, loader, kernels, node=A, name="here", ram_bytes=ram_bytes, context=context
        )
        with closing(alone):
            return list(alone.answer(ask))

    yield ask_alone
    store.close()


@pytest.fixture
def alone(model_path: Path, tmp_path: Path, kernels: Kernels) -> Iterator[Alone]:
    """Return a device that is asked several times."""
    store = Store(tmp_path / "store")
    facts = own_model_facts(store.adopt(model_path), model_path)
    loader = SpanLoader(store, PackedCache(tmp_path / "packed"), b"", lambda _: None)
    alone = Alone(facts, loader, kernels, node=A, name="here", ram_bytes=1 << 30, context=0)
    with closing(alone), closing(store):
        yield alone


def tokens_of(messages: list[AnswerMessage]) -> list[int]:
    return [token for each in messages if isinstance(each, Piece) for token in each.tokens]


def test_the_answer_is_the_models(answer: Answer, packed: PackedModel, kernels: Kernels) -> None:
    prompt = Tokenizer.from_gguf(packed.gguf).encode(TEXT)
    expected = Ring(packed, kernels, [4]).greedy(prompt, 6)
    messages = answer(ask_of(TEXT, 6, ignore_end=True))
    assert tokens_of(messages) == expected
    finished = messages[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.tokens_count) == ("length", 6)
    assert finished.prompt_tokens == tuple(prompt)
    assert [(each.node, each.name, each.span) for each in finished.route] == [
        (A, "here", Span(0, 4))
    ]
    assert finished.counters.packets_sent == 0
    stream = Tokenizer.from_gguf(packed.gguf).stream()
    text = "".join(map(stream.push, expected)) + stream.finish()
    assert "".join(each.text for each in messages if not isinstance(each, Notice)) == text


def test_a_seed_repeats_an_answer(answer: Answer) -> None:
    settings = [SamplingSettings(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    answers = [
        tokens_of(answer(ask_of(TEXT, 8, sampling=each, ignore_end=True))) for each in settings
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_known_tokens_are_continued(answer: Answer) -> None:
    whole = tokens_of(answer(ask_of(TEXT, 6, ignore_end=True)))
    rest = answer(ask_of(TEXT, 6, ignore_end=True, tokens=tuple(whole[:2])))
    assert tokens_of(rest) == whole[2:]


def test_the_context_is_what_was_asked_for(answer: Answer, packed: PackedModel) -> None:
    count = len(Tokenizer.from_gguf(packed.gguf).encode(TEXT))
    messages = answer(ask_of(TEXT, 100, ignore_end=True), context=count + 2)
    assert len(tokens_of(messages)) == 2
    with pytest.raises(EdgellamaError, match=f"context of {count}"):
        answer(ask_of(TEXT), context=count)


def test_too_little_memory_is_said(answer: Answer) -> None:
    with pytest.raises(UnplaceableError, match="bytes\\) are missing") as caught:
        answer(ask_of(TEXT), ram_bytes=1000)
    assert caught.value.exit_code == 3


def test_what_the_mesh_refuses_is_raised(answer: Answer) -> None:
    with pytest.raises(EdgellamaError, match="repeat penalty") as caught:
        answer(ask_of(TEXT, sampling=SamplingSettings(repeat_penalty=99.0)))
    assert caught.value.exit_code == 2


def test_questions_one_after_another_are_answered_alike(alone: Alone) -> None:
    first, second = (list(alone.answer(ask_of(TEXT, 6, request=n))) for n in (1, 2))
    assert tokens_of(first) == tokens_of(second)


def test_a_stopped_answer_leaves_the_device_ready(alone: Alone) -> None:
    whole = tokens_of(list(alone.answer(ask_of(TEXT, 6, ignore_end=True))))
    stop = Event()
    came = []
    for message in alone.answer(ask_of(TEXT, 6, ignore_end=True), stop):
        came += tokens_of([message])
        if len(came) == 2:
            stop.set()
    assert came == whole[:2]
    assert tokens_of(list(alone.answer(ask_of(TEXT, 6, ignore_end=True)))) == whole


def test_a_long_prompt_is_stopped_before_it_is_read(alone: Alone) -> None:
    stop = Event()
    stop.set()
    assert list(alone.answer(ask_of("once upon " * 20, 6), stop)) == []
    assert tokens_of(list(alone.answer(ask_of(TEXT, 3, ignore_end=True))))


def test_an_answer_that_nobody_hears_to_its_end(alone: Alone) -> None:
    whole = tokens_of(list(alone.answer(ask_of(TEXT, 6, ignore_end=True))))
    for _ in range(3):  # more than there is room for at the same time
        next(iter(alone.answer(ask_of(TEXT, 6, ignore_end=True))))
    assert tokens_of(list(alone.answer(ask_of(TEXT, 6, ignore_end=True)))) == whole


def test_a_refused_question_leaves_the_device_ready(alone: Alone) -> None:
    with pytest.raises(EdgellamaError, match="repeat penalty"):
        list(alone.answer(ask_of(TEXT, sampling=SamplingSettings(repeat_penalty=99.0))))
    assert tokens_of(list(alone.answer(ask_of(TEXT, 3, ignore_end=True))))
