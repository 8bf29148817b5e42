"""A mesh of this machine and an emulated ARM device answers as either of them alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import emulated_arm
import pytest
from hosts import GREEDY, PROMPT, Host, Mesh, Status
from lossy_answers import DRAWN, LOSSY, answer_by_hand
from network import Loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

pytestmark = pytest.mark.aarch64

READY_WITHIN_S = 900  # emulated: the kernels may have to be compiled, and every start is slow


class EmulatedHost(Host):
    """A device whose Python is an ARM program. It has no multicast, so peers are named."""

    cpu = emulated_arm.DOTPROD_CPU

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        return super().environment({**emulated_arm.tool().environment(self.cpu), **(changes or {})})

    def _command(self, arguments: Sequence[object]) -> list[str]:
        return [*emulated_arm.tool().command(), "-m", "edgellama", *map(str, arguments)]


@pytest.fixture(scope="session", autouse=True)
def emulated() -> None:
    """Skip before anything is started."""
    emulated_arm.skip_unless_thorough()


@pytest.fixture
def pair(tmp_path: Path, expected: object) -> Iterator[tuple[Mesh, Host, EmulatedHost]]:
    """Return two devices on loopback that have not joined: this machine's, and ARM."""
    with Mesh(Loopback(), tmp_path / "mesh") as mesh:
        own = mesh.host()
        other = EmulatedHost(mesh.network.add_host(), tmp_path / "mesh" / "arm")
        mesh.hosts.append(other)
        yield mesh, own, other


def both_work(status: Status) -> bool:
    here = [node for node in status["nodes"] if node["state"] == "alive"]
    working = [node for node in here if node["layers"][0] < node["layers"][1]]
    return bool(status["ready"]) and len(working) == len(here) == 2


def join_both(
    pair: tuple[Mesh, Host, EmulatedHost], model: Path, backend: str, *options: str
) -> str:
    """Wait until both hold layers; return the name of home."""
    mesh, own, other = pair
    own.join(*mesh.at(own), "--model", model, "--ram", "500M", "--name", "laptop", *options)
    other.join(*mesh.at(other), "--ram", "500M", "--name", "pi", "--backend", backend, *options)
    status = mesh.wait(own, both_work, READY_WITHIN_S)
    backends = {node["name"]: node["backend"] for node in status["nodes"]}
    assert backends["pi"] == backend
    return next(str(node["name"]) for node in status["nodes"] if node["home"])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_same_answer_as_alone(
    pair: tuple[Mesh, Host, EmulatedHost],
    model: Path,
    expected: Callable[..., dict[str, Any]],
    backend: str,
) -> None:
    mesh, own, other = pair
    join_both(pair, model, backend)
    answer = mesh.ask(own, PROMPT, "--json", *GREEDY).json
    assert answer["text"] == expected(*GREEDY)["text"]
    assert answer["tokens"] == expected(*GREEDY)["tokens"]
    assert mesh.ask(other, PROMPT, "--json", *GREEDY).json["tokens"] == answer["tokens"]
    for host in (own, other):
        assert host.leave().code == 0


def test_an_int8_cache_and_q8_links(pair: tuple[Mesh, Host, EmulatedHost], model: Path) -> None:
    mesh, own, other = pair
    home = join_both(pair, model, "numba", *LOSSY)
    answer = mesh.ask(own, PROMPT, "--json", *DRAWN).json
    assert len(answer["route"]) == 2
    prompt = answer["prompt_tokens"]
    assert answer["tokens"] == answer_by_hand(model, home, answer["route"], prompt)
    for host in (own, other):
        assert host.leave().code == 0


def test_arm_alone_gives_the_same_answer(
    pair: tuple[Mesh, Host, EmulatedHost], model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    _, _, other = pair
    options = ("--model", model, "--json", "--backend", "numba", *GREEDY)
    assert other.run("ask", *options, PROMPT).json["text"] == expected(*GREEDY)["text"]
