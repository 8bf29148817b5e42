"""Which key a command uses, what it asks, and what it makes; without mDNS."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from edgellama.errors import MisuseError, NoMeshError
from edgellama.net.facts import device_name
from edgellama.net.invitations import Invitations
from edgellama.net.mesh_key import MeshKeyFile
from edgellama.net.pairing import Welcome, admit_device
from edgellama.net.paths import StatePaths
from edgellama.net.peers import RememberedPeers
from edgellama.net.transfer_server import WeightServer
from edgellama.node.admission import (
    JOIN_CODE_QUESTION,
    Access,
    KeyChoice,
    access_to_ask,
    access_to_join,
)
from edgellama.values import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KEPT, GIVEN = b"k" * 32, b"g" * 32
WELCOME = Welcome(b"w" * 32, "ab" * 16, "laptop", 7799)


@pytest.fixture
def paths() -> StatePaths:
    found = StatePaths.locate()
    found.make()
    return found


@pytest.fixture
def door() -> Iterator[tuple[Invitations, Address]]:
    invitations = Invitations()
    server = WeightServer(
        *("127.0.0.1", 0, WELCOME.mesh_key, lambda root: None),
        admit=lambda stream: admit_device(stream, invitations, WELCOME) and None,
    )
    yield invitations, Address("127.0.0.1", server.port)
    server.close()


def join(
    choice: KeyChoice,
    paths: StatePaths,
    named: Sequence[Address] = (),
    answers: Sequence[str] | None = None,
) -> Access:
    replies = iter(answers or ())
    asked: Callable[[str], str] | None = None if answers is None else lambda _: next(replies)
    return access_to_join(choice, paths, named, asked, mdns=False)


def test_without_a_terminal_and_a_key_the_mesh_is_open_and_no_key_is_made(
    paths: StatePaths,
) -> None:
    assert join(KeyChoice(), paths) == Access(b"")
    assert not paths.mesh_key.exists()


def test_the_first_device_makes_a_mesh_and_later_joins_need_nothing(paths: StatePaths) -> None:
    made = join(KeyChoice(), paths, answers=[])
    assert (made.is_kept, made.is_new) == (True, True)
    assert made.key == MeshKeyFile(paths.mesh_key).read()
    assert join(KeyChoice(), paths) == Access(made.key, is_kept=True)
    assert access_to_ask(KeyChoice(), paths, ()) == Access(made.key, is_kept=True)


def test_a_given_key_and_an_open_mesh_go_before_what_is_kept(paths: StatePaths) -> None:
    MeshKeyFile(paths.mesh_key).write(KEPT)
    assert join(KeyChoice(GIVEN), paths) == Access(GIVEN)
    assert join(KeyChoice(open_mesh=True), paths) == Access(b"")
    assert MeshKeyFile(paths.mesh_key).read() == KEPT


def test_asking_without_any_key_is_asking_the_open_mesh(paths: StatePaths) -> None:
    assert access_to_ask(KeyChoice(), paths, ()) == Access(b"")


@pytest.mark.parametrize(
    ("given", "open_mesh", "code"),
    [(GIVEN, True, None), (None, True, "7-amber-otter"), (GIVEN, False, "7-amber-otter")],
)
def test_contradictions_are_refused(given: bytes | None, open_mesh: bool, code: str | None) -> None:
    with pytest.raises(MisuseError):
        KeyChoice(given, open_mesh, code)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_a_code_brings_the_key_and_it_is_remembered(
    paths: StatePaths, door: tuple[Invitations, Address], typed: bool, kept: bool
) -> None:
    invitations, address = door
    if kept and not typed:  # a device of another mesh changes over
        MeshKeyFile(paths.mesh_key).write(KEPT)
    code = str(invitations.open())
    if typed:
        access = join(KeyChoice(), paths, [address], answers=[code])
    else:
        access = join(KeyChoice(code=code), paths, [address])
    friend = Address("127.0.0.1", 7799)
    assert access == Access(WELCOME.mesh_key, is_kept=True, friends=(friend,))
    assert MeshKeyFile(paths.mesh_key).read() == WELCOME.mesh_key
    assert [peer.address for peer in RememberedPeers(paths.peers).all()] == [friend]
    assert join(KeyChoice(), paths) == Access(WELCOME.mesh_key, is_kept=True)


def test_a_wrong_code_can_be_typed_again_and_three_end_it(
    paths: StatePaths, door: tuple[Invitations, Address]
) -> None:
    invitations, address = door
    code = invitations.open()
    wrong = f"{code.slot}-zebra-zephyr"
    access = join(KeyChoice(), paths, [address], answers=["nonsense", wrong, str(code)])
    assert access.key == WELCOME.mesh_key
    paths.mesh_key.unlink()
    code = invitations.open()
    wrong = f"{code.slot}-zebra-zephyr"
    with pytest.raises(MisuseError, match="is not the code"):
        join(KeyChoice(), paths, [address], answers=[wrong] * 3)
    assert not invitations.is_open()
    assert not paths.mesh_key.exists()


def test_each_question_says_what_was_wrong_with_the_last_answer(
    paths: StatePaths, door: tuple[Invitations, Address]
) -> None:
    invitations, address = door
    code = invitations.open()
    replies = iter(["nonsense", f"{code.slot}-zebra-zephyr", str(code)])
    questions: list[list[str]] = []

    def ask(question: str) -> str:
        questions.append(question.splitlines())
        return next(replies)

    access_to_join(KeyChoice(), paths, [address], ask, mdns=False)
    (plain,), (first, again), (second, once_more) = questions
    assert plain == again == once_more == JOIN_CODE_QUESTION
    assert "nonsense" in first
    assert "zebra" in second


@pytest.mark.parametrize(("chosen", "told"), [("beta\n", "beta"), ("", device_name())])
def test_who_lets_a_device_in_is_told_the_name_that_it_has_chosen(
    paths: StatePaths, chosen: str, told: str
) -> None:
    invitations, names = Invitations(), SimpleQueue[str]()
    code = str(invitations.open())
    server = WeightServer(
        *("127.0.0.1", 0, WELCOME.mesh_key, lambda root: None),
        admit=lambda stream: names.put(admit_device(stream, invitations, WELCOME)),
    )
    try:
        address = Address("127.0.0.1", server.port)
        join(KeyChoice(code=code, name=chosen), paths, [address])
        assert names.get(timeout=30) == told
    finally:
        server.close()


def test_an_empty_answer_makes_a_new_mesh(
    paths: StatePaths, door: tuple[Invitations, Address]
) -> None:
    assert join(KeyChoice(), paths, [door[1]], answers=[""]).is_new


def test_a_code_where_nobody_invites_is_one_line(
    paths: StatePaths, door: tuple[Invitations, Address]
) -> None:
    with pytest.raises(NoMeshError, match="run edgellama invite there"):
        join(KeyChoice(code="7-amber-otter"), paths, [door[1]])
    with pytest.raises(NoMeshError, match="no device here has an open invitation"):
        join(KeyChoice(code="7-amber-otter"), paths)
