"""Who is in the mesh: a view merged by gossip, kept alive by heartbeats.

A member's record carries its incarnation (start time) and a version that only the member itself
raises. Records merge by (incarnation, version, state), so the order in which gossip arrives does
not matter. Whoever does not hear a member any more, and knows nobody who does, says that it is
dead; a member that reads this of itself raises its version and so refutes it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgpack

from edgellama.mesh.effects import Dial, Outbox, Tell
from edgellama.mesh.steadiness import Steadiness
from edgellama.plan.sizes import format_size
from edgellama.values import Address, ModelFacts, NodeId
from edgellama.wire.messages import (
    ALIVE,
    DEAD,
    LEAVES,
    LEFT,
    MEMBER_STATES,
    MEMBERS_MAX,
    MODELS_MAX,
    RESTS,
    STAYS,
    VERSION_PAST,
    Gossip,
    Heartbeat,
    MemberRecord,
    Trials,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


HEARTBEAT_S: Final = 1.0
REDIAL_S: Final = 2.0
DOUBLES_TOLD_MAX: Final = 4
SEEDS_REDIAL_S: Final = 5.0  # above a dial's own time, so that dials do not pile up
REDIAL_DEAD_S: Final = 10.0  # a device that slept comes back by itself; this only helps it
REDIAL_RELAYED_S: Final = 10.0  # a member that is reached by way of another

_WANTS: Final = {STAYS: "takes layers again", RESTS: "wants to rest", LEAVES: "wants to leave"}


def _rank(record: MemberRecord) -> tuple[int, int, int]:
    return record.incarnation, record.version, MEMBER_STATES.index(record.state)


class Membership:
    """The view of one node, and the messages that keep the views of all alike."""

    def __init__(self, me: MemberRecord, model: ModelFacts | None, outbox: Outbox) -> None:
        self._me = me.node
        self._records = {me.node: me}
        self._models = {model.root: model} if model else {}
        self._outbox = outbox
        self._reached: set[NodeId] = set()  # members to which there is a link or a way
        self._relayed: set[NodeId] = set()  # those to which there is only a way
        self._next_heartbeat = 0.0
        self._redial_at: dict[NodeId, float] = {}
        self._doubles: set[int] = set()  # incarnations of others with this identity, told of
        self._seeds: tuple[Address, ...] = ()
        self._seeds_at = 0.0
        self.steadiness = Steadiness()
        self.changed_at = 0.0  # when the living, what they offer, or who is on trial last changed

    @property
    def me(self) -> MemberRecord:
        """This node's own record."""
        return self._records[self._me]

    @property
    def models(self) -> Mapping[str, ModelFacts]:
        """The facts of every model that a member offers or has offered, by root."""
        return self._models

    def records(self) -> list[MemberRecord]:
        """Return every known record, in the order of the node ids."""
        return [self._records[node] for node in sorted(self._records)]

    def living(self) -> list[MemberRecord]:
        """Return the records of the members that are alive, in the order of their ids."""
        return [record for record in self.records() if record.state == ALIVE]

    def staying(self) -> list[MemberRecord]:
        """Return the records of the living that take layers, in the order of their ids."""
        return [record for record in self.living() if record.intent == STAYS]

    def record(self, node: NodeId) -> MemberRecord | None:
        """Return what is known of a node."""
        return self._records.get(node)

    def name(self, node: NodeId) -> str:
        """Return the node's name for a person."""
        record = self._records.get(node)
        return record.name if record else node[:8]

    def connected(self) -> list[NodeId]:
        """Return the members that messages can be sent to, in the order of their ids."""
        return sorted(self._reached)

    def peer_connected(self, node: NodeId, *, relayed: bool = False) -> None:
        """Tell a member that can be reached now all that is known."""
        self._reached.add(node)
        self._relayed.discard(node)
        if relayed:
            self._relayed.add(node)
        else:
            self._redial_at.pop(node, None)
        # Where this view calls the peer dead, the peer reads it here and refutes it.
        self._outbox.send(node, self._gossip())

    def peer_disconnected(self, node: NodeId, now: float) -> None:
        """Take note that a member cannot be reached; it is dialled at once."""
        self._reached.discard(node)
        self._relayed.discard(node)
        if node in self._records:
            self._redial_at[node] = now

    def tell_trials(self, node: NodeId, now: float) -> None:
        """Tell a member that can be reached now who is on trial: perhaps it is itself."""
        trials = self.steadiness.trials(now)
        if trials:
            self._outbox.send(node, Trials(trials))

    def declare(self, node: NodeId, incarnation: int, state: str, now: float) -> None:
        """Say that a member is dead, or has left, in this life of it."""
        record = self._records.get(node)
        if record and record.incarnation == incarnation and record.state == ALIVE:
            self._merge([record._replace(state=state)], now)

    def receive(self, node: NodeId, message: Heartbeat | Gossip | Trials, now: float) -> None:
        """Take what another member says of itself and of others."""
        match message:
            case Gossip():
                self.receive_gossip(message, now)
            case Heartbeat():
                self.receive_heartbeat(node, message)
            case Trials():
                self._receive_trials(message, now)

    def receive_heartbeat(self, node: NodeId, heartbeat: Heartbeat) -> None:
        """Answer with all that is known where the other's view differs."""
        if heartbeat.view_digest != self._digest():
            self._outbox.send(node, self._gossip())

    def receive_gossip(self, gossip: Gossip, now: float) -> None:
        """Take in what another member knows."""
        for model in gossip.models:
            if model.root not in self._models and len(self._models) < MODELS_MAX:
                self._models[model.root] = model
                self.changed_at = now
        self._merge(gossip.members, now)

    def set_backend(self, backend: str, now: float) -> None:
        """Tell every member that this node now computes with other kernels."""
        self._put(self.me._replace(backend=backend, version=self.me.version + 1), now)
        self._tell_all()

    def set_offer(self, ram_bytes: int, now: float) -> None:
        """Tell every member that this node now offers more memory, or less."""
        before = self.me.ram_bytes
        self._put(self.me._replace(ram_bytes=ram_bytes, version=self.me.version + 1), now)
        self._outbox.put(
            Tell(f"{self.me.name} offers {format_size(ram_bytes)} now, not {format_size(before)}")
        )
        self._tell_all()

    def set_intent(self, intent: str, now: float) -> None:
        """Tell every member that this node wants no layers from the next plan on, or does again.

        What has said that it leaves does not change its mind.
        """
        if self.me.intent not in (intent, LEAVES):
            self._put(self.me._replace(intent=intent, version=self.me.version + 1), now)
            self._tell_all()

    def leave(self, now: float) -> None:
        """Tell every member that this node goes, so that nobody waits for it."""
        self._put(self.me._replace(state=LEFT, version=self.me.version + 1), now)
        self._tell_all()

    def seed(self, addresses: Iterable[Address]) -> None:
        """Dial these addresses until there is a link to any member; they may not be up yet."""
        self._seeds = tuple(dict.fromkeys(addresses))

    def next_timer(self) -> float:
        """Return when ``handle_timer`` wants to be called."""
        seeds = [self._seeds_at] if self._seeds and not self._reached else []
        return min([self._next_heartbeat, *self._redial_at.values(), *seeds])

    def handle_timer(self, now: float) -> None:
        """Send heartbeats, and dial living members that this node has no link to."""
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self._plan_dials(now)
        if self._seeds and not self._reached and now >= self._seeds_at:
            self._seeds_at = now + SEEDS_REDIAL_S
            for address in self._seeds:
                self._outbox.put(Dial(address))
        for node in [node for node, due in self._redial_at.items() if now >= due]:
            record = self._records[node]
            if self._is_linked(node) or record.state == LEFT:
                del self._redial_at[node]
            else:
                self._redial_at[node] = now + self._redial_s(record)
                self._outbox.put(Dial(Address(record.host, record.port)))

    def _redial_s(self, record: MemberRecord) -> float:
        if record.node in self._relayed:
            return REDIAL_RELAYED_S
        return REDIAL_S if record.state == ALIVE else REDIAL_DEAD_S

    def _is_linked(self, node: NodeId) -> bool:
        return node in self._reached and node not in self._relayed

    def heartbeat(self, epoch_seen: int, epoch_active: int) -> Heartbeat:
        """Return what this node says of itself every second."""
        return Heartbeat(self._digest(), epoch_seen, epoch_active)

    def is_heartbeat_due(self, now: float) -> bool:
        """Return whether the next call of ``handle_timer`` begins a new second."""
        return now >= self._next_heartbeat

    def _plan_dials(self, now: float) -> None:
        for record in self.living():
            if record.node != self._me and not self._is_linked(record.node):
                self._redial_at.setdefault(record.node, now)

    def _merge(self, records: Iterable[MemberRecord], now: float) -> None:
        news = False
        for record in records:
            known = self._records.get(record.node)
            if record.node == self._me:
                self._look_for_double(record)
            if known is None and len(self._records) >= MEMBERS_MAX:
                continue
            if known is not None and _rank(record) <= _rank(known):
                continue
            if record.node == self._me:
                news |= self._refute(record, now)
            else:
                self._put(record, now)
                news = True
        if news:
            self._tell_all()

    def _refute(self, record: MemberRecord, now: float) -> bool:
        """Outlive what others say of this node; a later incarnation is another process's word."""
        me = self.me
        if record.incarnation > me.incarnation or me.state == LEFT:
            return False
        if record.version + 1 >= VERSION_PAST:
            return False
        self._put(me._replace(version=record.version + 1), now)
        return True

    def _look_for_double(self, record: MemberRecord) -> None:
        """Say so where another device takes part with this one's identity, and started earlier."""
        me = self.me
        elsewhere = (record.host, record.port) != (me.host, me.port)
        if record.state != ALIVE or record.incarnation >= me.incarnation or not elsewhere:
            return
        if record.incarnation not in self._doubles and len(self._doubles) < DOUBLES_TOLD_MAX:
            self._doubles.add(record.incarnation)
            self._outbox.put(
                Tell(
                    f"a device at {record.host}:{record.port} took part with this device's "
                    "identity; if that was not this one before it started again, one home folder "
                    "is a copy (edgellama doctor says more)"
                )
            )

    def _put(self, record: MemberRecord, now: float) -> None:
        before = self._records.get(record.node)
        self._records[record.node] = record
        if record.node != self._me:
            self._tell(record, before)
            self._try_for_steadiness(record, before, now)
        if before is None or before._replace(version=0) != record._replace(version=0):
            self.changed_at = now

    def _receive_trials(self, message: Trials, now: float) -> None:
        before = self.steadiness.on_trial
        known = [trial for trial in message.trials if trial.node in self._records]
        self.steadiness.told(known, now)
        begun = self.steadiness.on_trial - before
        if begun:
            self.changed_at = now  # a plan may have been made already that gives them layers
        if self._me in begun:
            self._tell_trial("this device")

    def _try_for_steadiness(
        self, record: MemberRecord, before: MemberRecord | None, now: float
    ) -> None:
        """Take note when a member is lost without a word, and when it is here again."""
        if before is None or before.state == LEFT:
            return
        anew = before.incarnation < record.incarnation
        if before.state == ALIVE and record.state == DEAD:
            self.steadiness.lost(record.node, now)
        if record.state != ALIVE or (before.state == ALIVE and not anew):
            return
        if self.steadiness.returned(record.node, now, anew=anew):
            self._tell_trial(record.name)
            for node in self.connected():
                self.tell_trials(node, now)

    def _tell_trial(self, name: str) -> None:
        text = "gets no layers until it has stayed a while, unless the others cannot do without it"
        self._outbox.put(Tell(f"{name} was lost more than once of late: it {text}"))

    def _tell(self, record: MemberRecord, before: MemberRecord | None) -> None:
        was_there = before is not None and before.state == ALIVE
        if record.state == ALIVE and not was_there:
            self._outbox.put(Tell(f"{record.name} joined from {record.host}"))
        elif record.state != ALIVE and was_there:
            self._outbox.put(Tell(f"{record.name} {'left' if record.state == LEFT else 'is lost'}"))
        elif before is not None and was_there and record.intent != before.intent:
            self._outbox.put(Tell(f"{record.name} {_WANTS[record.intent]}"))

    def _gossip(self) -> Gossip:
        return Gossip(tuple(self.records()), tuple(self._models[r] for r in sorted(self._models)))

    def _tell_all(self) -> None:
        gossip = self._gossip()
        for node in self.connected():
            self._outbox.send(node, gossip)

    def _digest(self) -> str:
        known = [[record.node, *_rank(record)] for record in self.records()]
        packed: bytes = msgpack.packb([known, sorted(self._models)])
        return hashlib.blake2b(packed, digest_size=8).hexdigest()
