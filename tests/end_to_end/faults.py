"""What happens to devices: they die, leave, are cut off or suspended; and how they come back."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final, Protocol

from network import Bridge
from timed_asking import TimedAsking

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hosts import Host, Mesh, Status

HOME, MIDDLE, LAST, GATEWAY = ROLES = ("home", "middle", "last", "gateway")
STAGES: Final = 4
OFFERS: Final = ("5M", "600M", "500M", "450M", "400M")
"""What five devices offer: the first, which is to have the file, holds no layer; two others do."""


class Fault(Protocol):
    """Something that happens to one device."""

    def strike(self, devices: Devices, host: Host) -> None:
        """Let it happen."""

    def undo(self, devices: Devices, host: Host) -> None:
        """Let the device come back."""


class Devices:
    """A mesh of which each device knows how to begin again; ``offers`` are its ``join`` options."""

    def __init__(self, mesh: Mesh, offers: Sequence[Sequence[object]]) -> None:
        self.mesh = mesh
        self._options: dict[Host, list[object]] = {}
        for number, offer in enumerate(offers, start=1):
            host = mesh.host()
            self._options[host] = ["--name", f"d{number}", *offer]
        self.guest = mesh.host()
        for host in self.members:
            self.start(host)

    @property
    def members(self) -> list[Host]:
        """The devices that belong to the mesh, running or not."""
        return list(self._options)

    def name(self, host: Host) -> str:
        """Return what the others call a device."""
        return str(self._options[host][1])

    def start(self, host: Host) -> None:
        """Let a device join, as it did before."""
        host.join(*self.mesh.at(host), *self._options[host])

    def ready(self, holding: int) -> Status:
        """Wait until all devices that run are there and so many of them hold layers."""
        running = [host for host in self.members if host.joined]

        def holds(status: Status) -> bool:
            alive = [node for node in status["nodes"] if node["state"] == "alive"]
            held = [node for node in alive if node["layers"][0] < node["layers"][1]]
            return bool(status["ready"]) and (len(alive), len(held)) == (len(running), holding)

        return self.mesh.wait(self.guest, holds)

    def ring(self, status: Status) -> list[Host]:
        """Return the devices that hold layers, home first."""
        nodes = [node for node in status["nodes"] if node["layers"][0] < node["layers"][1]]
        order = sorted(nodes, key=lambda node: (not node["home"], node["layers"]))
        by_name: Mapping[str, Host] = {self.name(host): host for host in self.members}
        return [by_name[node["name"]] for node in order]

    def ask(self, gateway: Host, prompt: str, *options: object) -> TimedAsking:
        """Begin to ask a device as a guest."""
        return TimedAsking(self.guest, *self.mesh.of(gateway), *options, prompt)


def parts(ring: Sequence[Host], role: str) -> tuple[Host, Host]:
    """Return the device of a role in a ring of four, and the one that is to be asked.

    The gateway is a stage as well; where it is not what is struck, it is another one than that.
    """
    home, middle, other, last = ring
    struck = {HOME: home, MIDDLE: middle, LAST: last, GATEWAY: other}[role]
    return struck, other


class Kill:
    """The battery falls out."""

    def strike(self, devices: Devices, host: Host) -> None:
        """End the process at once."""
        host.kill()

    def undo(self, devices: Devices, host: Host) -> None:
        """Join again, with what is on the disk."""
        devices.start(host)


class Leave:
    """The person who has it ends the program; it hands over first."""

    def strike(self, devices: Devices, host: Host) -> None:
        """Ask it to end, and wait until it has."""
        outcome = host.leave()
        assert outcome.code == 0, outcome
        assert "leaving at once" not in outcome.stdout, outcome

    def undo(self, devices: Devices, host: Host) -> None:
        """Join again, with what is on the disk."""
        devices.start(host)


class Cut:
    """The device is out of reach, and nobody is told."""

    def strike(self, devices: Devices, host: Host) -> None:
        """Drop all that comes and goes."""
        assert isinstance(devices.mesh.network, Bridge)
        devices.mesh.network.cut(host.place)

    def undo(self, devices: Devices, host: Host) -> None:
        """Let all pass again."""
        assert isinstance(devices.mesh.network, Bridge)
        devices.mesh.network.mend(host.place)


class Suspend:
    """The system puts the process to sleep."""

    def strike(self, devices: Devices, host: Host) -> None:
        """Stop it where it stands."""
        assert host.joined is not None
        host.joined.send_signal(signal.SIGSTOP)

    def undo(self, devices: Devices, host: Host) -> None:
        """Let it go on as if nothing had happened."""
        assert host.joined is not None
        host.joined.send_signal(signal.SIGCONT)


FAULTS: Final[Mapping[str, Fault]] = {
    "kill": Kill(),
    "cut": Cut(),
    "suspend": Suspend(),
    "leave": Leave(),
}
