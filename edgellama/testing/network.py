"""A seeded network in virtual time: loss, bursts, reordering, duplication, damage, cuts.

The production endpoints run on it unchanged. The same seed gives the same run to the last
datagram; ``trace`` is a digest of all that was delivered, to show it.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from edgellama.link.endpoint import Endpoint, Event, Identity
from edgellama.values import Address

if TYPE_CHECKING:
    from edgellama.net.udp import Handler

EVENTS_MAX = 1_000_000
"""More in one run means that time stands still: an overdue timer that nothing resets."""

PACKET_BYTES = 1200
REORDER_DELAY_S = 0.004
HOST_WINDOW_PACKETS = 166
"""What an ordinary Linux grants without any setting: 425,984 bytes of receive buffer."""


Watch = Callable[[bytes, Address, Address, str], None]
"""Is told of every datagram: its bytes, from whom to whom, and why it is dropped, or nothing."""

Watcher = Callable[["SimulatedNetwork"], None]
"""Is shown the network of a scenario before it begins."""


class LivelockError(AssertionError):
    """A run had more events than any sound protocol needs."""


@dataclass(frozen=True)
class Conditions:
    """One direction of a path; probabilities are per datagram."""

    delay_s: float = 0.0015
    jitter_s: float = 0.0005
    loss: float = 0.0
    burst_enter: float = 0.0  # into the state in which everything is lost
    burst_leave: float = 0.5
    duplication: float = 0.0
    reordering: float = 0.0
    corruption: float = 0.0  # one bit turned
    truncation: float = 0.0
    bytes_per_second: float = 6e6
    queue_packets: int = 200
    datagram_bytes_max: int = 1472  # longer ones vanish, as where a router may not fragment


@dataclass
class _Path:
    """One direction between two addresses."""

    conditions: Conditions
    open: bool = True
    in_burst: bool = False
    busy_until: float = 0.0
    last_arrival: float = 0.0


@dataclass(order=True)
class _Event:
    time: float
    tie: int
    call: Callable[[], None] = field(compare=False)


class SimulatedNetwork:
    """The wire, the clock and the dice of a simulation; time is in seconds from 0."""

    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self.now = 0.0
        self.delivered = 0
        self._random = random.Random(seed)  # noqa: S311 - dice, not secrets
        self._conditions = conditions or Conditions()
        self._paths: dict[tuple[Address, Address], _Path] = {}
        self._receivers: dict[Address, Callable[[bytes, Address], None]] = {}
        self._events: list[_Event] = []
        self._ties = 0
        self.hosts: dict[Address, SimulatedHost] = {}  # the latest at each address
        self.watch: Watch | None = None
        self.note: Callable[[str], None] = lambda _: None  # is told what befalls whom
        self._digest = blake2b(digest_size=16)

    @property
    def trace(self) -> str:
        """A digest of every delivery so far: when, to whom and what."""
        return self._digest.hexdigest()

    def entropy(self, name: str) -> Callable[[int], bytes]:
        """Return a source of bytes that follows from the seed and a name alone."""
        return random.Random(f"{self._random.random()} {name}").randbytes  # noqa: S311

    def attach(self, address: Address, receive: Callable[[bytes, Address], None]) -> None:
        """Deliver what is sent to an address; replaces an earlier receiver."""
        self._receivers[address] = receive

    def detach(self, address: Address) -> None:
        """Let what is sent to an address vanish."""
        self._receivers.pop(address, None)

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Run a call at a time, or now if that has passed."""
        self._ties += 1
        heapq.heappush(self._events, _Event(max(time, self.now), self._ties, call))

    def set_conditions(
        self, conditions: Conditions, source: Address | None = None, to: Address | None = None
    ) -> None:
        """Change one direction of one path, or every path; a burst of loss under way ends."""
        if source is None or to is None:
            self._conditions = conditions
            paths = list(self._paths.values())
        else:
            paths = [self._path(source, to)]
        for path in paths:
            path.conditions = conditions
            path.in_burst = False

    def cut(self, source: Address, to: Address) -> None:
        """Lose everything from one address to another, in this direction."""
        self._path(source, to).open = False

    def heal(self) -> None:
        """Open every path."""
        for path in self._paths.values():
            path.open = True

    def _path(self, source: Address, to: Address) -> _Path:
        if (source, to) not in self._paths:
            self._paths[source, to] = _Path(self._conditions)
        return self._paths[source, to]

    def send(self, data: bytes, source: Address, to: Address) -> None:
        """Put a datagram on its way, or lose it."""
        path = self._path(source, to)
        conditions = path.conditions
        why_dropped = self._why_dropped(path, data)
        if self.watch is not None:
            self.watch(data, source, to, why_dropped)
        if why_dropped:
            return
        chance = self._random.random
        arrival = path.busy_until + conditions.delay_s + chance() * conditions.jitter_s
        if chance() < conditions.reordering:
            arrival += chance() * REORDER_DELAY_S
        else:
            arrival = path.last_arrival = max(arrival, path.last_arrival)
        data = self._damaged(data, conditions)
        self.at(arrival, lambda: self._deliver(data, source, to))
        if chance() < conditions.duplication:
            self.at(arrival + chance() * REORDER_DELAY_S, lambda: self._deliver(data, source, to))

    def _why_dropped(self, path: _Path, data: bytes) -> str:
        """Let a datagram pass the queue and the dice; return what it is lost by, if it is."""
        conditions = path.conditions
        starts = max(path.busy_until, self.now)
        backlog_bytes = (starts - self.now) * conditions.bytes_per_second
        if backlog_bytes > conditions.queue_packets * PACKET_BYTES:
            return "the queue is full"
        path.busy_until = starts + len(data) / conditions.bytes_per_second
        if not path.open:
            return "the path is cut"
        if self._lost(path):
            return "lost"
        return "too long for the path" if len(data) > conditions.datagram_bytes_max else ""

    def _lost(self, path: _Path) -> bool:
        conditions = path.conditions
        draw = self._random.random()  # Gilbert and Elliott's two states
        path.in_burst = (
            draw >= conditions.burst_leave if path.in_burst else draw < conditions.burst_enter
        )
        return path.in_burst or self._random.random() < conditions.loss

    def _damaged(self, data: bytes, conditions: Conditions) -> bytes:
        if data and self._random.random() < conditions.corruption:
            bit = self._random.randrange(8 * len(data))
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            data = bytes(damaged)
        if data and self._random.random() < conditions.truncation:
            data = data[: self._random.randrange(len(data))]
        return data

    def _deliver(self, data: bytes, source: Address, to: Address) -> None:
        receive = self._receivers.get(to)
        if receive is None:
            return
        self.delivered += 1
        self._digest.update(f"{self.now!r} {source} {to} ".encode())
        self._digest.update(data)
        receive(data, source)

    def run(
        self, until: float, done: Callable[[], bool] = lambda: False, events_max: int = EVENTS_MAX
    ) -> bool:
        """Let time pass until ``done()`` or a time; return whether it was done.

        Raises LivelockError after too many events.
        """
        for _ in range(events_max):
            if done():
                return True
            if not self._events or self._events[0].time > until:
                self.now = max(self.now, until)
                return done()
            event = heapq.heappop(self._events)
            self.now = event.time
            event.call()
        raise LivelockError(f"{events_max} events and the time is only {self.now:.6f} s")


