"""Real ``edgellama`` processes on hosts of a test network, and what they say.

``Mesh`` starts ``join`` on hosts, waits on ``status --json`` until they are ready, asks, and ends
everything. Every wait is bounded; a failure shows the last status and each process's own lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from network import MemoryGroup, Network, Place

from edgellama.net.peers import DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

COMMAND = (sys.executable, "-m", "edgellama")
KEY = "end-to-end"
READY_WITHIN_S = 120  # kernels compile, weights travel; on two cores shared by three nodes
ANSWER_WITHIN_S = 180
LEAVE_WITHIN_S = 20

# What every test asks, and the two ways in which it does.
PROMPT = "Once upon a time"
GREEDY = ("-n", 40, "--temperature", 0)
SAMPLED = ("-n", 40, "--temperature", 0.9, "--top-k", 40, "--top-p", 0.95, "--seed", 7)

Status = dict[str, Any]


class Outcome(NamedTuple):
    """What a command that ended has said."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.code == 0, self
        return json.loads(self.stdout)

    def refuses(self, code: int, *words: str) -> None:
        """Check that this is one clear line on stderr, with these words, and this exit code."""
        assert "Traceback" not in self.stderr, self.stderr
        assert self.code == code, self
        message = self.stderr.strip().splitlines()[-1]
        for word in words:
            assert word in message, f"{word!r} is not in {message!r}"


