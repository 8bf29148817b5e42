"""mDNS between two hosts on one network, one of them deaf to multicast as Android is."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
        reason="network namespaces need Linux, root and ip",
    ),
]

ROOT = Path(__file__).resolve().parents[2]
DEVICE = """
import sys, threading, time
from edgellama.net.discovery import Discovery
from edgellama.net.interfaces import interfaces_for_discovery
from edgellama.values import Address
digit, host = sys.argv[1:]
seen = threading.Event()
def found(candidate):
    if not seen.is_set():
        seen.set()
        print(candidate.node[0], candidate.address, flush=True)
assert interfaces_for_discovery(None) == [host], interfaces_for_discovery(None)
device = Discovery(b"k" * 32, found)
device.browse()
device.announce(digit * 32, 7, Address("0.0.0.0", 7711))
while not (device._responder and device._responder._published):
    assert device.note is None, device.note
    time.sleep(0.01)
print("announced", flush=True)
ok = seen.wait(20)
if ok:
    sys.stdin.read()  # stay until the other has found us as well
device.close()
sys.exit(0 if ok and device.note is None else 1)
"""


def run(*command: str, stdin: str | None = None) -> None:
    subprocess.run(command, input=stdin, text=True, check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces joined by one cable, with addresses and without a route to anywhere."""
    tag = secrets.token_hex(3)
    names = [f"eld{tag}a", f"eld{tag}b"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
        cable = ("veth0", "type", "veth", "peer", "name", "veth1", "netns", names[1])
        run("ip", "-n", names[0], "link", "add", *cable)
        for number, name in enumerate(names):
            run("ip", "-n", name, "addr", "add", f"10.99.7.{number + 1}/24", "dev", f"veth{number}")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", f"veth{number}", "up")
    except (OSError, subprocess.SubprocessError) as error:
        remove(names)
        pytest.skip(f"network namespaces cannot be made here: {error}")
    yield names
    remove(names)


def remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.parametrize("deaf", [False, True])
def test_two_hosts_find_each_other(hosts: list[str], deaf: bool) -> None:
    if deaf:
        if shutil.which("nft") is None:
            pytest.skip("nft is not installed")
        rules = """
            table ip deaf {
                chain input {
                    type filter hook input priority 0
                    ip daddr { 224.0.0.0/4, 255.255.255.255, 10.99.7.255 } drop
                }
            }
        """
        run("ip", "netns", "exec", hosts[0], "nft", "-f", "-", stdin=rules)
    # The deaf one comes last: it is found by its announcement, which nobody could ask it for.
    hearing = start(hosts[1], "b", "10.99.7.2")
    hearing_lines = [line_of(hearing)]
    late = start(hosts[0], "a", "10.99.7.1")
    late_lines = sorted([line_of(late), line_of(late)])
    hearing_lines.append(line_of(hearing))
    results = [device.communicate(timeout=20) for device in (hearing, late)]
    assert hearing_lines == ["announced\n", "a 10.99.7.1:7711\n"], results
    assert late_lines == ["announced\n", "b 10.99.7.2:7711\n"], results
    assert [errors for _, errors in results] == ["", ""]
    assert [hearing.returncode, late.returncode] == [0, 0]


def start(host: str, digit: str, address: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", host, sys.executable, "-c", DEVICE, digit, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line_of(device: subprocess.Popen[str]) -> str:
    assert device.stdout is not None
    return device.stdout.readline()
