"""Whichever device of the ring is struck in the middle of an answer, its tokens are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from faults import FAULTS, OFFERS, ROLES, STAGES, Devices, parts
from hosts import PROMPT, Mesh
from network import Bridge, no_bridge_because

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SAMPLED = ("--ignore-eos", "--temperature", 0.9, "--top-k", 40, "--seed", 5)
TOKENS = {"kill": 150, "cut": 150, "leave": 400}  # who leaves has gone after a hundred or more
SLOWLY = ("--backend", "numpy", "--threads", 1)  # or an answer is done before anything is struck
STRUCK_AT = 20  # tokens


@pytest.fixture(scope="module", params=TOKENS)
def fault(request: pytest.FixtureRequest) -> str:
    """Name what happens in a mesh to each device once: who is lost again has to wait."""
    return str(request.param)


@pytest.fixture(scope="module")
def devices(
    fault: str, tmp_path_factory: pytest.TempPathFactory, model: Path, expected: object
) -> Iterator[Devices]:
    if reason := no_bridge_because():
        pytest.skip(f"devices are cut off at a namespace's interface: {reason}")
    with Mesh(Bridge(), tmp_path_factory.mktemp("faults")) as mesh:
        offers: list[list[object]] = [["--ram", each, *SLOWLY] for each in OFFERS]
        offers[0] += ["--model", model]
        yield Devices(mesh, offers)


@pytest.mark.parametrize("role", ROLES)
def test_the_answer_goes_on_as_if_nothing_had_happened(
    devices: Devices, fault: str, role: str, expected: Callable[..., dict[str, Any]]
) -> None:
    struck, gateway = parts(devices.ring(devices.ready(STAGES)), role)
    asked = ("-n", TOKENS[fault], *SAMPLED)
    asking = devices.ask(gateway, PROMPT, *asked)
    try:
        asking.wait_for(STRUCK_AT)
        FAULTS[fault].strike(devices, struck)
        assert not asking.heard.reason, "the answer was done before anything was struck"
        heard = asking.end()
    finally:
        asking.kill()
    FAULTS[fault].undo(devices, struck)
    assert heard.code == 0, heard
    assert heard.tokens == expected(*asked)["tokens"]
    assert heard.text == expected(*asked)["text"]
