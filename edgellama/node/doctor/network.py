"""Checks of what is between this device and the others."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from edgellama.net.interfaces import TUNNEL_NAMES, is_home
from edgellama.node.doctor.findings import DAY_S, FAIL, WARN, Finding, fine

if TYPE_CHECKING:
    from edgellama.net.host_report import HostReport
    from edgellama.node.doctor.examination import NetworkReport, PeerReport

CLOCK_AHEAD_S: Final = 30.0
SEEN_LATELY_S: Final = 7 * DAY_S
WINDOWS_RULE: Final = (
    "as administrator: New-NetFirewallRule -DisplayName edgellama -Direction Inbound -Protocol UDP "
    "-LocalPort 7711,5353 -Profile Private -Action Allow"
)
MACOS_PERMISSION: Final = (
    "allow the terminal that starts it in System Settings, Privacy & Security, Local Network"
)


def check_network(host: HostReport, network: NetworkReport) -> list[Finding]:
    """Return what can be said of this device's network and of who is on it."""
    findings = [_interfaces(host), *_tunnels(host), *_permission(host, network)]
    findings.append(_multicast(host, network))
    findings.extend(_firewall(host, network))
    findings.append(_identity(host, network))
    findings.extend(_members(host, network))
    return findings


# --- the way to others ----------------------------------------------------------------------


def _interfaces(host: HostReport) -> Finding:
    if not host.lan:
        return Finding(
            "network", FAIL, "no network with an IPv4 address is up", "connect to the home network"
        )
    networks = sorted(
        {str(each.network) for each in host.addresses if each.address in host.lan} or set(host.lan)
    )
    if not any(is_home(address) for address in host.lan):
        return Finding(
            "network",
            WARN,
            f"{', '.join(host.lan)} is no address of a home network",
            "connect to the network that the other devices are on",
        )
    if len(networks) > 1:
        return Finding(
            "network",
            WARN,
            f"this device is on {len(networks)} networks: {', '.join(networks)}",
            "the devices must share one of them; join --listen ADDRESS keeps to that one",
        )
    return fine("network", f"{', '.join(host.lan)} on {networks[0]}")


def _tunnels(host: HostReport) -> list[Finding]:
    tunnels = [
        each
        for each in host.addresses
        if each.is_up and each.interface.lower().startswith(TUNNEL_NAMES)
    ]
    if not tunnels:
        return []
    names = ", ".join(sorted({each.interface for each in tunnels}))
    if host.route in {each.address for each in tunnels}:
        return [
            Finding(
                "VPN",
                WARN,
                f"all traffic leaves by {names}; many VPNs cut the home network off",
                "allow the local network in the VPN's settings, or end it",
            )
        ]
    return [fine("VPN", f"{names} is up, and the home network is reached beside it")]


def _permission(host: HostReport, network: NetworkReport) -> list[Finding]:
    """Say whether the system lets this program on the local network at all."""
    errors = {each.probe.send_errno for each in network.peers} | set(network.multicast.send_errors)
    if host.is_android and errno.EPERM in errors:
        return [
            Finding(
                "permission",
                FAIL,
                "Android does not let this app on the local network",
                "install Termux from F-Droid or GitHub instead of the Play Store's",
            )
        ]
    if host.system == "darwin" and errno.EHOSTUNREACH in errors:
        text = "macOS does not let this program on the local network"
        return [Finding("permission", FAIL, text, MACOS_PERMISSION)]
    if errno.EPERM in errors:
        text = "the system refuses to send: a firewall or a sandbox stops what goes out"
        return [Finding("permission", FAIL, text, "allow UDP to ports 7711 and 5353")]
    return []


