"""A mesh as people make one: no key is set, and a code goes from one device to the next."""

from __future__ import annotations

import os
import pty
import re
import stat
import time
from typing import TYPE_CHECKING

import pytest
from hosts import PROMPT, READY_WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hosts import Host, Mesh

pytestmark = pytest.mark.end_to_end

CODE = re.compile(r"join code ([1-9]-[a-z]+-[a-z]+) ")
NUMPY = ("--backend", "numpy")


class Terminal:
    """A terminal for a command to ask at."""

    def __init__(self) -> None:
        self._person, self.side = pty.openpty()

    def type(self, text: str) -> None:
        os.write(self._person, text.encode() + b"\n")

    def close(self) -> None:
        os.close(self._person)
        os.close(self.side)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def keyless(mesh: Mesh) -> Host:
    host = mesh.host()
    host.key = ""
    return host


def code_of(host: Host) -> str:
    deadline = time.monotonic() + READY_WITHIN_S
    while not (found := CODE.search(host.said())):
        assert host.joined is not None
        assert host.joined.poll() is None, host.said()
        assert time.monotonic() < deadline, host.said()
        time.sleep(0.1)
    return found.group(1)


def alive(mesh: Mesh, host: Host, count: int) -> dict[str, object]:
    return mesh.wait(
        host, lambda status: sum(node["state"] == "alive" for node in status["nodes"]) == count
    )


def test_from_nothing_to_an_encrypted_mesh_and_back(
    mesh: Mesh, terminal: Terminal, model: Path
) -> None:
    first, second, guest = keyless(mesh), keyless(mesh), keyless(mesh)
    first.join("--name", "one", "--model", model, *NUMPY, *mesh.at(first), stdin=terminal.side)
    code = code_of(first)
    key_file = first.folder / "home" / "mesh.key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600

    slot = code.split("-")[0]
    wrong = second.run("join", *mesh.at(second), "--code", f"{slot}-zebra-zephyr")
    wrong.refuses(2, "is not the code", "edgellama invite gives another")
    second.join("--name", "two", *NUMPY, *mesh.at(second), "--code", code)
    status = alive(mesh, first, 2)
    assert status["open"] is False
    assert alive(mesh, second, 2)["answered_by"] != status["answered_by"]
    mesh.wait(second, lambda status: bool(status["ready"]))
    assert second.run("ask", "-n", 3, PROMPT).code == 0
    assert key_file.read_text() == (second.folder / "home" / "mesh.key").read_text()

    # A later join needs nothing, and no terminal.
    second.leave()
    second.join("--name", "two", *NUMPY, *mesh.at(second))
    alive(mesh, first, 2)

    # A guest joins in with the next code, and only asks.
    invited = first.run("invite", "--json").json
    towards = [] if mesh.network.discovers else ["--peer", invited["address"]]
    mesh.wait(first, lambda status: bool(status["ready"]))
    asked = guest.run("ask", *towards, "--code", invited["code"], "-n", 3, PROMPT)
    assert asked.code == 0, asked
    assert guest.run("status", "--json", *mesh.towards()).json["open"] is False

    assert {each["name"] for each in first.run("devices", "--json").json["devices"]} == {
        *("one", "two")
    }
    forgotten = first.run("forget", "two")
    assert "two is forgotten" in forgotten.stdout, forgotten
    assert key_file.read_text() != (second.folder / "home" / "mesh.key").read_text()
    alive(mesh, first, 1)
    second.leave()
    guest.run("status", *mesh.towards()).refuses(3)
    assert first.leave().code == 0


def test_a_person_types_the_code(mesh: Mesh, terminal: Terminal) -> None:
    first, second = keyless(mesh), keyless(mesh)
    first.join(*NUMPY, *mesh.at(first), stdin=terminal.side)
    code = code_of(first)
    keyboard = Terminal()
    second.join(*NUMPY, *mesh.at(second), stdin=keyboard.side)
    keyboard.type(code.replace("-", " ").upper())
    alive(mesh, first, 2)
    keyboard.close()


def test_where_no_mesh_is_nobody_can_be_let_in_or_shut_out(mesh: Mesh) -> None:
    host = keyless(mesh)
    for verb in (("invite",), ("forget", "two")):
        host.run(*verb).refuses(3)


@pytest.mark.parametrize("said", ["--open", ""], ids=["asked for", "no terminal and no key"])
def test_an_open_mesh_needs_nothing_and_says_so(mesh: Mesh, said: str) -> None:
    first, second = keyless(mesh), keyless(mesh)
    for host in (first, second):
        host.join(*said.split(), *NUMPY, *mesh.at(host))
        assert not (host.folder / "home" / "mesh.key").exists()
    assert alive(mesh, second, 2)["open"] is True
    table = second.run("status", *mesh.towards())
    assert "OPEN" in table.stdout
    assert "OPEN" in second.run("devices", *mesh.towards()).stdout
    assert "OPEN" in first.said()
    first.run("invite").refuses(2, "OPEN")
