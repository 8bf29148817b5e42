"""Conversations that outlive every process of the mesh, and go on from any device."""

from __future__ import annotations

import json
import signal
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hosts import PROMPT

from edgellama.demo import demo_model_path

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from hosts import Host, Mesh

Expected = Callable[..., dict[str, Any]]

GREEDY_LONG = ("-n", 400, "--temperature", 0, "--ignore-eos")
SAMPLED_LONG = ("-n", 400, "--temperature", 0.9, "--top-k", 40, "--seed", 11, "--ignore-eos")

SLOWLY = ("--backend", "numpy", "--threads", 1)  # or an answer is done before anything is killed


def join_three(mesh: Mesh, model: Path) -> list[Host]:
    offers = (("--model", model, "--ram", "600M"), ("--ram", "500M"), ("--ram", "400M"))
    return [mesh.join(*offer, *SLOWLY) for offer in offers]


def join_again(mesh: Mesh, members: list[Host], model: Path) -> None:
    """Start the members again, each with the folder that it had."""
    offers = (("--model", model, "--ram", "600M"), ("--ram", "500M"), ("--ram", "400M"))
    for host, offer in zip(members, offers, strict=True):
        host.join(*mesh.at(host), *offer, *SLOWLY)


def read_some(asking: subprocess.Popen[str], characters: int) -> str:
    assert asking.stdout is not None
    text = ""
    while len(text) < characters:
        piece = asking.stdout.read(1)
        assert piece, "the answer ended early"
        text += piece
    return text


def suspend(host: Host) -> None:
    assert host.joined is not None
    host.joined.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("long", [GREEDY_LONG, SAMPLED_LONG], ids=["greedy", "sampled"])
def test_every_process_is_killed_and_another_device_resumes(
    mesh: Mesh, model: Path, expected: Expected, long: tuple[object, ...]
) -> None:
    members = join_three(mesh, model)
    asker, other = mesh.host(), mesh.host()
    mesh.wait_ready(asker, 3)
    ask = ("ask", *mesh.of(members[1]), "--session", "story", *long, PROMPT)
    with asker.begin(*ask) as asking:
        seen = read_some(asking, 60)
        suspend(members[2])  # or a quick mesh would be done before it is killed
        time.sleep(1.5)  # what was said a second ago is on the disks
        for host in members:
            host.kill()
        asking.kill()
    join_again(mesh, members, model)
    mesh.wait_ready(other, 3)
    (known,) = other.run("sessions", "--json", *mesh.towards()).json
    assert known["state"] == "open"
    assert known["tokens"] > 0
    answer = mesh.resume(other, "story")
    assert answer["session"]["tokens_known"] >= known["tokens"]
    assert answer["tokens"] == expected(*long)["tokens"]
    assert answer["text"] == expected(*long)["text"]
    assert answer["text"].startswith(seen)
    # The asker's own device went on to none of it, and may look at it now.
    assert mesh.resume(asker, "story")["tokens"] == expected(*long)["tokens"]


def test_the_asker_alone_is_killed_and_a_member_resumes_the_last_answer(
    mesh: Mesh, model: Path, expected: Expected
) -> None:
    members = join_three(mesh, model)
    asker = mesh.host()
    mesh.wait_ready(asker, 3)
    with asker.begin(
        "ask", *mesh.of(members[2]), "--session", "mine", *GREEDY_LONG, PROMPT
    ) as asking:
        read_some(asking, 40)
        suspend(members[1])  # or a quick mesh would be done before it misses the asker
        asking.kill()
        time.sleep(2.5)
    assert members[1].joined is not None
    members[1].joined.send_signal(signal.SIGCONT)
    mesh.wait_ready(mesh.host(), 3)
    outcome = members[0].run("ask", *mesh.towards(), "--resume")
    assert outcome.code == 0, outcome
    assert outcome.stdout == expected(*GREEDY_LONG)["text"] + "\n"
    assert "going on in mine after" in outcome.stderr


