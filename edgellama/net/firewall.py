"""What this host's firewall does with datagrams that come in, as far as it can be read.

Linux: nftables' own listing (root alone), ufw's and firewalld's state. What the rules mean is
decided by a function over the listing; where it cannot be read, that is said and nothing guessed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PORTS: Final = (7711, 5353)  # our own, and mDNS's
RULES_SHOWN: Final = 4
_TIMEOUT_S: Final = 5
_INPUT_HOOKS: Final = ("input", "ingress", "prerouting")
_VERDICTS: Final = ("drop", "reject")


@dataclass(frozen=True)
class FirewallReport:
    """Which kinds are active, which rules stop our datagrams, and what could not be read."""

    active: tuple[str, ...] = ()
    blocking: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def firewall_report() -> FirewallReport:
    """Return what this host's firewall does."""
    if sys.platform == "darwin":
        state = _output("/usr/libexec/ApplicationFirewall/socketfilterfw", "--getglobalstate")
        return FirewallReport(active=("macOS",) if "enabled" in (state or "").lower() else ())
    if sys.platform == "win32":
        return FirewallReport(active=("Windows",))
    active, blocking, unreadable = [], [], []
    if shutil.which("nft"):
        listing = _output("nft", "-j", "list", "ruleset")
        rules = _parsed(listing)
        if rules is None:
            unreadable.append("nftables")
        else:
            blocking.extend(blocking_rules(rules, PORTS))
    if ufw_is_enabled(_text(Path("/etc/ufw/ufw.conf"))):
        active.append("ufw")
    if (
        shutil.which("firewall-cmd")
        and (_output("firewall-cmd", "--state") or "").strip() == "running"
    ):
        active.append("firewalld")
    return FirewallReport(tuple(active), tuple(blocking[:RULES_SHOWN]), tuple(unreadable))


def ufw_is_enabled(text: str) -> bool:
    """Say what ``/etc/ufw/ufw.conf`` says."""
    lines = [line.replace(" ", "").lower() for line in text.splitlines()]
    return "enabled=yes" in lines


def _parsed(listing: str | None) -> list[dict[str, Any]] | None:
    try:
        value = json.loads(listing or "")
        entries = value["nftables"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(entries, list):
        return None
    return [entry for entry in entries if isinstance(entry, dict)]


def blocking_rules(entries: Sequence[dict[str, Any]], ports: Sequence[int]) -> list[str]:
    """Return in words which rules and policies of a ``nft -j`` listing stop UDP to these ports.

    A chain that drops by default counts unless a rule in it lets UDP to the port in.
    """
    chains = [_of(entry, "chain") for entry in entries]
    incoming = {
        _name(chain): chain
        for chain in chains
        if chain.get("type") == "filter" and chain.get("hook") in _INPUT_HOOKS
    }
    found = []
    accepted: dict[str, set[int]] = {}
    for rule in (_of(entry, "rule") for entry in entries):
        name = _name(rule, "chain")
        expressions = rule.get("expr")
        if not isinstance(expressions, list):
            continue
        hit = [port for port in ports if _concerns(expressions, port)]
        verdict = next((v for v in (*_VERDICTS, "accept") if any(v in e for e in expressions)), "")
        if verdict == "accept":
            # A chain that others jump to counts for all of its table.
            accepted.setdefault(name if name in incoming else _table(rule), set()).update(hit)
        elif verdict and hit and name in incoming:
            found.append(f"a rule of the chain {name} {verdict}s {_what(expressions, hit)}")
    for name, chain in incoming.items():
        let_in = accepted.get(name, set()) | accepted.get(_table(chain), set())
        shut = [port for port in ports if port not in let_in]
        if chain.get("policy") == "drop" and shut:
            numbers = " and ".join(map(str, shut))
            found.append(f"the chain {name} drops by default, UDP port {numbers} too")
    return found


def _of(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    value = entry.get(kind)
    return value if isinstance(value, dict) else {}


def _name(value: dict[str, Any], key: str = "name") -> str:
    return " ".join(str(value.get(part, "")) for part in ("family", "table", key))


def _table(value: dict[str, Any]) -> str:
    return f"{value.get('family', '')} {value.get('table', '')}"


def _concerns(expressions: Sequence[Any], port: int) -> bool:
    """Say whether a rule may apply to UDP from the network to this port."""
    for match in _matches(expressions):
        left, right = match.get("left"), match.get("right")
        if match.get("op") not in ("==", "in"):
            continue  # other comparisons leave something over that may be ours
        if not isinstance(left, dict):
            continue
        payload, meta = _of(left, "payload"), _of(left, "meta")
        if "ct" in left:
            states = right if isinstance(right, list | str) else ""
            if "new" not in states and "untracked" not in states:
                return False
        if payload.get("protocol") in ("tcp", "icmp", "icmpv6", "ip6", "sctp", "dccp"):
            return False
        is_protocol = (
            payload.get("field") in ("protocol", "nexthdr") or meta.get("key") == "l4proto"
        )
        if is_protocol and not _includes(right, "udp"):
            return False
        if meta.get("key") in ("iifname", "iif") and _includes(right, "lo") and right == "lo":
            return False
        if payload.get("field") == "dport" and not _includes(right, port):
            return False
        if payload.get("field") == "sport" or (
            payload.get("field") == "saddr" and isinstance(right, str)
        ):
            return False  # of one program, or one device, elsewhere
    return True


def _matches(expressions: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for expression in expressions:
        match = expression.get("match") if isinstance(expression, dict) else None
        if isinstance(match, dict):
            yield match


def _includes(right: Any, wanted: Any) -> bool:
    """Say whether nft's right-hand side, a value, a set or a range, includes a value."""
    if isinstance(right, dict):
        if isinstance(right.get("set"), list):
            return any(_includes(each, wanted) for each in right["set"])
        bounds = right.get("range")
        if isinstance(bounds, list) and len(bounds) == 2 and isinstance(wanted, int):
            low, high = bounds
            return isinstance(low, int) and isinstance(high, int) and low <= wanted <= high
        return True  # a named set or a map: it may
    if isinstance(right, list):
        return wanted in right
    return bool(right == wanted)


def _what(expressions: Sequence[Any], ports: Sequence[int]) -> str:
    text = json.dumps(expressions)
    if "numgen" in text or '"limit"' in text:
        return "some of what comes in"
    if "daddr" in text and ("ether" in text or "224.0.0" in text or "ff" in text.lower()):
        return "multicast"
    if '"dport"' in text:
        return f"UDP to port {' and '.join(map(str, ports))}"
    return "UDP" if "udp" in text else "what comes in"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 (constant commands, no shell)
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
