"""A device is told to end in the middle of an answer: the others take over before it goes."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hosts import GREEDY, PROMPT

from edgellama.node.power_watch import READ_S

if TYPE_CHECKING:
    from pathlib import Path

    from hosts import Host, Mesh

Expected = Callable[..., dict[str, Any]]

LONG = ("-n", 400, "--temperature", 0, "--ignore-eos")
ROLES = ["home", "middle", "last"]


def ring(mesh: Mesh, members: list[Host]) -> list[Host]:
    """Return the devices of the ring, home first."""
    nodes = mesh.wait_ready(mesh.hosts[-1], len(members))["nodes"]
    by_address = {host.place.address: host for host in members}
    by_port = {host.place.port: host for host in members}
    stages = sorted((not node["home"], node["layers"], node["address"]) for node in nodes)
    addresses = [address.rpartition(":") for *_, address in stages]
    if mesh.network.discovers:
        return [by_address[host] for host, _, _ in addresses]
    return [by_port[int(port)] for *_, port in addresses]


@pytest.mark.parametrize("asked", ["the leaver", "another"])
@pytest.mark.parametrize("role", ROLES)
def test_a_device_ends_in_the_middle_of_an_answer(
    mesh: Mesh, model: Path, expected: Expected, role: str, asked: str
) -> None:
    members = [mesh.join("--model", model, "--ram", "600M")]
    members += [mesh.join("--ram", "500M"), mesh.join("--ram", "400M")]
    guest = mesh.host()
    stages = ring(mesh, members)
    leaver = stages.pop(ROLES.index(role))
    gateway = leaver if asked == "the leaver" else stages[0]
    came_at: list[float] = []
    text = ""
    with guest.begin("ask", *mesh.of(gateway), *LONG, PROMPT) as asking:
        assert asking.stdout is not None
        while part := asking.stdout.read(1):
            text += part
            came_at.append(time.monotonic())
            if len(came_at) == 40:
                assert leaver.joined is not None
                leaver.joined.send_signal(signal.SIGTERM)
        assert asking.wait() == 0
    outcome = leaver.ended(20)
    assert outcome.code == 0
    assert "leaving at once" not in outcome.stdout, mesh.story(outcome)
    gaps_ms = [1e3 * (after - before) for before, after in itertools.pairwise(came_at)]
    most_ms = statistics.quantiles(gaps_ms, n=100)[-1]
    sys.stdout.write(  # shown by pytest -s
        f"{role} leaves, {asked} was asked: longest gap {max(gaps_ms):.0f} ms, "
        f"99 of 100 below {most_ms:.0f} ms\n"
    )
    assert text.rstrip("\n") == expected(*LONG)["text"].rstrip("\n")
    mesh.wait_ready(guest, 2)
    assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["tokens"] == expected(*GREEDY)["tokens"]


def test_a_terminal_is_closed(mesh: Mesh, model: Path, expected: Expected) -> None:
    mesh.join("--model", model, "--ram", "600M")
    second, guest = mesh.join("--ram", "500M"), mesh.host()
    mesh.wait_ready(guest, 2)
    outcome = second.leave(signal.SIGHUP)
    assert outcome.code == 0
    assert "handing over" in outcome.stdout
    mesh.wait_ready(guest, 1)
    assert mesh.ask(guest, PROMPT, "--json", *GREEDY).json["tokens"] == expected(*GREEDY)["tokens"]


def test_a_second_signal_ends_at_once(mesh: Mesh, model: Path) -> None:
    mesh.join("--model", model, "--ram", "600M")
    second, guest = mesh.join("--ram", "500M"), mesh.host()
    mesh.wait_ready(guest, 2)
    assert second.joined is not None
    second.joined.send_signal(signal.SIGINT)
    time.sleep(0.2)
    second.leave(signal.SIGINT)
    mesh.wait_ready(guest, 1)


def phone_that_says(folder: Path, percent: int) -> dict[str, str]:
    """Return the environment of a phone whose battery is as ``charge`` says it is."""
    charge(folder, percent)
    command = folder / "termux-battery-status"
    command.write_text(f"#!/bin/sh\ncat '{folder / 'battery'}'\n")
    command.chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), os.environ["PATH"]])}


def charge(folder: Path, percent: int) -> None:
    """Let the phone's battery be so full, as ``termux-battery-status`` prints it."""
    said = f'{{"percentage": {percent}, "plugged": "UNPLUGGED", "temperature": 25.0}}'
    (folder / "battery").write_text(said)


def rests(status: dict[str, Any]) -> bool:
    """Whether one of two devices rests and the other one holds all layers."""
    intents = sorted(node["intent"] for node in status["nodes"])
    holders = [node for node in status["nodes"] if node["layers"][0] < node["layers"][1]]
    return status["ready"] and intents == ["rests", "stays"] and len(holders) == 1


def test_a_phone_with_a_low_battery_holds_nothing_unless_it_is_to_stay(
    mesh: Mesh, model: Path, expected: Expected, tmp_path: Path
) -> None:
    low = phone_that_says(tmp_path, 12)
    mesh.join("--model", model, "--ram", "600M")
    phone, guest = mesh.host(), mesh.host()
    phone.join(*mesh.at(phone), "--ram", "500M", environment=low)
    mesh.wait(guest, rests)
    assert "12 %" in phone.said()
    asked = mesh.ask(guest, PROMPT, *mesh.of(phone), "--json", *GREEDY).json
    assert asked["tokens"] == expected(*GREEDY)["tokens"]
    phone.kill()
    phone.join(*mesh.at(phone), "--ram", "500M", "--stay", environment=low)
    mesh.wait_ready(guest, 2)


def test_a_phone_whose_battery_runs_low_hands_its_layers_over_between_two_tokens(
    mesh: Mesh, model: Path, expected: Expected, tmp_path: Path
) -> None:
    """It looks once a minute; one answer after the other is made until then."""
    mesh.join("--model", model, "--ram", "500M")
    phone, guest = mesh.host(), mesh.host()
    phone.join(*mesh.at(phone), "--ram", "600M", environment=phone_that_says(tmp_path, 80))
    mesh.wait_ready(guest, 2)
    charge(tmp_path, 19)
    until = time.monotonic() + 2 * READ_S
    routes: list[int] = []
    while not rests(mesh.wait(guest, lambda status: status["ready"])):
        assert time.monotonic() < until, phone.said()
        answer = mesh.ask(guest, PROMPT, *mesh.of(phone), "--json", *LONG).json
        assert answer["tokens"] == expected(*LONG)["tokens"]
        routes.append(len(answer["route"]))
    assert routes[0] == 2
    assert "19 %" in phone.said()
    asked = mesh.ask(guest, PROMPT, *mesh.of(phone), "--json", *GREEDY).json
    assert asked["tokens"] == expected(*GREEDY)["tokens"]