def _multicast(host: HostReport, network: NetworkReport) -> Finding:
    heard = network.multicast.heard
    by_hand = "name a device that is there: join --peer ADDRESS"
    if network.multicast.fault:
        return Finding("multicast", WARN, network.multicast.fault, by_hand)
    if heard:
        devices = "1 other device" if len(heard) == 1 else f"{len(heard)} other devices"
        if network.discovery_note:
            return Finding("multicast", WARN, f"mDNS: {network.discovery_note}", by_hand)
        return fine("multicast", f"heard from {devices}")
    if host.is_android:
        text = "no multicast is heard: Android filters it, and Termux cannot ask it not to"
        return Finding("multicast", WARN, text, f"this phone is found by others; or {by_hand}")
    if any(peer.knock.node for peer in network.peers):
        return Finding(
            "multicast",
            FAIL,
            "devices answer, and yet their multicast is not heard: something filters it",
            f"look for multicast or IGMP settings of the access point, or {by_hand}",
        )
    text = "no multicast is heard from anybody: nobody else is here, or something filters it"
    return Finding("multicast", WARN, text, by_hand)


def _firewall(host: HostReport, network: NetworkReport) -> list[Finding]:
    report = host.firewall
    alone = not any(peer.knock.node for peer in network.peers)
    allow = "allow UDP to ports 7711 (or the port of join) and 5353"
    findings = [Finding("firewall", FAIL, rule, allow) for rule in report.blocking]
    for kind in report.active:
        advice = {
            "ufw": "sudo ufw allow 7711/udp; sudo ufw allow 5353/udp",
            "firewalld": "sudo firewall-cmd --permanent --add-port=7711/udp --add-service=mdns; "
            "sudo firewall-cmd --reload",
            "Windows": WINDOWS_RULE,
            "macOS": "allow Python in System Settings, Network, Firewall, Options",
        }[kind]
        if alone:
            text = f"{kind}'s firewall is on, and no other device has answered"
            findings.append(Finding("firewall", WARN, text, advice))
        else:
            findings.append(fine("firewall", f"{kind}'s is on, and other devices answer"))
    if not findings:
        unread = (
            f"; {', '.join(report.unreadable)} can be read by root alone"
            if report.unreadable
            else ""
        )
        findings.append(fine("firewall", f"nothing is known to stop datagrams{unread}"))
    return findings


# --- who is there ---------------------------------------------------------------------------


def _identity(host: HostReport, network: NetworkReport) -> Finding:
    """Say whether another device has this one's identity, from a home folder that was copied."""
    anew = "on one of the two delete the files identity and incarnation in its state folder"
    if network.doubles:
        where = ", ".join(str(each) for each in network.doubles)
        return Finding("identity", FAIL, f"{where} has this device's identity as well", anew)
    if network.own_record is not None:
        incarnation, where = network.own_record
        own = {each.address for each in host.addresses} | set(host.lan)
        if incarnation > host.incarnation or (host.joined_at and where not in own):
            text = f"members know this identity as a device at {where}"
            return Finding("identity", FAIL, f"{text}: its home folder is a copy", anew)
    if not host.node:
        return fine("identity", "none yet: the first join makes one")
    return fine("identity", f"{host.node[:8]}, nobody else has it")


def _members(host: HostReport, network: NetworkReport) -> list[Finding]:
    answered = [peer for peer in network.peers if peer.knock.node is not None]
    here = [fine("this device", f"join runs here, at {host.joined_at}")] if host.joined_at else []
    findings = [*here, _mesh(network, answered)]
    findings.extend(_silent(network, answered))
    findings.extend(_clocks(answered))
    findings.extend(_releases(host, answered))
    return findings


def _mesh(network: NetworkReport, answered: list[PeerReport]) -> Finding:
    if answered:
        count = "1 other device answers" if len(answered) == 1 else f"{len(answered)} others answer"
        names = ", ".join(peer.label for peer in answered[:4])
        trouble = network.status.trouble if network.status else ""
        if trouble:
            return Finding(
                "mesh", WARN, f"{count} ({names}), but: {trouble}", "see edgellama status"
            )
        return fine("mesh", f"{count}: {names}")
    if network.foreign_meshes:
        return Finding(
            "mesh",
            FAIL,
            "no device of this device's mesh answers, and one with another key is here",
            "edgellama invite there shows a code; join with --code, or with the same key",
        )
    if any(_is_late(peer) for peer in network.peers):
        return Finding("mesh", FAIL, "no other device of the mesh answers", "see the lines below")
    text = "no other device is known" if not network.peers else "no other device answers"
    advice = "start edgellama join on another device, or name one with --peer ADDRESS"
    return Finding("mesh", WARN, text, advice)


