"""Tells a simulated run in lines for a person: what is sent and lost, and what befalls whom.

A datagram is encrypted for its receiver, so it is opened with the receiver's own key. One that the
receiver has no key for, or no more, is told as sealed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.link.handshake import HalfOpen
from edgellama.link.receivers import Keyed
from edgellama.wire.datagram import PROTOCOL_VERSION, DatagramType, parse_header
from edgellama.wire.frames import (
    Acknowledgement,
    Close,
    CloseCode,
    Fragment,
    Frame,
    Parity,
    Priority,
    parse_frames,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellama.testing.network import SimulatedNetwork
    from edgellama.values import Address


class Narrator:
    """Watches a network and its hosts; ``tell`` is given each line.

    ``packets``: also tell of every datagram, not only of what befalls the network.
    """

    def __init__(self, tell: Callable[[str], None], *, packets: bool) -> None:
        self._tell = tell
        self._packets = packets
        self._network: SimulatedNetwork | None = None

    def watch(self, network: SimulatedNetwork) -> None:
        """Begin to tell of a network and of the hosts on it, also in later lives."""
        self._network = network
        network.note = self._note
        if self._packets:
            network.watch = self._sent

    def _line(self, text: str) -> None:
        assert self._network is not None
        self._tell(f"{self._network.now:12.6f} s  {text}")

    def _note(self, text: str) -> None:
        self._line(f"** {text}")

    def _sent(self, data: bytes, source: Address, to: Address, why_dropped: str) -> None:
        fate = f"  -- {why_dropped}" if why_dropped else ""
        self._line(f"{source.host} > {to.host}  {self._described(data, to)}{fate}")

    def _described(self, data: bytes, to: Address) -> str:
        header = parse_header(data)
        if header is None or header.version != PROTOCOL_VERSION:
            return f"{len(data)} bytes that are no datagram"
        try:
            kind = DatagramType(header.kind)
        except ValueError:
            return f"{len(data)} bytes that are no datagram"
        if kind is not DatagramType.DATA:
            cookie = (
                " with a cookie" if kind is DatagramType.INITIATION and header.packet_number else ""
            )
            return f"{kind.name.lower()}{cookie}, {len(data)} bytes"
        number = f"#{header.packet_number}"
        return f"{number} {self._frames(data, header.receiver_index, to)}, {len(data)} bytes"

    def _frames(self, data: bytes, index: int, to: Address) -> str:
        assert self._network is not None
        host = self._network.hosts.get(to)
        receiver = None if host is None else host.endpoint._by_index.get(index)
        opened = receiver.seal.open(data) if isinstance(receiver, Keyed | HalfOpen) else None
        if opened is None:
            return "sealed"
        try:
            frames = parse_frames(opened)
        except WireError as error:
            return f"nonsense ({error})"
        return ", ".join(map(_frame, frames)) or "padding"


def _frame(frame: Frame) -> str:
    """Return a frame in words."""
    match frame:
        case Fragment():
            name = Priority(frame.priority).name.lower()
            part = f"{frame.fragment_index + 1}/{frame.fragment_count}"
            return f"{name} {frame.message_id} part {part} of {frame.message_bytes} bytes"
        case Parity():
            name = Priority(frame.priority).name.lower()
            return f"{name} {frame.message_id} parity of {frame.fragment_count} parts"
        case Acknowledgement():
            ranges = " ".join(f"{low}-{high}" for low, high in frame.ranges)
            return f"acknowledges {ranges}"
        case Close():
            known = frame.code in set(CloseCode)
            return f"close ({CloseCode(frame.code).name.lower() if known else frame.code})"
        case _:
            return "ping"
