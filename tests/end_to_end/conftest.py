"""The model that the end-to-end tests split, and the text that one device alone gives for it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from edgellama_kernels import warming
from hosts import GREEDY, PROMPT, Host, Mesh
from network import Loopback, Place, best_network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
SHARED_MODEL = HERE.parents[2] / "shared" / "models" / "stories260K.gguf"
DEMO_FOLDER = HERE.parents[1] / "edgellama" / "demo"

# A run that is asked to end ends its devices and removes its namespaces, as after Ctrl-C.
signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.end_to_end)


@pytest.fixture(scope="session")
def model() -> Path:
    """Return the trained model beside the checkout, else the demo model of the package."""
    if SHARED_MODEL.exists():
        return SHARED_MODEL
    return next(DEMO_FOLDER.glob("*.gguf"))


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """Return a device that is in no mesh."""
    return Host(Place("127.0.0.1", None, ()), tmp_path_factory.mktemp("alone") / "host")


@pytest.fixture(scope="session")
def expected(alone: Host, model: Path) -> Callable[..., dict[str, Any]]:
    """Return what one device alone answers, by sampling options; each asked once."""
    answers: dict[tuple[object, ...], dict[str, Any]] = {}

    def answer(*options: object) -> dict[str, Any]:
        if options not in answers:
            answers[options] = alone.run("ask", "--model", model, "--json", *options, PROMPT).json
        return answers[options]

    if warming.is_installed():  # once, before several hosts would compile side by side
        subprocess.run(warming.command(), check=True)
    answer(*GREEDY)
    return answer


@pytest.fixture
def mesh(tmp_path: Path, expected: object) -> Iterator[Mesh]:
    """Return an empty mesh on the best network there is here."""
    with Mesh(best_network(), tmp_path / "mesh") as mesh:
        yield mesh


@pytest.fixture
def loopback_mesh(tmp_path: Path, expected: object) -> Iterator[Mesh]:
    """Return an empty mesh on loopback, addresses given by hand."""
    with Mesh(Loopback(), tmp_path / "mesh") as mesh:
        yield mesh