def _is_late(peer: PeerReport) -> bool:
    """Say whether a peer is one that a person would expect to be there."""
    return peer.known_from != "remembered" or (peer.seen_s_ago or 0.0) < SEEN_LATELY_S


def _silent(network: NetworkReport, answered: list[PeerReport]) -> list[Finding]:
    """Say of each peer that was silent what can be known of it, and of all what they share."""
    silent = [peer for peer in network.peers if peer.knock.node is None and _is_late(peer)]
    hidden = [peer for peer in silent if not peer.probe.is_refused and not _says_more(peer)]
    if hidden and not answered and network.router_answers and len(hidden) == len(silent):
        return [_isolation(hidden)]
    return [_one_silent(peer) for peer in silent]


def _says_more(peer: PeerReport) -> bool:
    return peer.knock.refusal != "no answer"


def _isolation(hidden: list[PeerReport]) -> Finding:
    """Say what it means that the router answers and no device does.

    The system's neighbour table counts only against a firewall there: an entry in it may be old.
    """
    names = ", ".join(peer.label for peer in hidden[:4])
    causes = (
        "they are off, or the access point keeps its devices apart (isolation, a guest network)"
    )
    advice = "turn them on; else end isolation, use another network, or connect one by cable"
    if any(peer.probe.is_neighbour is not False for peer in hidden):
        causes += ", or their firewalls are shut"
        advice += "; run edgellama doctor there"
    text = f"the router answers, but not {names}: {causes}"
    return Finding("reaching them", FAIL, text, advice)


def _one_silent(peer: PeerReport) -> Finding:
    check = "reaching them"
    if peer.probe.is_refused:
        text = f"{peer.label} is on, but no edgellama listens there"
        return Finding(check, WARN, text, "start edgellama join there")
    if _says_more(peer):
        return Finding(check, FAIL, f"{peer.label}: {peer.knock.refusal}", "update both devices")
    if peer.known_from == "announced":
        text = f"{peer.label} announces itself, but what is sent to it gets no answer"
        return Finding(check, FAIL, text, "look for a firewall there: run edgellama doctor on it")
    if peer.known_from == "member":
        text = f"others reach {peer.label}, this device does not"
        return Finding(
            check, FAIL, text, "both must be on one network: look for a guest network or a firewall"
        )
    return Finding(check, WARN, f"{peer.label} does not answer", "it is off, or on another network")


def _clocks(answered: list[PeerReport]) -> list[Finding]:
    off = [
        peer
        for peer in answered
        if peer.clock_ahead_s is not None and abs(peer.clock_ahead_s) > CLOCK_AHEAD_S
    ]
    if off:
        peer = max(off, key=lambda each: abs(each.clock_ahead_s or 0.0))
        ahead_s = peer.clock_ahead_s or 0.0
        text = f"{peer.label} is {_duration(abs(ahead_s))} {'ahead' if ahead_s > 0 else 'behind'}"
        advice = "set the clocks: which of two devices was there first is told by them"
        return [Finding("clock", WARN, text, advice)]
    if any(peer.clock_ahead_s is not None for peer in answered):
        return [fine("clock", "agrees with the others'")]
    return []


def _duration(seconds: float) -> str:
    for name, length in (("days", DAY_S), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"


def _releases(host: HostReport, answered: list[PeerReport]) -> list[Finding]:
    others = [peer for peer in answered if peer.release and peer.release != host.release]
    if others:
        peer = others[0]
        text = f"{peer.label} runs edgellama {peer.release}, this device {host.release}"
        return [Finding("versions", WARN, text, "run the same release everywhere")]
    if any(peer.release for peer in answered):
        return [fine("versions", f"all run edgellama {host.release}")]
    return []
