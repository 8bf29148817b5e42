"""What is remembered of links' rates, and which link is probed when."""

from __future__ import annotations

from mesh_building import A, B, C, D, plan_of

from edgellama.link.endpoint import Priority
from edgellama.mesh.effects import Outbox, Send
from edgellama.mesh.link_rates import KEPT_S, OLD_S, PROBE_BYTES, LinkRates
from edgellama.mesh.measurements import PUBLISH_S, Measurements
from edgellama.values import LinkFacts, StageTimes
from edgellama.wire.measurement_messages import Measured, RateProbe


def link(peer: str, bytes_per_s: int = 0) -> LinkFacts:
    return LinkFacts(B, peer, 1000, bytes_per_s)


def test_a_lesser_rate_counts_only_once_the_greater_is_old() -> None:
    rates = LinkRates(B)
    rates.look([link(C, 5_000_000)], 0.0)
    assert rates.rate(C) == 5_000_000
    rates.look([link(C, 1_000_000)], KEPT_S - 1)
    assert rates.rate(C) == 5_000_000
    rates.look([link(C, 900_000)], KEPT_S)
    assert rates.rate(C) == 900_000
    rates.look([link(C, 950_000)], KEPT_S + 1)
    assert rates.rate(C) == 950_000


def test_a_rate_outlives_its_link() -> None:
    rates = LinkRates(B)
    rates.look([link(C, 5_000_000)], 0.0)
    rates.look([], 100.0)
    rates.look([link(C)], 200.0)  # connected anew: this link has seen nothing
    assert rates.known([link(C), link(D)]) == [link(C, 5_000_000), link(D)]


def test_what_a_link_goes_on_saying_grows_old() -> None:
    rates = LinkRates(B)
    for now in (0.0, 100.0, OLD_S - 1):
        rates.look([link(C, 5_000_000)], now)
        assert rates.next_probe([link(C)], now) is None
    assert rates.next_probe([link(C)], OLD_S) == C


def test_weights_raise_a_rate_and_never_lower_it() -> None:
    rates = LinkRates(B)
    rates.fetched(C, 2_000_000)
    assert rates.rate(C) == 2_000_000
    assert rates.next_probe([link(C)], 0.0) == C  # it may carry more
    rates.look([link(C, 7_000_000)], 1.0)
    rates.fetched(C, 3_000_000)
    assert rates.rate(C) == 7_000_000


def test_each_link_is_probed_by_one_end_and_seldom() -> None:
    rates, links = LinkRates(B), [link(A), link(C), link(D)]
    assert rates.next_probe(links, 0.0) == C
    assert rates.next_probe(links, 5.0) == D
    assert rates.next_probe(links, 10.0) is None
    assert rates.next_probe(links, OLD_S) == C
    rates.look([link(D, 10**6)], OLD_S)  # something great has crossed it by itself
    assert rates.next_probe(links, 5.0 + OLD_S) is None
    assert rates.next_probe(links, 2 * OLD_S) == C


class Node:
    """B's measurements, with what its links say."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.links = [link(A), link(C)]
        self.measurements = Measurements(B, self.outbox, lambda: self.links)

    def timer(self, now: float, *, probes: bool = False) -> list[Send]:
        self.measurements.handle_timer(now, [A, C], probes=probes)
        return [each for each in self.outbox.drain() if isinstance(each, Send)]


def test_a_probe_goes_out_only_where_it_may() -> None:
    node = Node()
    assert not [s for s in node.timer(1.0) if isinstance(s.message, RateProbe)]
    (probe,) = [
        s for s in node.timer(1.0 + PUBLISH_S, probes=True) if isinstance(s.message, RateProbe)
    ]
    assert (probe.node, probe.priority) == (C, Priority.BULK)
    assert isinstance(probe.message, RateProbe)
    assert len(probe.message.filler) == PROBE_BYTES
    node.measurements.seen()
    node.measurements.receive(C, probe.message, 9.0)
    assert node.measurements.news_since is None  # who is probed learns nothing by it


def test_a_link_that_would_not_show_its_rate_is_not_probed() -> None:
    outbox = Outbox()
    measurements = Measurements(B, outbox, lambda: [link(C), link(D)], lambda node: node == D)
    for now in (1.0, 1.0 + PUBLISH_S, 1.0 + 2 * PUBLISH_S):
        measurements.handle_timer(now, [], probes=True)
    assert [s.node for s in outbox.drain() if isinstance(s, Send)] == [D]


def test_a_rate_is_told_and_serves_both_ends() -> None:
    node = Node()
    node.timer(1.0)
    node.links[1] = link(C, 4_000_000)
    told = [m for _, m in _messages(node.timer(1.0 + PUBLISH_S)) if isinstance(m, Measured)]
    assert [each.bytes_per_s for each in told[0].links] == [0, 4_000_000]
    measurements = node.measurements
    measurements.receive(A, Measured((), 0, 0, 0, (LinkFacts(A, B, 900, 2_000_000),)), 9.0)
    assert [each.bytes_per_s for each in measurements.own_links()] == [2_000_000, 4_000_000]
    # Each end plans and shows with the other's word where it has none of its own.
    plan = plan_of(B, A, C)
    assert measurements.stage_times(plan, B, A, 1000) == StageTimes(0, 1_000_000, 2_000_000)
    measurements.receive(C, Measured((), 0, 0, 0, (LinkFacts(C, B, 1000),)), 9.0)
    assert measurements.stage_times(plan, C, B, 1000) == StageTimes(0, 750_000, 4_000_000)
    # What A has said of its own link is A's to tell.
    assert measurements.links()[0].bytes_per_s == 0


def _messages(sends: list[Send]) -> list[tuple[str, object]]:
    return [(each.node, each.message) for each in sends]
