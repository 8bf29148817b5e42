"""Where weights can be had, and under which conditions: what every fetch is given."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from edgellama.net.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellama.values import Address


class WeightSource(NamedTuple):
    """A weight server. ``original``: it has the model's file, so all others got theirs from it.

    ``life`` tells it from a later process of the same device, as far as that is known.
    """

    address: Address
    name: str = ""
    original: bool = False
    life: str = ""

    @property
    def node(self) -> str:
        """The node's id, empty where it is not known."""
        return self.life.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.name} ({self.address})" if self.name else str(self.address)


def _silent(text: str) -> None:
    """Tell nobody."""


@dataclass
class Supply:
    """The sources of one device, and how it deals with them.

    ``sources`` is asked again while a fetch runs, from its thread: devices come and go.
    ``distrusted`` outlives a fetch: a source that lied is not asked again while it lives.
    """

    sources: Callable[[], Sequence[WeightSource]]
    mesh_key: bytes
    cancelled: threading.Event = field(default_factory=threading.Event)
    tell: Callable[[str], None] = _silent
    distrusted: set[WeightSource] = field(default_factory=set)
    throttle: Throttle = field(default_factory=Throttle)

    def trusted(self) -> list[WeightSource]:
        """Return the sources that may be asked, each once."""
        return [each for each in dict.fromkeys(self.sources()) if each not in self.distrusted]

    def distrust(self, source: WeightSource, fault: str) -> None:
        """Ask this source for nothing more, and say so."""
        if source not in self.distrusted:
            self.distrusted.add(source)
            self.tell(f"{source} {fault}: it is asked for no more weights")
