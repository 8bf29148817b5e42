"""What there is around this device: a look at the network, which changes nothing there.

It listens for multicast, knocks at every address that is known for a member, and asks whoever opens
for its release, its clock and its view of the mesh.
"""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from edgellama.net.discovery import Candidate, Discovery
from edgellama.net.multicast import MulticastReport, listen_for_multicast
from edgellama.net.peers import RememberedPeers
from edgellama.net.reachability import Probe, probe, router, router_answers
from edgellama.node.survey import Knock, Survey
from edgellama.values import Address
from edgellama.wire.messages import StatusQuery, StatusReply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellama.net.host_report import HostReport
    from edgellama.net.paths import StatePaths
    from edgellama.values import NodeId

LISTEN_S: Final = 3.0  # devices answer mDNS within half a second; one question may be lost
PEERS_MAX: Final = 64

NAMED, REMEMBERED, ANNOUNCED, MEMBER = "named", "remembered", "announced", "member"
"""How an address is known: a person gave it, from the last time, by mDNS, or from a member."""


@dataclass(frozen=True)
class PeerReport:
    """An address at which a member is, or was, and what came of knocking there."""

    address: Address
    known_from: str
    knock: Knock
    probe: Probe = field(default_factory=Probe)
    name: str = ""
    seen_s_ago: float | None = None  # when it was last connected to; None: not known
    release: str = ""  # empty: it did not say
    clock_ahead_s: float | None = None  # of this device's, half a round trip allowed for
    round_trip_s: float | None = None

    @property
    def label(self) -> str:
        """The peer's name and address for a person."""
        return f"{self.name} ({self.address})" if self.name else str(self.address)


@dataclass(frozen=True)
class NetworkReport:
    """What was found around this device.

    ``doubles`` are addresses of other devices that announce this one's identity. ``own_record`` is
    what members know of this identity: incarnation and host; None where no member does.
    """

    multicast: MulticastReport
    discovery_note: str
    foreign_meshes: int
    peers: tuple[PeerReport, ...]
    doubles: tuple[Address, ...]
    own_record: tuple[int, str] | None
    router: str | None
    router_answers: bool
    status: StatusReply | None


def examine_network(
    host: HostReport, paths: StatePaths, mesh_key: bytes, named: Sequence[Address]
) -> NetworkReport:
    """Look around for some seconds."""
    listening = _Listening(host.lan)
    found: dict[Address, Candidate] = {}

    def announced(candidate: Candidate) -> None:
        found[candidate.address] = candidate

    discovery = Discovery(mesh_key, announced)
    with closing(discovery), closing(Survey(mesh_key)) as survey:
        discovery.browse()
        survey.start()
        listening.start()
        where_router = router()
        answers = where_router is not None and router_answers(where_router)
        here = paths.running()
        known = _known(named, paths)
        knocks = survey.reach([*([here] if here else []), *known])
        listening.join()
        late = [address for address in found if address not in knocks]
        knocks |= survey.reach([each for each in late if not _is_here(each, host)])
        status = _status(survey)
        members = _members(status, host)
        knocks |= survey.reach([address for address in members if address not in knocks])
        readings = _readings(survey)
        foreign, note = discovery.foreign_meshes, discovery.note or ""
    reports = _peers(host, known, found, members, knocks, readings)
    return NetworkReport(
        multicast=listening.report,
        discovery_note=note,
        foreign_meshes=foreign,
        peers=tuple(_probed(reports)),
        doubles=tuple(
            each.address
            for each in found.values()
            if each.node == host.node and not _is_here(each.address, host)
        ),
        own_record=_own_record(status, host.node),
        router=where_router,
        router_answers=answers,
        status=status,
    )


class _Listening(threading.Thread):
    """Listens for multicast beside everything else."""

    def __init__(self, interfaces: Sequence[str]) -> None:
        super().__init__(name="edgellama-listen", daemon=True)
        self._interfaces = interfaces
        self.report = MulticastReport()

    def run(self) -> None:
        """Listen to the end."""
        self.report = listen_for_multicast(self._interfaces, LISTEN_S)


