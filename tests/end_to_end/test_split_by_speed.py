"""A mesh that measures itself: a slow device is left out, and whoever asks is told the times."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hosts import GREEDY, PROMPT, Host, Mesh
from network import best_network
from offers import offer_for_two_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class ThreeUnlike(NamedTuple):
    """Two quick devices and a slow one, any two of which could hold the model."""

    mesh: Mesh
    quick: list[Host]
    slow: Host
    guest: Host


@pytest.fixture(scope="module")
def three(
    tmp_path_factory: pytest.TempPathFactory, model: Path, expected: object
) -> Iterator[ThreeUnlike]:
    with Mesh(best_network(), tmp_path_factory.mktemp("unlike")) as mesh:
        hosts, guest = [mesh.host() for _ in range(3)], mesh.host()
        offer_bytes = offer_for_two_bytes(model)
        for host, name in zip(hosts, ("one", "two", "slow"), strict=True):
            options = ["--ram", offer_bytes, "--name", name, "--threads", 1]
            if name == "slow":
                options += ["--backend", "numpy"]
            if host is hosts[0]:
                options += ["--model", model, "--split", "speed"]
            host.join(*mesh.at(host), *options)
        yield ThreeUnlike(mesh, hosts[:2], hosts[2], guest)


def is_settled(status: dict[str, Any]) -> bool:
    layers = {node["name"]: node["layers"] for node in status["nodes"]}
    return (
        status["ready"]
        and len(layers) == 3
        and layers["slow"][0] == layers["slow"][1]
        and all(layers[name][0] < layers[name][1] for name in ("one", "two"))
    )


def settled(three: ThreeUnlike) -> dict[str, Any]:
    """Return the status once the mesh has measured and the slow device has no part in it."""
    return three.mesh.wait(three.guest, is_settled)


def test_a_slow_device_is_left_out_and_the_answer_stays(
    three: ThreeUnlike, expected: Callable[..., dict[str, Any]]
) -> None:
    status = settled(three)
    assert status["split"] == "chat"
    answer = three.mesh.ask(three.guest, PROMPT, "--json", *GREEDY).json
    assert answer["tokens"] == expected(*GREEDY)["tokens"]
    assert "slow" not in [stage["name"] for stage in answer["route"]]


def test_plan_asks_the_mesh_what_it_has_measured_and_says_why(three: ThreeUnlike) -> None:
    settled(three)
    for _ in range(60):  # what a plan is made of is measured anew all the time, by a busy machine
        plan = three.guest.run("plan", *three.mesh.towards(), "--json").json
        by_name = {stage["name"]: stage for stage in plan["stages"]}
        if "left_out" in by_name["slow"]:
            break
        time.sleep(1)
    assert plan["split"] == "chat"
    assert "with it the ring would take" in by_name["slow"]["left_out"]
    taking_part = [stage for stage in plan["stages"] if "left_out" not in stage]
    assert all(stage["predicted_ms"] > 0 for stage in taking_part)
    assert plan["token_ms"] == pytest.approx(
        sum(stage["predicted_ms"] + stage["predicted_hop_ms"] for stage in taking_part)
    )
    assert plan["bound_ms"] == plan["token_ms"]  # of three devices the best is found
    table = three.guest.run("plan", *three.mesh.towards(), "--split", "ram").stdout
    assert "computes" in table
    assert "tokens/s" in table


def test_bench_measures_every_stage_and_link(three: ThreeUnlike) -> None:
    settled(three)
    bench = three.guest.run(
        *("bench", "--mesh", "--tokens", 24, "--json"), *three.mesh.towards()
    ).json
    stages = bench["stages"]
    assert len(stages) == 2
    for stage, following in zip(stages, reversed(stages), strict=True):
        assert stage["compute_ms"] > 0
        assert stage["next_name"] == following["name"]
        assert stage["round_trip_ms"] > 0
        assert stage["bytes_per_token"] > 100
        assert 0 <= stage["loss"] <= 1
    assert bench["tokens_per_second"] > 0
    assert "a token" in bench["held_back_by"]
    text = three.guest.run(
        *("bench", "--mesh", "--tokens", 8, "--sessions", 2), *three.mesh.towards()
    ).stdout
    assert "what holds it back is" in text


def working(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in status["nodes"] if node["layers"][0] < node["layers"][1]]


def test_status_shows_what_stages_take(three: ThreeUnlike) -> None:
    settled(three)
    three.mesh.ask(three.guest, PROMPT, *GREEDY)
    status = three.mesh.wait(
        three.guest,  # members tell each other every five seconds
        lambda status: all(stage["measured"]["compute_ms"] for stage in working(status)),
    )
    stages = working(status)
    assert all(stage["predicted"]["compute_ms"] for stage in stages)
    assert all(stage["predicted"]["hop_ms"] for stage in stages)
    assert "foretold" in three.guest.run("status", *three.mesh.towards()).stdout


def test_what_does_not_go_together_is_misuse(alone: Host, model: Path) -> None:
    alone.run("join", "--for", "chat").refuses(2, "--split speed")
    alone.run("plan", "--ram", "1G").refuses(2, "--model")
    alone.run("plan", "--speed", "3").refuses(2, "--ram")
    alone.run("plan", "--model", model, "--ram", "1G,1G,1G", "--speed", "1,2").refuses(2, "--speed")
    alone.run("plan", "--model", model, "--ram", "1G", "--speed", "0").refuses(2, "--speed")
    alone.run("plan", "--model", model, "--ram", "1G", "--rate", "10").refuses(2, "--rtt")
    alone.run("bench", "--mesh", model).refuses(2, "MODEL")
    alone.run("bench").refuses(2, "--mesh")
    alone.run("bench", "--mesh", "--peer", "127.0.0.1:9").refuses(3, "no device")
