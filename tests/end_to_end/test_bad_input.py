"""What bad input gets: one line that says whose fault it is, an exit code, never a traceback."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from hosts import PROMPT
from network import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hosts import Host, Mesh

MISUSED = [
    "nonsense",
    "ask",
    "ask --temperature hot hello",
    "ask --temperature -1 hello",
    "ask --max-tokens -1 hello",
    "ask --top-p 2 hello",
    "ask --no-such-option hello",
    "ask --peer host:port hello",
    "ask --peer 10.0.0.1:70000 hello",
    "join extra",
    "join --ram elephants",
    "join --ram -1G",
    "join --port 70000",
    "join --threads 0",
    "join --context 0",
    "join --backend abacus",
    "plan --ram 1G",
    "status --no-such-option",
]


@pytest.mark.parametrize("line", MISUSED)
def test_misuse(alone: Host, line: str) -> None:
    outcome = alone.run(*line.split())
    outcome.refuses(2)
    assert outcome.stdout == ""


# One row of 256 weights, by kind.
ROW_BYTES = {gguf.GGMLQuantizationType.Q8_0: 272, gguf.GGMLQuantizationType.IQ4_XS: 136}


def write_model(path: Path, architecture: str, kind: gguf.GGMLQuantizationType) -> Path:
    """Write a file that is a sound GGUF and not a model that runs."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_tensor(
        "token_embd.weight", np.zeros((32, ROW_BYTES[kind]), np.uint8), raw_dtype=kind
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def truncated(model: Path, folder: Path) -> Path:
    path = folder / "short.gguf"
    path.write_bytes(model.read_bytes()[:-1000])
    return path


def no_gguf(model: Path, folder: Path) -> Path:
    path = folder / "text.gguf"
    path.write_text("this is no model")
    return path


def foreign(model: Path, folder: Path) -> Path:
    return write_model(folder / "foreign.gguf", "mamba", gguf.GGMLQuantizationType.Q8_0)


def odd_type(model: Path, folder: Path) -> Path:
    return write_model(folder / "odd.gguf", "llama", gguf.GGMLQuantizationType.IQ4_XS)


def missing(model: Path, folder: Path) -> Path:
    return folder / "missing.gguf"


FILES = [
    (missing, 2, "missing.gguf"),
    (truncated, 1, "short.gguf"),
    (no_gguf, 1, "text.gguf"),
    (foreign, 1, "mamba"),
    (odd_type, 1, "IQ4_XS"),
]
COMMANDS = ["ask --model {} hello", "plan --model {} --ram 1G", "join --model {}"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("make", "code", "word"), FILES, ids=[row[0].__name__ for row in FILES])
def test_model_files(
    alone: Host,
    model: Path,
    tmp_path: Path,
    make: Callable[[Path, Path], Path],
    code: int,
    word: str,
    command: str,
) -> None:
    path = make(model, tmp_path)
    outcome = alone.run(*command.format(path).split())
    outcome.refuses(code, word)
    assert command.startswith("join") or outcome.stdout == ""


def test_a_prompt_longer_than_the_context(alone: Host, model: Path) -> None:
    alone.run("ask", "--model", model, "cat " * 5000).refuses(2, "context")


def test_no_mesh_where_it_should_be(alone: Host) -> None:
    alone.run("ask", "--peer", f"127.0.0.1:{free_port()}", "hello").refuses(3)
    alone.run("status", "--peer", f"127.0.0.1:{free_port()}").refuses(3)


def test_plan_says_how_much_is_missing(alone: Host, model: Path) -> None:
    alone.run("plan", "--model", model, "--ram", "100K,100K").refuses(3, "bytes")


def test_too_little_memory_in_the_mesh(mesh: Mesh, model: Path) -> None:
    member = mesh.join("--model", model, "--ram", "100K")
    guest = mesh.host()
    status = mesh.wait(guest, lambda status: len(status["nodes"]) == 1)
    assert status["ready"] is False
    mesh.ask(guest, PROMPT).refuses(3, "bytes")
    assert member.leave().code == 0


def test_a_busy_port(loopback_mesh: Mesh) -> None:
    host = loopback_mesh.host()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", host.place.port))
        host.join(*loopback_mesh.at(host))
        host.ended(30).refuses(1, str(host.place.port))


def test_two_devices_with_different_models(mesh: Mesh, model: Path, tmp_path: Path) -> None:
    data = bytearray(model.read_bytes())
    data[-3] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    first = mesh.join("--model", model, "--ram", "500M", "--name", "first")
    guest = mesh.host()
    mesh.wait_ready(guest, 1)
    second = mesh.join("--model", other, "--ram", "500M", "--name", "second")
    second.ended(60).refuses(1, "model")
    answer: dict[str, Any] = mesh.ask(guest, PROMPT, "--json", "-n", 3).json
    assert len(answer["tokens"]) == 3
    assert first.leave().code == 0
