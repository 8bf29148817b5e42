"""Three joins and a guest: one model, split, answers as one device would."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hosts import GREEDY, PROMPT, SAMPLED, Host, Mesh, Status
from network import Loopback, best_network, no_bridge_because

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Three(NamedTuple):
    mesh: Mesh
    members: list[Host]
    guest: Host
    status: Status


@pytest.fixture(scope="module", params=[0, 50], ids=["no loss", "5 % loss"])
def three(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,
    expected: object,
) -> Iterator[Three]:
    """Three devices that found each other, and a guest that holds nothing. No address is typed.

    With loss there is no default route either: neither the internet nor a router is needed.
    """
    per_mille = request.param
    if per_mille and (reason := no_bridge_because()):
        pytest.skip(f"loss needs namespaces: {reason}")
    network = best_network(default_route=not per_mille)
    with Mesh(network, tmp_path_factory.mktemp("three")) as mesh:
        members, guest = [mesh.host() for _ in range(3)], mesh.host()
        if per_mille:
            network.lose(per_mille)
        for host, options in zip(members, (("--model", model), (), ()), strict=True):
            ram = ("600M", "500M", "400M")[members.index(host)]
            name = ("laptop", "pi", "phone")[members.index(host)]
            host.join(*mesh.at(host), "--ram", ram, "--name", name, *options)
        yield Three(mesh, members, guest, mesh.wait_ready(guest, 3))
        for host in members:
            assert host.leave().code == 0


def covers(layers: int, route: list[dict[str, Any]]) -> bool:
    """Tell whether the spans follow each other from the first layer to the last."""
    spans = [stage["layers"] for stage in route if stage["layers"][0] != stage["layers"][1]]
    ends = [0, *(past for _, past in spans)]
    return [first for first, _ in spans] == ends[:-1] and ends[-1] == layers


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_guest_gets_the_text_of_one_device(
    three: Three, expected: Callable[..., dict[str, Any]], options: tuple[object, ...]
) -> None:
    answer = three.mesh.ask(three.guest, PROMPT, "--json", *options).json
    one = expected(*options)
    assert answer["tokens"] == one["tokens"]
    assert answer["text"] == one["text"]
    assert answer["prompt_tokens"] == one["prompt_tokens"]
    assert answer["finish_reason"] == one["finish_reason"]


def test_every_member_gives_the_same_text(
    three: Three, expected: Callable[..., dict[str, Any]]
) -> None:
    for host in three.members:
        assert (
            three.mesh.ask(host, PROMPT, "--json", *GREEDY).json["text"]
            == expected(*GREEDY)["text"]
        )


def test_stdout_is_the_answer_and_nothing_else(
    three: Three, expected: Callable[..., dict[str, Any]]
) -> None:
    outcome = three.mesh.ask(three.guest, PROMPT, *GREEDY)
    assert outcome.code == 0
    assert outcome.stdout.rstrip("\n") == expected(*GREEDY)["text"].rstrip("\n")


def test_prompt_from_stdin(three: Three, expected: Callable[..., dict[str, Any]]) -> None:
    answer = three.mesh.ask(three.guest, "-", "--json", *GREEDY, stdin=PROMPT).json
    assert answer["prompt_tokens"] == expected(*GREEDY)["prompt_tokens"]
    assert answer["text"] == expected(*GREEDY)["text"]


def test_the_route_covers_all_layers_over_several_nodes(three: Three) -> None:
    answer = three.mesh.ask(three.guest, PROMPT, "--json", *GREEDY).json
    assert covers(three.status["model"]["layers"], answer["route"])
    nodes = {stage["node"] for stage in answer["route"]}
    assert len(nodes) >= 2
    known = {node[key] for node in three.status["nodes"] for key in ("id", "name")}
    assert nodes <= known


def test_shape_of_the_answer(three: Three) -> None:
    answer = three.mesh.ask(three.guest, PROMPT, "--json", "-n", 5, "--temperature", 0).json
    assert isinstance(answer["text"], str)
    assert len(answer["tokens"]) == 5
    assert all(isinstance(token, int) for token in answer["tokens"] + answer["prompt_tokens"])
    assert answer["finish_reason"] == "length"
    assert {"prompt_ms", "predicted_ms", "predicted_per_second"} <= answer["timings"].keys()
    assert all(stage.keys() >= {"node", "layers"} for stage in answer["route"])
    wire = answer["wire"]
    assert wire.keys() >= {"bytes_sent", "packets_sent", "packets_retransmitted"}
    assert wire["bytes_sent"] > wire["packets_sent"] > 0


def test_shape_of_the_status(three: Three, model: Path) -> None:
    status = three.status
    assert status["ready"] is True
    assert isinstance(status["epoch"], int)
    assert status["model"]["bytes"] == model.stat().st_size
    assert status["model"].keys() >= {"name", "hash", "layers", "bytes"}
    assert {node["name"] for node in status["nodes"]} == {"laptop", "pi", "phone"}
    for node in status["nodes"]:
        assert re.fullmatch("[0-9a-f]{32}", node["id"])
        assert node.keys() >= {"address", "ram_bytes", "layers", "home", "state", "backend"}
    assert sum(node["home"] for node in status["nodes"]) == 1
    assert covers(status["model"]["layers"], sorted(status["nodes"], key=lambda n: n["layers"]))
    by_name = {node["name"]: node for node in status["nodes"]}
    assert by_name["laptop"]["ram_bytes"] == 600 * 2**20


def test_addresses_are_those_of_the_home_network(three: Three) -> None:
    """Never an interface that leads nowhere, such as docker0."""
    addresses = {node["address"].rpartition(":")[0] for node in three.status["nodes"]}
    assert addresses == {host.place.address for host in three.members}


def test_status_for_people(three: Three) -> None:
    outcome = three.guest.run("status", *three.mesh.towards())
    assert outcome.code == 0
    for name in ("laptop", "pi", "phone"):
        assert name in outcome.stdout


def test_a_long_prompt_crosses_in_many_packets(three: Three, alone: Host, model: Path) -> None:
    prompt = "The cat sat on the mat and the dog ran to the park. " * 12
    options = ("--json", "-n", 8, "--temperature", 0)
    one = alone.run("ask", "--model", model, *options, prompt).json
    assert three.mesh.ask(three.guest, prompt, *options).json["tokens"] == one["tokens"]


def test_another_key_finds_no_mesh(three: Three, tmp_path: Path) -> None:
    other = {"EDGELLAMA_KEY": "another", "EDGELLAMA_HOME": str(tmp_path)}
    towards = three.mesh.towards() or ["--peer", three.members[0].place.address]
    refused = three.guest.run("ask", *towards, "-n", 1, PROMPT, environment=other)
    refused.refuses(3)


def test_another_key_is_not_let_in(three: Three, tmp_path: Path) -> None:
    """A stranger on the same network sees no member and no member sees it."""
    stranger = Host(three.mesh.network.add_host(), tmp_path / "stranger")
    other = {"EDGELLAMA_KEY": "another"}
    known = three.members[0].place
    port = "" if known.port is None else f":{known.port}"
    own = () if known.port is None else ("--listen", "127.0.0.1", "--port", stranger.place.port)
    stranger.join("--name", "stranger", *own, "--peer", f"{known.address}{port}", environment=other)
    try:
        for _ in range(3):
            names = {node["name"] for node in three.mesh.status(three.guest).json["nodes"]}
            assert names == {"laptop", "pi", "phone"}
        assert stranger.leave().code == 0
    finally:
        stranger.kill()


def test_loopback_with_peers_given_by_hand(
    loopback_mesh: Mesh, model: Path, expected: Callable[..., dict[str, Any]]
) -> None:
    """The way without multicast, also where namespaces would be there."""
    assert isinstance(loopback_mesh.network, Loopback)
    loopback_mesh.join("--model", model, "--ram", "600M")
    loopback_mesh.join("--ram", "600M")
    guest = loopback_mesh.host()
    loopback_mesh.wait_ready(guest, 2)
    answer = loopback_mesh.ask(guest, PROMPT, "--json", *GREEDY).json
    assert answer["text"] == expected(*GREEDY)["text"]
    assert len({stage["node"] for stage in answer["route"]}) == 2