def _known(named: Sequence[Address], paths: StatePaths) -> dict[Address, PeerReport]:
    """Return named and remembered peers; nobody has knocked there yet."""
    known = {each: PeerReport(each, NAMED, Knock(None)) for each in named}
    now_ms = time.time_ns() // 1_000_000
    for peer in RememberedPeers(paths.peers).all():
        ago_s = max(0.0, (now_ms - peer.seen_ms) / 1000)
        before = known.get(peer.address, PeerReport(peer.address, REMEMBERED, Knock(None)))
        known[peer.address] = replace(before, seen_s_ago=ago_s)
    return dict(list(known.items())[:PEERS_MAX])


def _is_here(address: Address, host: HostReport) -> bool:
    own = {each.address for each in host.addresses} | set(host.lan)
    return address.host in own or address.host.startswith("127.")


def _status(survey: Survey) -> StatusReply | None:
    """Return the view of one member of those that were reached: of the one that sees most."""
    replies = survey.replies(StatusQuery(secrets.randbits(64)), StatusReply)
    return max(replies.values(), key=lambda reply: (len(reply.members), reply.node), default=None)


def _members(status: StatusReply | None, host: HostReport) -> dict[Address, str]:
    """Return where living members are, but for this device, with their names."""
    members = {}
    for member in status.members if status else ():
        address = Address(member.record.host, member.record.port)
        is_alive = member.record.state == "alive"
        if is_alive and address.host and not _is_here(address, host):
            members[address] = member.record.name
    return members


def _own_record(status: StatusReply | None, node: NodeId) -> tuple[int, str] | None:
    for member in status.members if status else ():
        if node and member.record.node == node and member.record.state == "alive":
            return member.record.incarnation, member.record.host
    return None


@dataclass(frozen=True)
class _Reading:
    release: str
    clock_ahead_s: float
    round_trip_s: float


def _readings(survey: Survey) -> dict[NodeId, _Reading]:
    """Return what each member that was reached says of itself."""
    trips = survey.round_trips_s()
    asked_ms = time.time_ns() / 1e6
    replies = survey.meters()
    readings = {}
    for node, reply in replies.items():
        trip_s = trips.get(node, 0.0)
        ahead_s = (reply.clock_ms - asked_ms) / 1000 - trip_s / 2
        readings[node] = _Reading(reply.release, ahead_s, trip_s)
    return readings


def _peers(
    host: HostReport,
    known: dict[Address, PeerReport],
    found: dict[Address, Candidate],
    members: dict[Address, str],
    knocks: dict[Address, Knock],
    readings: dict[NodeId, _Reading],
) -> list[PeerReport]:
    reports = dict(known)
    for address in found:
        reports.setdefault(address, PeerReport(address, ANNOUNCED, Knock(None)))
    for address, name in members.items():
        before = reports.get(address, PeerReport(address, MEMBER, Knock(None)))
        reports[address] = replace(before, name=name)
    answered = []
    for address, report in reports.items():
        if _is_here(address, host):
            continue
        knock = knocks.get(address, report.knock)
        reading = readings.get(knock.node) if knock.node else None
        report = replace(report, knock=knock)
        if reading is not None:
            report = replace(
                report,
                release=reading.release,
                clock_ahead_s=reading.clock_ahead_s,
                round_trip_s=reading.round_trip_s,
            )
        answered.append(report)
    return answered[:PEERS_MAX]


def _probed(reports: Sequence[PeerReport]) -> list[PeerReport]:
    """Return the reports with a closer look at those that gave no answer."""
    silent = [report.address for report in reports if report.knock.node is None]
    probes = probe(silent) if silent else {}
    return [replace(each, probe=probes.get(each.address, each.probe)) for each in reports]
