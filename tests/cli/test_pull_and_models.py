"""``pull`` and ``models`` as a person meets them, and pulled names where a path is accepted."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import gguf_writing
import pytest
from hub_serving import Hub, serving

from edgellama.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = gguf_writing.random_model(tmp_path / "random.gguf")
    files = {"tiny-Q8_0.gguf": model.read_bytes(), "tiny-Q4_0.gguf": b"no model"}
    with serving(Hub({"org/tiny": files})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgellama", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert isinstance(code, int)
    return code


def test_pull_list_use_remove(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pull", "hf:org/tiny:Q8_0") == 0
    said = capsys.readouterr()
    assert said.out == "tiny-Q8_0\n"
    assert "use it as --model tiny-Q8_0" in said.err

    assert run("models", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["reference"]) == ("tiny-Q8_0", "hf:org/tiny:tiny-Q8_0.gguf")
    assert (row["type"], row["family"]) == ("Q8_0", "llama")
    assert row["size_bytes"] == len(hub.repositories["org/tiny"]["tiny-Q8_0.gguf"])

    assert run("models") == 0
    assert "tiny-Q8_0" in capsys.readouterr().out

    for name in ("tiny-Q8_0", "hf:org/tiny", "hf:org/tiny:Q8_0", row["path"]):
        assert run("plan", "--model", name, "--ram", "1G", "--json") == 0
        assert json.loads(capsys.readouterr().out)["layers"] > 0

    assert run("models", "rm", "tiny-Q8_0") == 0
    assert run("models", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run("plan", "--model", "tiny-Q8_0", "--ram", "1G") == 2


def test_what_cannot_run_is_said_at_once(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pull", "hf:org/tiny:Q4_0") == 0
    assert "cannot run it: " in capsys.readouterr().err
    assert run("models", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["type"] == "-"


@pytest.mark.parametrize(
    ("arguments", "code", "fault"),
    [
        (["pull", "tiny"], 2, "names no model of a hub"),
        (["pull", "hf:org/tiny"], 2, "2 models match"),
        (["pull", "hf:org/none"], 2, "has no repository"),
        (["models", "rm", "none"], 2, "there is no pulled model none"),
        (["models", "rm", "hf:org/tiny"], 2, "there is no pulled model"),
        (["ask", "--model", "hf:org/tiny", "x"], 2, "not pulled yet; run edgellama pull"),
        (["ask", "--model", "none", "x"], 2, "no such file, and no pulled model"),
    ],
)
def test_misuse_is_one_line(
    hub: Hub, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, fault: str
) -> None:
    assert run(*arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert fault in said.err
    assert said.err.count("\n") == 1


def test_offline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run("pull", "hf:org/tiny") == 1
    said = capsys.readouterr().err
    assert "fetching org/tiny from http://127.0.0.1:9 failed" in said
    assert said.count("\n") == 1
