"""Devices leave on a signal, come back with what they kept, and compute without numba."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hosts import GREEDY, PROMPT
from network import LAN, no_bridge_because, run

if TYPE_CHECKING:
    from pathlib import Path

    from hosts import Host, Mesh

Expected = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_before_there_is_a_mesh(mesh: Mesh, number: int) -> None:
    host = mesh.join("--ram", "300M")
    mesh.wait(host, lambda status: len(status["nodes"]) == 1)
    assert host.leave(number).code == 0


def test_those_who_stay_answer_on(mesh: Mesh, model: Path, expected: Expected) -> None:
    """A device that says goodbye is missed at once, and its layers are placed anew."""
    mesh.join("--model", model, "--ram", "600M")
    second, third = mesh.join("--ram", "500M"), mesh.join("--ram", "400M")
    guest = mesh.host()
    before = mesh.wait_ready(guest, 3)
    assert third.leave(signal.SIGINT).code == 0
    after = mesh.wait_ready(guest, 2)
    assert after["epoch"] > before["epoch"]
    assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["text"] == expected(*GREEDY)["text"]
    assert second.leave(signal.SIGTERM).code == 0


@pytest.mark.parametrize("asked", [0, 2], ids=["another was asked", "itself was asked"])
def test_a_device_dies_in_the_middle_of_an_answer(
    mesh: Mesh, model: Path, expected: Expected, asked: int
) -> None:
    """It says no goodbye; the answer goes on over the others and is the same."""
    long = ("-n", 400, "--temperature", 0, "--ignore-eos")
    members = [mesh.join("--model", model, "--ram", "600M")]
    members += [mesh.join("--ram", "500M"), mesh.join("--ram", "400M")]
    dying = members[2]
    guest = mesh.host()
    mesh.wait_ready(guest, 3)
    with guest.begin("ask", *mesh.of(members[asked]), *long, PROMPT) as asking:
        assert asking.stdout is not None
        text = asking.stdout.read(10)
        dying.kill()
        text += asking.stdout.read()
        assert asking.wait() == 0
    assert text.rstrip("\n") == expected(*long)["text"].rstrip("\n")


def received_bytes(host: Host) -> int:
    """Return how much has come in over the host's LAN interface."""
    name = host.place.entry[1].rpartition("/")[2]
    (interface,) = json.loads(run(f"ip -s -j -n {name} link show {LAN}"))
    return int(interface["stats64"]["rx"]["bytes"])


def test_weights_are_fetched_once(mesh: Mesh, model: Path, expected: Expected) -> None:
    """The second start finds the layers in the store; far fewer bytes than weights come in."""
    if reason := no_bridge_because():
        pytest.skip(f"bytes are counted at a namespace's interface: {reason}")
    mesh.join("--model", model, "--ram", "500M")
    second, guest = mesh.host(), mesh.host()
    fetched: list[int] = []
    for _ in range(2):
        before = received_bytes(second)
        second.join("--ram", "500M")
        mesh.wait_ready(guest, 2)
        fetched.append(received_bytes(second) - before)
        assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["text"] == expected(*GREEDY)["text"]
        assert second.leave().code == 0
        mesh.wait_ready(guest, 1)
    assert fetched[0] > model.stat().st_size // 4
    assert fetched[1] < model.stat().st_size // 16


@pytest.fixture
def without_numba(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a device on which numba cannot be imported, and never could."""
    block = "import sys\nsys.modules['numba'] = None\n"
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(block)
    paths = [str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")]
    kept = str(tmp_path / "kernels")  # kept machine code needs no numba
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "NUMBA_CACHE_DIR": kept}


def test_without_numba_alone(
    alone: Host, model: Path, expected: Expected, without_numba: dict[str, str]
) -> None:
    arguments = ("ask", "--model", model, "--json", *GREEDY, PROMPT)
    answer = alone.run(*arguments, environment=without_numba).json
    assert answer["tokens"] == expected(*GREEDY)["tokens"]


def test_without_numba_beside_numba(
    mesh: Mesh, model: Path, expected: Expected, without_numba: dict[str, str]
) -> None:
    mesh.join("--model", model, "--ram", "500M", "--backend", "numba")
    host, guest = mesh.host(), mesh.host()
    host.join(*mesh.at(host), "--ram", "500M", "--backend", "numpy", environment=without_numba)
    status = mesh.wait_ready(guest, 2)
    assert {node["backend"] for node in status["nodes"]} == {"numba", "numpy"}
    answer = mesh.ask(guest, PROMPT, "--json", *GREEDY).json
    assert answer["tokens"] == expected(*GREEDY)["tokens"]
    assert len({stage["node"] for stage in answer["route"]}) == 2


def test_numba_asked_for_and_missing(mesh: Mesh, without_numba: dict[str, str]) -> None:
    host = mesh.host()
    host.join(*mesh.at(host), "--backend", "numba", environment=without_numba)
    host.ended(30).refuses(2, "numba")


def test_the_demo_model_answers_where_there_is_nothing_else(alone: Host) -> None:
    outcome = alone.run("ask", "-n", 12, PROMPT, environment={"EDGELLAMA_KEY": ""})
    assert outcome.code == 0
    assert outcome.stdout.strip()
    assert "demo" in outcome.stderr


def test_a_device_is_suspended_in_the_middle_of_an_answer_and_wakes(
    mesh: Mesh, model: Path, expected: Expected
) -> None:
    """The others go on without it; when it wakes it joins again and spoils nothing."""
    long = ("-n", 400, "--temperature", 0, "--ignore-eos")
    members = [mesh.join("--model", model, "--ram", "600M")]
    members += [mesh.join("--ram", "500M"), mesh.join("--ram", "400M")]
    sleeper, guest = members[1], mesh.host()
    mesh.wait_ready(guest, 3)
    assert sleeper.joined is not None
    with guest.begin("ask", *mesh.of(members[0]), *long, PROMPT) as asking:
        assert asking.stdout is not None
        text = asking.stdout.read(10)
        sleeper.joined.send_signal(signal.SIGSTOP)
        text += asking.stdout.read()
        assert asking.wait() == 0
    sleeper.joined.send_signal(signal.SIGCONT)
    assert text.rstrip("\n") == expected(*long)["text"].rstrip("\n")
    mesh.wait_ready(guest, 3)
    assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["text"] == expected(*GREEDY)["text"]


def test_a_device_that_comes_and_goes_gets_layers_when_it_has_stayed(
    mesh: Mesh, model: Path, expected: Expected
) -> None:
    """It is lost twice; people see for how long it waits, and questions are answered meanwhile."""
    mesh.join("--model", model, "--ram", "600M")
    second, guest = mesh.join("--ram", "500M"), mesh.host()
    for _ in range(2):
        mesh.wait_ready(guest, 2)
        second.kill()
        mesh.wait_ready(guest, 1)
        second.join(*mesh.at(second), "--ram", "500M")

    def waits(status: dict[str, Any]) -> bool:
        alive = [node for node in status["nodes"] if node["state"] == "alive"]
        trials = [node["trial_s"] for node in alive if node["layers"] == [0, 0]]
        return bool(status["ready"] and len(alive) == 2 and len(trials) == 1 and trials[0] > 0)

    mesh.wait(guest, waits)
    assert "on trial" in guest.run("status", *mesh.towards()).stdout
    assert "gets no layers until it has stayed a while" in second.said()
    assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["text"] == expected(*GREEDY)["text"]
    mesh.wait_ready(guest, 2)
    assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["text"] == expected(*GREEDY)["text"]