def test_a_conversation_goes_on_from_another_device(mesh: Mesh, model: Path, alone: Host) -> None:
    """Each question brings along what was said, whoever asked it: as one text would be."""
    members = join_three(mesh, model)
    guests = [mesh.host(), mesh.host()]
    mesh.wait_ready(guests[0], 3)
    text = ""
    for number, prompt in enumerate(["Once upon a time", "The next day", "At last"]):
        asker = guests[number % 2]
        options = ("--session", "tale", "-n", 20, "--json")
        answer = mesh.ask(asker, prompt, *options).json
        assert answer["session"] == {"name": "tale", "question": number + 1, "tokens_known": 0}
        text += ("\n" if text else "") + prompt
        plain = alone.run("ask", "--model", model, "-n", 20, "--raw", "--json", text).json
        assert (answer["tokens"], answer["prompt_tokens"]) == (
            plain["tokens"],
            plain["prompt_tokens"],
        )
        text += "\n" + answer["text"]
    kept = [host for host in members if session_files(host)]
    assert len(kept) >= 2  # the members that were asked, and one more of each
    for host in (*kept, *guests):
        (path,) = session_files(host)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (known,) = members[0].run("sessions", "--json", *mesh.towards()).json
    assert (known["name"], known["questions"], known["state"]) == ("tale", 3, "length")
    # It is removed everywhere but on the other guest, which is no member.
    removed = guests[0].run("sessions", *mesh.towards(), "rm", "tale")
    assert removed.code == 0
    deadline = time.monotonic() + 20
    while any(map(session_files, (*members, guests[0]))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(session_files, (*members, guests[0])))
    assert members[0].run("sessions", "--json", *mesh.towards()).json == []
    guests[0].run("sessions", *mesh.towards(), "rm", "tale").refuses(2, "no session tale")


def session_files(host: Host) -> list[Path]:
    return list((host.folder / "home" / "sessions").glob("*.session"))


def test_what_cannot_be_resumed_is_one_line(loopback_mesh: Mesh, model: Path, alone: Host) -> None:
    mesh = loopback_mesh
    member = mesh.join("--model", model, "--ram", "600M")
    guest = mesh.host()
    mesh.wait_ready(guest, 1)

    def refused(*words: object) -> Any:
        return guest.run("ask", *mesh.towards(), *words)

    refused("--resume").refuses(2, "no interrupted answer")
    refused("--resume", "nothing").refuses(2, "no session nothing")
    refused("--resume", "a", "and a prompt").refuses(2, "takes no PROMPT")
    refused("--resume", "a", "--session", "b").refuses(2, "leave --session out")
    refused("--resume", "a", "--seed", "1").refuses(2, "--seed was settled")
    refused("--session", "x" * 65, "prompt").refuses(2, "name of a session")
    refused("--session", "two\nlines", "prompt").refuses(2, "name of a session")
    refused().refuses(2, "give a PROMPT")
    # Another model would go on with other words.
    demo = ("ask", "--model", demo_model_path(), "--session", "demo", "-n", 4, PROMPT)
    assert alone.run(*demo).code == 0
    outcome = alone.run("ask", *mesh.towards(), "--resume", "demo", "-n", 40)
    outcome.refuses(2, "was begun by", "ask in the session anew")
    assert alone.run("sessions", *mesh.towards(), "rm", "demo").code == 0
    assert json.loads(member.run("sessions", "--json", *mesh.towards()).stdout) == []


def test_without_a_mesh_a_session_stays_on_the_device(alone: Host, model: Path) -> None:
    own = ("--model", model, "-n", 12, "--session", "here")
    assert alone.run("ask", *own, "One day").code == 0
    second = alone.run("ask", *own, "--json", "Then").json
    assert second["session"]["question"] == 2
    again = alone.run("ask", "--model", model, "--resume", "here", "--json")
    assert "is complete" in again.stderr
    assert again.json["tokens"] == second["tokens"]
    longer = alone.run("ask", "--model", model, "--resume", "here", "-n", 30, "--json").json
    assert longer["tokens"][:12] == second["tokens"]
    assert longer["session"]["tokens_known"] == 12
    assert len(longer["tokens"]) == 30
    assert alone.run("sessions", "rm", "here").code == 0
