"""What devices and links take, measured: this node's own numbers, and what others have told.

Each member tells the others directly what it has measured, no more often than every PUBLISH_S and
only when a number has changed by more than a tenth. Nobody passes it on: whoever is not connected
to a member plans with usual values for it.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low
from typing import TYPE_CHECKING, Final

from edgellama.link.endpoint import Priority
from edgellama.mesh.effects import HeadJob, StageJob
from edgellama.mesh.link_rates import PROBE_BYTES, LinkRates
from edgellama.plan.device_speed import corrected, with_head
from edgellama.values import StageTimes
from edgellama.wire.measurement_messages import LINKS_TOLD_MAX, Measured, RateProbe
from edgellama.wire.messages import MEMBERS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellama.mesh.effects import Job, Outbox
    from edgellama.values import DeviceSpeed, LinkFacts, ModelFacts, NodeId, Plan

PUBLISH_S: Final = 5.0
CHANGE_PERMILLE: Final = 100  # of a number: others shall hear of it
ROUND_TRIP_CHANGE_US: Final = 500  # less is noise, whatever its share
SAMPLES: Final = 31  # tokens whose median counts: the system's other work delays some


class Meter:
    """The times of single tokens in this node's stage: of late under one plan, and all added up."""

    def __init__(self) -> None:
        self.epoch = 0
        self.layer_bytes: tuple[int, ...] = ()  # of the layers that the stage computes
        self.home_bytes = 0  # 0 unless this node is home
        self.steps = self.stage_ns = self.heads = self.head_ns = 0
        self._stage: deque[int] = deque(maxlen=SAMPLES)
        self._head: deque[int] = deque(maxlen=SAMPLES)

    def begin(self, plan: Plan, model: ModelFacts, me: NodeId) -> None:
        """Begin to measure under another plan; what is added up goes on."""
        self.clear()
        self.epoch = plan.epoch
        stage = plan.stage_of(me)
        span = slice(0, 0) if stage is None else slice(*plan.stages[stage].span)
        self.layer_bytes = model.layer_bytes[span]
        self.home_bytes = model.home_bytes if stage == 0 else 0

    def clear(self) -> None:
        """Forget the times of late: they were of other kernels or of other layers."""
        self._stage.clear()
        self._head.clear()

    def take(self, job: Job, elapsed_ns: int) -> None:
        """Take how long a job has taken; those for a single token count."""
        if isinstance(job, StageJob) and job.count == 1:
            self.steps += 1
            self.stage_ns += elapsed_ns
            if job.epoch == self.epoch:
                self._stage.append(elapsed_ns)
        elif isinstance(job, HeadJob):
            self.heads += 1
            self.head_ns += elapsed_ns
            if job.epoch == self.epoch:
                self._head.append(elapsed_ns)

    @property
    def usual_stage_ns(self) -> int:
        """What a token usually takes in the layers of late, 0 before the first."""
        return median_low(self._stage) if self._stage else 0

    @property
    def usual_head_ns(self) -> int:
        """What a token usually takes in the head of late, 0 before the first."""
        return median_low(self._head) if self._head else 0