class SimulatedHost:
    """A production Endpoint and the Handler above it on a simulated network.

    Does in virtual time what the UDP driver does in real time, in the same order.
    """

    def __init__(
        self,
        network: SimulatedNetwork,
        identity: Identity,
        address: Address,
        mesh_key: bytes = b"",
        window_packets: int = HOST_WINDOW_PACKETS,
    ) -> None:
        self.network = network
        self.address = address
        entropy = network.entropy(f"{identity.node} {identity.incarnation}")
        self.endpoint = Endpoint(identity, mesh_key, window_packets, entropy)
        self.handler: Handler | None = None
        self._alive = True
        self._asleep = False
        self._clock_ahead_s = 0.0
        self._mail: deque[tuple[bytes, Address]] = deque()  # what came during sleep
        self._mail_max = window_packets
        self._put_off: list[Callable[[float], None]] = []
        self._timer: float | None = None  # by this host's own clock
        self._timers_set = 0
        network.attach(address, self._receive)
        network.hosts[address] = self

    @property
    def now(self) -> float:
        """The time by this host's own clock, in seconds."""
        return self.network.now + self._clock_ahead_s

    def crash(self) -> None:
        """Vanish without a word."""
        self._alive = False
        self.network.detach(self.address)

    def move(self, address: Address) -> None:
        """Take another address, as a device does that changes networks."""
        self.network.detach(self.address)
        self.address = address
        self.network.attach(address, self._receive)
        self.network.hosts[address] = self

    def sleep(self, seconds: float, *, clock_stops: bool) -> None:
        """Do nothing for a while, as a suspended phone does.

        Mail waits meanwhile, as much of it as the socket's buffer holds. The clock stops as
        Linux's monotonic one does in suspension, or it does not, as others'.
        """
        if self._alive and not self._asleep:
            self._asleep = True
            stood_s = seconds if clock_stops else 0.0
            self.network.at(self.network.now + seconds, partial(self._wake, stood_s))

    def jump(self, seconds: float) -> None:
        """Let the host's clock jump forward; one that never goes backward cannot do else."""
        self._clock_ahead_s += seconds
        if self._alive and not self._asleep:
            self._timer = None
            self._run_timers()

    def act(self, call: Callable[[float], None]) -> None:
        """Run ``call(now)`` and then whatever follows from it."""
        if self._asleep:
            self._put_off.append(call)
        elif self._alive:
            call(self.now)
            self._settle()

    def _wake(self, clock_stood_s: float) -> None:
        if not self._alive:
            return
        self._asleep = False
        self._clock_ahead_s -= clock_stood_s
        self._timer = None
        while self._mail:
            self.endpoint.receive_datagram(*self._mail.popleft(), self.now)
        put_off, self._put_off = self._put_off, []
        for call in put_off:
            call(self.now)
        self._run_timers()

    def _receive(self, data: bytes, source: Address) -> None:
        if self._asleep:
            if len(self._mail) < self._mail_max:
                self._mail.append((data, source))
            return
        self.endpoint.receive_datagram(data, source, self.now)
        self._settle()

    def _settle(self) -> None:
        handler = self.handler
        while (event := self.endpoint.next_event()) is not None:
            if handler is not None:
                handler.handle_event(event, self.now)
        while datagrams := self.endpoint.datagrams_to_send(self.now):
            for data, to in datagrams:
                self.network.send(data, self.address, to)
        self._set_timer()

    def _next_timer(self) -> float | None:
        timers = [self.endpoint.next_timer()]
        if self.handler is not None:
            timers.append(self.handler.next_timer())
        return min((timer for timer in timers if timer is not None), default=None)

    def _set_timer(self) -> None:
        timer = self._next_timer()
        if timer is None or (self._timer is not None and self.now < self._timer <= timer):
            return  # the one that is set comes first, and sets the next
        self._timer = timer
        self._timers_set += 1
        at = timer - self._clock_ahead_s
        while at + self._clock_ahead_s < timer:  # rounded down: it would not be due then
            at = math.nextafter(at, math.inf)
        self.network.at(at, partial(self._fire, self._timers_set))

    def _fire(self, number: int) -> None:
        if number != self._timers_set or self._timer is None or not self._alive or self._asleep:
            return
        self._timer = None
        self._run_timers()

    def _run_timers(self) -> None:
        for timed in (self.endpoint, self.handler):
            due = None if timed is None else timed.next_timer()
            if timed is not None and due is not None and due <= self.now:
                timed.handle_timer(self.now)
        self._settle()


@dataclass
class RecordingHandler:
    """A Handler that writes down every event and the messages of each peer."""

    events: list[Event] = field(default_factory=list)

    def handle_event(self, event: Event, now: float) -> None:
        """Write the event down."""
        self.events.append(event)

    def next_timer(self) -> float | None:
        """Return None: this handler has no timers."""
        return None

    def handle_timer(self, now: float) -> None:
        """Do nothing."""