class Host:
    """One device: a place on the network, a state folder, and at most one ``join``."""

    def __init__(self, place: Place, folder: Path, memory: MemoryGroup | None = None) -> None:
        self.place = place
        self.folder = folder
        self.memory = memory
        self.joined: subprocess.Popen[bytes] | None = None
        self.key = KEY  # empty: what a person has who sets no key
        self._starts = 0
        folder.mkdir(parents=True)

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        own = {"EDGELLAMA_HOME": str(self.folder / "home"), "EDGELLAMA_KEY": self.key}
        plain = {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "TERM": "dumb"}
        return {**os.environ, **plain, **own, **(changes or {})}

    def command(self, arguments: Sequence[object], program: Sequence[str] = COMMAND) -> list[str]:
        """Return the words that run a program at this host's place, within its limit."""
        limit = self.memory.entry if self.memory else ()
        return [*limit, *self.place.entry, *program, *map(str, arguments)]

    def run(
        self, *arguments: object, stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run a command to its end; a traceback is a failure whatever the test looks for."""
        done = subprocess.run(
            self.command(arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=ANSWER_WITHIN_S,
            env=self.environment(environment),
            check=False,
        )
        self._check_faultless(done.stderr)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def _check_faultless(self, stderr: str) -> None:
        """Check that no bug showed: neither as a traceback nor as a report of one."""
        assert "Traceback" not in stderr, stderr
        report = self.folder / "home" / "fault.txt"
        assert not report.exists(), report.read_text()

    def begin(self, *arguments: object) -> subprocess.Popen[str]:
        """Start a command and return it while it runs; its stdout comes as it is written."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        command = self.command(arguments)
        return subprocess.Popen(command, text=True, env=self.environment(), **streams)

    def join(
        self,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        """Start ``join`` and return at once."""
        assert self.joined is None
        self._starts += 1
        with (
            self.log("stdout").open("wb") as stdout,
            self.log("stderr").open("wb") as stderr,
        ):
            self.joined = subprocess.Popen(
                self.command(["join", *arguments]),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=self.environment(environment),
                start_new_session=True,  # Ctrl-C in the terminal of the tests is not for the hosts
            )

    def log(self, stream: str) -> Path:
        """Where the stream of the last ``join`` goes."""
        return self.folder / f"join-{self._starts}.{stream}"

    def said(self) -> str:
        """Return all that the last ``join`` has printed so far."""
        return "".join(
            self.log(stream).read_text(errors="replace") for stream in ("stdout", "stderr")
        )

    def leave(self, number: int = signal.SIGTERM) -> Outcome:
        """Send the signal and wait for the end."""
        assert self.joined is not None
        self.joined.send_signal(number)
        return self.ended(LEAVE_WITHIN_S)

    def ended(self, within_s: float) -> Outcome:
        """Wait until ``join`` has ended by itself."""
        assert self.joined is not None
        try:
            code = self.joined.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"join does not end; it said:\n{self.said()}") from None
        self.joined = None
        stdout, stderr = (self.log(stream).read_text() for stream in ("stdout", "stderr"))
        self._check_faultless(stderr)
        return Outcome(code, stdout, stderr)

    def kill(self) -> None:
        """End ``join`` at once, if it runs, and lift the memory limit."""
        if self.joined is not None:
            self.joined.kill()
            self.joined.wait()
            self.joined = None
        if self.memory is not None:
            self.memory.close()

    def kills_for_memory(self) -> int:
        """Return how many processes of the host the kernel has ended for memory."""
        assert self.memory is not None
        return self.memory.kills

    def memory_bytes(self) -> dict[str, int]:
        """Return the memory of the running ``join``: VmHWM (peak), VmRSS, RssAnon, RssFile."""
        assert self.joined is not None
        lines = Path(f"/proc/{self.joined.pid}/status").read_text().splitlines()
        fields = [line.split() for line in lines if line.startswith(("VmHWM", "VmRSS", "Rss"))]
        return {name.rstrip(":"): int(kibibytes) * 1024 for name, kibibytes, _ in fields}


class Mesh:
    """Hosts on one network that belong together; a context that ends all of it."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.hosts: list[Host] = []

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
        self.network.close()

    def host(self, memory_bytes: int | None = None) -> Host:
        """Return a new host that has not joined."""
        memory = None if memory_bytes is None else MemoryGroup(memory_bytes)
        host = Host(self.network.add_host(), self.folder / f"host{len(self.hosts) + 1}", memory)
        self.hosts.append(host)
        return host

    def at(self, host: Host) -> list[str]:
        """Return the options that place a ``join`` where multicast does not do it."""
        if self.network.discovers:
            return []
        own = ["--listen", host.place.address, "--port", str(host.place.port), "--no-mdns"]
        return own + ([] if host is self.hosts[0] else self.towards())

    def of(self, host: Host) -> list[str]:
        """Return the option with which a guest asks this very member."""
        port = DEFAULT_PORT if self.network.discovers else host.place.port
        return ["--peer", f"{host.place.address}:{port}"]

    def towards(self) -> list[str]:
        """Return the options with which a guest finds the mesh where multicast does not do it."""
        first = self.hosts[0].place
        return [] if self.network.discovers else ["--peer", f"{first.address}:{first.port}"]

    def join(self, *arguments: object, memory_bytes: int | None = None) -> Host:
        """Return a new host on which ``join`` has been started."""
        host = self.host(memory_bytes)
        host.join(*self.at(host), *arguments)
        return host

    def ask(self, host: Host, prompt: str, *options: object, stdin: str = "") -> Outcome:
        """Ask on a host, be it a member or a guest."""
        return host.run("ask", *self.towards(), *options, prompt, stdin=stdin)

    def resume(self, host: Host, session: str) -> Any:
        """Resume the last answer of a session on a host; return the whole of it."""
        return host.run("ask", *self.towards(), "--resume", session, "--json").json

    def status(self, host: Host) -> Outcome:
        """Run ``status --json`` on a host."""
        return host.run("status", "--json", *self.towards())

    def wait(
        self, host: Host, holds: Callable[[Status], bool], within_s: float = READY_WITHIN_S
    ) -> Status:
        """Poll the status until the condition holds; say all there is to say when it never does."""
        deadline = time.monotonic() + within_s
        while True:
            last = self.status(host)
            if last.code == 0 and holds(last.json):
                return last.json  # type: ignore[no-any-return]
            dead = [member for member in self.hosts if member.joined and member.joined.poll()]
            if dead or time.monotonic() > deadline:
                raise AssertionError(
                    f"{'a join died' if dead else 'not in time'}\n{self.story(last)}"
                )
            time.sleep(0.5)

    def wait_ready(self, host: Host, nodes: int) -> Status:
        """Wait until the mesh is ready with this many nodes and each of them holds layers."""

        def holds(status: Status) -> bool:
            here = [node for node in status["nodes"] if node["state"] == "alive"]
            working = [node for node in here if node["layers"][0] < node["layers"][1]]
            return status["ready"] and len(working) == len(here) == nodes

        return self.wait(host, holds)

    def story(self, last: Outcome) -> str:
        """Return what a person needs to understand a failure."""
        logs = [f"--- {host.folder.name} said\n{host.said()}" for host in self.hosts if host.joined]
        return "\n".join([f"--- the last status: {last}", *logs])
