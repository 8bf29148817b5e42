"""``edgellama perplexity`` as a person and a program meet it."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING

import gguf_writing
import pytest

from edgellama.cli import main

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgellama", "perplexity", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(gguf_writing.random_model(tmp_path / "model.gguf"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The cat sat on the mat. " * 40, encoding="utf-8")
    return str(path)


def test_json(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", model, "--backend", "numpy", "--context", "16", "--json"]
    assert run(text, *options) == 0
    every = json.loads(capsys.readouterr().out)
    assert every["chunks"] == len(every["nll_chunks"]) > 3
    assert every["ppl"] == math.exp(every["nll"])
    assert every["nll"] == pytest.approx(sum(every["nll_chunks"]) / every["chunks"], rel=1e-12)
    assert every["tokens"] == 7 * every["chunks"]

    assert run(text, *options, "--chunks", "2", "--threads", "2") == 0
    two = json.loads(capsys.readouterr().out)
    assert two["nll_chunks"] == every["nll_chunks"][:2]


def test_a_line_for_a_person(model: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", model, "--backend", "numpy", "--context", "16", "--chunks", "1"]
    assert run(text, *options) == 0
    said = capsys.readouterr()
    assert said.out.startswith("perplexity ")
    assert said.out.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "options", "code", "fault"),
    [
        (b"short", (), 2, "less than one chunk of"),
        (b"\xff\xfe", (), 2, "is not UTF-8 text"),
        (None, (), 2, "cannot be read"),
        (b"x", ("--context", "100000000"), 2, "the model was made for"),
        (b"x", ("--context", "3"), 2, "--context"),
    ],
)
def test_misuse(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    options: tuple[str, ...],
    code: int,
    fault: str,
) -> None:
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    assert run(str(path), "--model", model, "--backend", "numpy", *options) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert fault in said.err
    assert said.err.count("\n") == 1
