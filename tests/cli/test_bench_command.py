"""``edgellama bench`` as a person and a program meet it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import gguf_writing
import pytest

from edgellama.cli import main
from edgellama.node import benchmark

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgellama", "bench", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a tiny model; its contexts leave no room for the longer prompt."""
    monkeypatch.setattr(benchmark, "REPETITIONS", 1)
    monkeypatch.setattr(benchmark, "PROMPT_TOKENS", (128, 100_000))
    return str(gguf_writing.random_model(tmp_path / "model.gguf"))


def test_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("numba")
    assert run(model, "--threads", "2,1", "--backend", "numba", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    rows = report["results"]
    assert [(row["test"], row["threads"]) for row in rows] == [
        ("pp128", 2),
        ("tg64", 2),
        ("pp128", 1),
        ("tg64", 1),
    ]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    for row in rows:
        assert ("bandwidth_ratio" in row) == (row["test"] == "tg64")
    for row in rows[1::2]:
        reached = row["tokens_per_second"] * row["bytes_per_token"] / row["read_bytes_per_second"]
        assert row["bandwidth_ratio"] == pytest.approx(reached)


def test_a_table_of_numpy_in_stages(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--backend", "numpy", "--stages", "2") == 0
    said = capsys.readouterr().out
    assert "pp128" in said
    assert "tg64" in said


def test_bytes_of_a_token_are_the_layers_and_the_head(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "--backend", "numpy", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    tool = gguf_writing.random_model_tool()
    matrices = [x for x in tool.model_tensors(tool.SHAPES["tiny"]) if len(x.shape) == 2]
    read = [x.weights for x in matrices if x.name != "token_embd.weight"]
    assert rows[-1]["bytes_per_token"] >= sum(read) * 18 // 32
    assert rows[-1]["giga_operations_per_second"] == pytest.approx(
        2 * sum(read) * rows[-1]["tokens_per_second"] / 1e9
    )


@pytest.mark.parametrize("threads", ["", "0", "65", "1,x", "1,,2", "-1"])
def test_lists_of_threads_that_are_none(
    model: str, threads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "--threads", threads) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_more_stages_than_layers(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--stages", "64", "--backend", "numpy") == 2
    assert "cannot be cut into 64" in capsys.readouterr().err


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path / "none.gguf")) == 2
    assert "there is no such file" in capsys.readouterr().err