class Measurements:
    """One node's measurements, and what it knows of others'.

    ``links`` tells this node's own, ``shows_rate`` whether the link to a node would show its rate.
    """

    def __init__(
        self,
        me: NodeId,
        outbox: Outbox,
        links: Callable[[], Sequence[LinkFacts]],
        shows_rate: Callable[[NodeId], bool] = lambda _: True,
    ) -> None:
        self.meter = Meter()
        self.rates = LinkRates(me)
        self.news_since: float | None = None  # of numbers that plans are made of
        self._me = me
        self._outbox = outbox
        self._own_links = links
        self._shows_rate = shows_rate
        self._base: DeviceSpeed | None = None  # before the stage's own times correct it
        self._others: dict[NodeId, Measured] = {}
        self._told: Measured | None = None
        self._tell_at = 0.0

    def set_speed(self, speed: DeviceSpeed, now: float) -> None:
        """Take what a trial of the kernels has shown; times under other kernels are void."""
        self._base = speed
        self.meter.clear()
        self._tell_at = min(self._tell_at, now)

    def follow(self, plan: Plan, model: ModelFacts) -> None:
        """Begin to measure this node's stage of another plan."""
        self._base = self._speed()
        self.meter.begin(plan, model, self._me)

    def receive(self, node: NodeId, measured: Measured | RateProbe, now: float) -> None:
        """Take what a member says of itself and of its own links; a probe only had to come."""
        if isinstance(measured, RateProbe):
            return
        if node not in self._others and len(self._others) >= MEMBERS_MAX:
            return
        links = tuple(link for link in measured.links if link.node == node)
        before = self._others.get(node)
        self._others[node] = Measured(
            *(measured.speed, measured.epoch, measured.stage_ns, measured.head_ns, links)
        )
        if before is None or (before.speed, before.links) != (measured.speed, links):
            self._changed(now)

    def seen(self) -> None:
        """Take note that a plan has been looked for with all that is known."""
        self.news_since = None

    def _changed(self, now: float) -> None:
        # Not the latest: on a busy mesh there is no end of them.
        if self.news_since is None:
            self.news_since = now

    def peer_connected(self, node: NodeId) -> None:
        """Tell a newcomer what others were told."""
        if self._told is not None:
            self._outbox.send(node, self._told)

    def speed(self, node: NodeId) -> DeviceSpeed | None:
        """Return a member's speed, None where it is not known."""
        if node == self._me:
            return self._speed()
        told = self._others.get(node)
        return told.speed[0] if told is not None and told.speed else None

    def links(self) -> list[LinkFacts]:
        """Return every link that is known."""
        told = [link for measured in self._others.values() for link in measured.links]
        return [*self._nearest_links(), *told]

    def own_links(self) -> list[LinkFacts]:
        """Return this node's links; what only the other end has seen of a rate counts as well."""
        return [
            link._replace(bytes_per_s=self.rate(self._me, link.peer)) for link in self._own_links()
        ]

    def rate(self, node: NodeId, peer: NodeId) -> int:
        """Return what the link from ``node`` to ``peer`` carries, bytes a second; 0 if unknown.

        What the receiving end has seen of the way back stands for what the sender has not.
        """
        return self._rate_seen(node, peer) or self._rate_seen(peer, node)

    def _rate_seen(self, node: NodeId, peer: NodeId) -> int:
        if node == self._me:
            return self.rates.rate(peer)
        told = self._others.get(node)
        links = told.links if told is not None else ()
        return next((link.bytes_per_s for link in links if link.peer == peer), 0)

    def stage_times(self, plan: Plan, node: NodeId, peer: NodeId, row_bytes: int) -> StageTimes:
        """Return what a stage of the plan in force takes, and its hop to ``peer``, as measured."""
        if node == self._me:
            measured = self._measured()
            links = tuple(self._own_links())
        else:
            told = self._others.get(node)
            if told is None:
                return StageTimes()
            measured, links = told, told.links
        known = measured.epoch == plan.epoch
        compute_ns = measured.stage_ns + measured.head_ns if known else 0
        for link in links:
            if link.peer == peer and node != peer:
                rate = self.rate(node, peer)
                sending_ns = row_bytes * 10**9 // rate if rate else 0
                return StageTimes(compute_ns, link.round_trip_us * 500 + sending_ns, rate)
        return StageTimes(compute_ns)

    def next_timer(self) -> float:
        """Return when ``handle_timer`` wants to be called."""
        return self._tell_at

    def handle_timer(self, now: float, members: Sequence[NodeId], *, probes: bool = False) -> None:
        """Tell the members that are connected what has changed.

        ``probes``: a link that nothing has shown the rate of may be tried now.
        """
        if now < self._tell_at:
            return
        self._tell_at = now + PUBLISH_S
        self.rates.look(self._own_links(), now)
        if probes:
            self._probe(now)
        measured = self._measured()
        if not is_news(measured, self._told):
            return
        self._told = measured
        self._changed(now)
        for node in members:
            self._outbox.send(node, measured)

    def _probe(self, now: float) -> None:
        links = [link for link in self._nearest_links() if self._shows_rate(link.peer)]
        peer = self.rates.next_probe(links, now)
        if peer is not None:
            self._outbox.send(peer, RateProbe(" " * PROBE_BYTES), Priority.BULK)

    def _speed(self) -> DeviceSpeed | None:
        if self._base is None:
            return None
        meter = self.meter
        speed = corrected(self._base, meter.layer_bytes, meter.usual_stage_ns)
        return with_head(speed, meter.home_bytes, meter.usual_head_ns)

    def _measured(self) -> Measured:
        speed, meter = self._speed(), self.meter
        return Measured(
            (speed,) if speed is not None else (),
            meter.epoch,
            meter.usual_stage_ns,
            meter.usual_head_ns,
            self._nearest_links(),
        )

    def _nearest_links(self) -> tuple[LinkFacts, ...]:
        links = sorted(self._own_links(), key=lambda link: (link.round_trip_us, link.peer))
        return tuple(self.rates.known(links[:LINKS_TOLD_MAX]))


def is_news(measured: Measured, told: Measured | None) -> bool:
    """Say whether others shall hear of these measurements, who know the ones told before."""
    if told is None:
        return bool(measured.speed or measured.links)
    if (measured.epoch, len(measured.speed)) != (told.epoch, len(told.speed)):
        return True
    before = [told.stage_ns, told.head_ns, *(n for speed in told.speed for n in speed)]
    after = [measured.stage_ns, measured.head_ns, *(n for speed in measured.speed for n in speed)]
    if any(_differ(one, other) for one, other in zip(before, after, strict=True)):
        return True
    links = {link.peer: link for link in told.links}
    if set(links) != {link.peer for link in measured.links}:
        return True
    return any(_link_differs(links[link.peer], link) for link in measured.links)


def _link_differs(before: LinkFacts, after: LinkFacts) -> bool:
    trips = before.round_trip_us, after.round_trip_us
    far_off = abs(trips[0] - trips[1]) > ROUND_TRIP_CHANGE_US and _differ(*trips)
    return far_off or _differ(before.bytes_per_s, after.bytes_per_s)


def _differ(before: int, after: int) -> bool:
    return abs(before - after) * 1000 > CHANGE_PERMILLE * max(before, after)
