"""``edgellama tokenize`` and the chat template in ``edgellama ask``, as a person meets them."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import gguf_writing
import pytest

from edgellama.cli import main
from edgellama.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<{{ message.role }}>{{ message.content }}</s>{% endfor %}{{ '<assistant>' }}"
)


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgellama", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return gguf_writing.random_model(tmp_path / "model.gguf")


def test_ids_on_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.from_gguf(model)
    expected = tokenizer.encode("Hello, wörld </s>")
    assert run("tokenize", "--model", str(model), "Hello, wörld </s>") == 0
    assert capsys.readouterr().out == " ".join(map(str, expected)) + "\n"


def test_an_empty_text_is_an_empty_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokenize", "--model", str(model), "--no-special", "") == 0
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("options", "add_special", "parse_special"),
    [
        ([], True, False),
        (["--no-special"], False, False),
        (["--parse-special"], True, True),
        (["--no-special", "--parse-special"], False, True),
    ],
)
def test_special_tokens(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    add_special: bool,
    parse_special: bool,
) -> None:
    tokenizer = Tokenizer.from_gguf(model)
    expected = tokenizer.encode("a</s>", add_special, parse_special)
    assert run("tokenize", "--model", str(model), "--json", *options, "a</s>") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"tokens": expected, "pieces": [tokenizer.piece(token) for token in expected]}


def test_text_from_stdin(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "two\nlines\r\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run("tokenize", "--model", str(model), "-") == 0
    expected = Tokenizer.from_gguf(model).encode(text)
    assert [int(word) for word in capsys.readouterr().out.split()] == expected


def test_faults_are_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert run("tokenize", "--model", str(model), "-") == 2
    assert run("tokenize", "--model", str(model), "a\udce9") == 2
    assert run("tokenize", "--model", str(model.with_name("none.gguf")), "a") == 2
    model.write_bytes(model.read_bytes()[:100])
    assert run("tokenize", "--model", str(model), "a") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 4
    assert said.err.count("edgellama: ") == 4


def prompt_tokens(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    options = ["--backend", "numpy", "-n", "1", "--json"]
    assert run("ask", *arguments, *options) == 0, capsys.readouterr().err
    return list(json.loads(capsys.readouterr().out)["prompt_tokens"])


def test_ask_puts_the_prompt_into_the_template(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = str(gguf_writing.with_template(model, TEMPLATE))
    tokenizer = Tokenizer.from_gguf(chat)
    asked = prompt_tokens(capsys, "hi", "--model", chat)
    assert asked == tokenizer.encode("<s><user>hi</s><assistant>", parse_special=True)
    assert asked.count(1) == 1  # BOS stands there once
    assert tokenizer.eos in asked
    asked = prompt_tokens(capsys, "hi", "--model", chat, "--system", "Be brief.")
    expected = "<s><system>Be brief.</s><user>hi</s><assistant>"
    assert asked == tokenizer.encode(expected, parse_special=True)
    assert prompt_tokens(capsys, "hi", "--model", chat, "--raw") == tokenizer.encode("hi")


def test_a_model_without_a_template_continues_the_prompt(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prompt_tokens(capsys, "hi", "--model", str(model)) == Tokenizer.from_gguf(model).encode(
        "hi"
    )


@pytest.mark.parametrize(
    ("template", "arguments", "code", "said"),
    [
        (None, ["--system", "x"], 2, "a system text needs a model with a chat template"),
        (TEMPLATE, ["--system", "x", "--raw"], 2, "which --raw leaves out"),
        (TEMPLATE, ["--system", "x" * 70_000], 2, "longer than 65536 characters"),
        (TEMPLATE, ["--system", "\udce9"], 2, "--system is not UTF-8 text"),
        (
            "{% for x in range(9999) %}{% for x in range(9999) %}{% endfor %}{% endfor %}",
            [],
            1,
            "it takes too many steps); --raw asks without it",
        ),
        ("{{ raise_exception('Not today') }}", [], 2, "chat template refuses: Not today"),
        ("{% if %}", [], 1, "the chat template cannot be used (line 1: "),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    template: str | None,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    path = model if template is None else gguf_writing.with_template(model, template)
    options = ["--model", str(path), "--backend", "numpy", "-n", "1"]
    assert run("ask", "hi", *options, *arguments) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err.splitlines()[-1]
    assert "Traceback" not in shown.err
