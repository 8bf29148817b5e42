"""Any message of measurements, for tests of the wire."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from edgellama.values import (
    KV_KINDS,
    SPLITS,
    WIRES,
    DeviceFacts,
    DeviceSpeed,
    LinkCounters,
    LinkFacts,
    ModelFacts,
)
from edgellama.wire import measurement_messages as told

wires = st.sampled_from(["", *WIRES])
u16, u32, u48, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 48, 64))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=32)


def measurement_kinds(
    nodes: st.SearchStrategy[str],
    models: st.SearchStrategy[ModelFacts],
    counters: st.SearchStrategy[LinkCounters],
) -> dict[type, st.SearchStrategy[Any]]:
    """Return a strategy for each kind, made of those of what they have in common with others."""
    speeds = st.builds(DeviceSpeed, u32, u32, u32)
    a_link = st.builds(LinkFacts, nodes, nodes, u32, u48, u16)
    link_facts = st.lists(a_link, max_size=3).map(tuple)
    return {
        told.Measured: st.builds(
            told.Measured, st.lists(speeds, max_size=1).map(tuple), u64, u64, u64, link_facts
        ),
        told.RateProbe: st.builds(told.RateProbe, names),
        told.FactsQuery: st.builds(told.FactsQuery, u64),
        told.FactsReply: st.builds(
            told.FactsReply,
            *(u64, st.lists(models, max_size=1).map(tuple), u32, u16, st.sampled_from(SPLITS)),
            st.lists(
                st.builds(DeviceFacts, nodes, names, u48, st.none() | speeds, wires), max_size=3
            ).map(tuple),
            *(link_facts, st.sampled_from(KV_KINDS)),
        ),
        told.MeterQuery: st.builds(told.MeterQuery, u64),
        told.MeterReply: st.builds(
            told.MeterReply,
            *(u64, nodes, names, u64, u64, u64, u64, u64, u64),
            st.lists(st.builds(told.LinkMeter, a_link, counters), max_size=3).map(tuple),
        ),
    }
