"""A device that fetches layers says at what rate they came, and from whom."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from mesh_building import A, B

from edgellama.net.packed import PackedCache
from edgellama.net.store import Store
from edgellama.net.supply import WeightSource
from edgellama.net.transfer_server import WeightServer
from edgellama.node.loading import SpanLoader, own_model_facts
from edgellama.values import Address, Plan, Span, StagePlacement

if TYPE_CHECKING:
    from pathlib import Path

KEY = b"k"
HOST = "127.0.0.1"


def test_what_came_from_whom_is_told(model_path: Path, tmp_path: Path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    facts = own_model_facts(there.adopt(model_path), model_path)
    came: list[tuple[WeightSource, int]] = []
    loader = SpanLoader(
        *(here, PackedCache(tmp_path / "packed"), KEY, lambda _: None),
        came=lambda *what: came.append(what),
    )
    stages = (StagePlacement(B, Span(0, 2)), StagePlacement(A, Span(2, facts.layers)))
    plan = Plan(1, A, facts.root, 16, 1, stages)
    with closing(here), closing(there), closing(WeightServer(HOST, 0, KEY, there.source)) as server:
        source = WeightSource(Address(HOST, server.port), "b", True, f"{B} 17")
        loader.load(plan, A, lambda: [source])
        ((whence, bytes_per_s),) = came
        assert whence.node == B
        assert bytes_per_s > 0
        loader.load(plan, A, lambda: [source])  # all is there: nothing comes, nothing is told
        assert len(came) == 1


def test_a_source_that_nobody_knows_is_no_node() -> None:
    assert WeightSource(Address(HOST, 1)).node == ""
