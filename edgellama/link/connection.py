"""One established connection to one peer: messages in, datagrams out, and the other way round.

Sans-IO: time is an argument, nothing here knows a socket. Everything has been authenticated by
the handshake; what a datagram says still takes effect only after its own tag has been verified.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgellama.errors import WireError
from edgellama.link.acknowledgements import ReceivedPackets, acknowledgement_delay
from edgellama.link.reassembly import Fate, Reassembly
from edgellama.link.replay_window import PACKETS, ReplayWindow
from edgellama.link.sending import Sending
from edgellama.values import Address, LinkCounters
from edgellama.wire.datagram import DatagramType, pack_header
from edgellama.wire.frames import (
    Acknowledgement,
    Close,
    CloseCode,
    Fragment,
    Parity,
    Priority,
    pack_close,
    parse_frames,
)

if TYPE_CHECKING:
    from edgellama.link.identity import Identity
    from edgellama.wire.frames import Frame
    from edgellama.wire.sealing import Seal

KEEPALIVE_S = 1.0
"""An idle connection asks for a sign of life this often."""

IDLE_DEATH_S = 8.0
"""Without messages under way, a peer silent for so long is gone."""

GIVE_UP_S = 3.0
GIVE_UP_PROBE_TIMEOUTS = 8
"""With messages under way: the greater of 3 s and 8 probe timeouts of silence, 8 s at most.

Round trips that a stalled radio has stretched would otherwise hide a death for minutes.
"""

KEYS_S = 3600.0
KEYS_PACKETS_MAX = 1 << 32
"""Whichever comes first ends the time of a pair of keys: the initiator asks for new ones."""

KEYS_RETRY_S = 30.0
KEYS_S_MAX = 2 * KEYS_S
"""With keys so old the connection ends: what is recorded stays readable with one key no longer."""

BURST_DATAGRAMS_MAX = 32
"""Datagrams given out in one call, so that a driver turns to reading and to other peers."""

_DATA = int(DatagramType.DATA)

CLOSE_REASONS: dict[int, str] = {
    CloseCode.LEAVING: "it left",
    CloseCode.OVERLOADED: "it had more to send than this device takes",
    CloseCode.UNHEARD: "it no longer hears this device",
    CloseCode.MOVED: "it goes on over another transport",
    CloseCode.REPLACED: "it has met a later start of this device's identity",
}


class Connection:
    """The state of one connection, from the end of its handshake to ``ended``."""

    def __init__(
        self,
        identity: Identity,
        address: Address,
        seal: Seal,
        peer_index: int,
        peer_window_packets: int,
        window_packets: int,
        now: float,
        *,
        initiated: bool,
    ) -> None:
        self.identity = identity
        self.address = address
        self.peer_index = peer_index
        self.initiated = initiated
        self._keyed_at = now
        self._renew_at = now + KEYS_S
        self._renew_above = KEYS_PACKETS_MAX  # packet numbers, which go on under new keys
        self.confirmed_at = math.inf  # when the first packet came
        self.heard_at = now
        self.ended: str | None = None  # the reason, once the connection is over
        self.left = False  # the peer ended it of its own will
        self.timer = now  # when ``handle_timer`` is to be called, as the endpoint last heard
        self.sending = Sending(peer_window_packets, now)
        self._seal = seal
        self._received = ReceivedPackets(window_packets)
        self._acknowledgements: list[tuple[Acknowledgement, float]] = []  # and when they came
        self._replay = ReplayWindow(PACKETS)
        self._reassembly = Reassembly()
        self._waiting_since = now  # when the messages under way ceased to be none
        self._bytes_sent = self._bytes_received = 0
        self._packets_received = 0

    # What the layer above asks for

    def send(self, message: bytes, priority: Priority, now: float) -> None:
        """Queue a message; ends the connection when far too many wait already."""
        outbox = self.sending.outbox
        if not outbox.unfinished:
            self._waiting_since = now
        outbox.push(message, priority)
        if outbox.overfull:
            self.ended = "it takes messages too slowly"

    def ask_for_life(self) -> None:
        """Let a ping go out: the initiator's first packet confirms the connection."""
        self.sending.ping_due = True

    def renew(self, seal: Seal, peer_index: int, now: float) -> None:
        """Send under new keys, with the packet numbers going on: none is ever used twice."""
        self._seal = seal
        self.peer_index = peer_index
        self._keyed_at = now
        self._renew_at = now + KEYS_S
        self._renew_above = self._highest_packet_number + KEYS_PACKETS_MAX

    def take_renewal(self, now: float) -> bool:
        """Return whether it is time to ask for new keys, and put the next time off."""
        old = now >= self._renew_at or self._highest_packet_number >= self._renew_above
        if not self.initiated or not old:
            return False
        self._renew_at = now + KEYS_RETRY_S
        self._renew_above = self._highest_packet_number + KEYS_PACKETS_MAX
        return True

    @property
    def _highest_packet_number(self) -> int:
        return max(self.sending.next_packet_number, self._received.largest)

    @property
    def round_trip_s(self) -> float | None:
        """The smoothed round trip; None before the first measurement."""
        rtt = self.sending.recovery.rtt
        return rtt.smoothed if rtt.measured else None

    @property
    def bytes_per_s(self) -> int:
        """What the way to the peer has carried when it was in full use; 0 before that was seen."""
        return self.sending.rate.bytes_per_s

    @property
    def unfinished(self) -> int:
        """How many messages are not fully acknowledged."""
        return self.sending.outbox.unfinished

    def counters(self) -> LinkCounters:
        """Return what has gone over the connection, in datagrams with header and tag."""
        return LinkCounters(
            self._bytes_sent,
            self._bytes_received,
            self.sending.next_packet_number,
            self._packets_received,
            self.sending.packets_retransmitted,
        )

    # Receiving

    def receive(
        self, datagram: bytes, packet_number: int, seal: Seal, address: Address, now: float
    ) -> list[bytes]:
        """Take a datagram under these keys or older ones; return the messages it completes."""
        received = self._received
        newest = packet_number > received.largest
        if not self._replay.is_fresh(packet_number):
            return []
        if not newest and received.seen(packet_number):
            return []
        opened = seal.open(datagram)
        if opened is None:
            return []
        self._replay.take(packet_number)
        self.heard_at = now
        if now < self.confirmed_at:
            self.confirmed_at = now
        self._bytes_received += len(datagram)
        self._packets_received += 1
        if newest:
            self.address = address  # follow a peer that moved, but no late packet back
        try:
            frames = parse_frames(opened)
        except WireError:
            return []  # never acknowledged: the peer's own fault, and it will give up
        messages: list[bytes] = []
        taken, eliciting = self._take(frames, messages, now)
        if taken:
            delay_s = acknowledgement_delay(self.sending.recovery.rtt.minimum)
            received.record(packet_number, now, eliciting=eliciting, delay_s=delay_s)
            if messages:
                received.acknowledge_at_once()
        return messages

    def _take(self, frames: list[Frame], messages: list[bytes], now: float) -> tuple[bool, bool]:
        """Let frames take effect; return whether to acknowledge them, and whether they ask for it.

        Messages that are now whole are added to ``messages``.
        """
        taken, eliciting = True, False
        for frame in frames:
            if isinstance(frame, Fragment):
                eliciting = True
                taken &= self._accept(frame, messages)
            elif isinstance(frame, Acknowledgement):
                self._acknowledgements.append((frame, now))
            elif isinstance(frame, Parity):
                taken &= self._accept(frame, messages)
            elif isinstance(frame, Close):
                self.ended = CLOSE_REASONS.get(frame.code, "it closed the connection")
                self.left = frame.code == CloseCode.LEAVING
            else:
                eliciting = True
        return taken, eliciting

    def _accept(self, frame: Fragment | Parity, messages: list[bytes]) -> bool:
        """Take a fragment or parity; return False when its packet must not be acknowledged."""
        try:
            if isinstance(frame, Fragment):
                outcome = self._reassembly.accept(frame)
            else:
                outcome = self._reassembly.accept_parity(frame)
        except WireError:
            return False
        if isinstance(outcome, bytes):
            messages.append(outcome)
        return outcome is not Fate.REFUSED

    # Sending

    def datagrams(self, now: float, burst_max: int = BURST_DATAGRAMS_MAX) -> list[bytes]:
        """Return the datagrams to send now, at most a burst; fewer when there are no more."""
        burst: list[bytes] = []
        while len(burst) < burst_max:
            frames = self.sending.next_frames(self._received, now)
            if frames is not None:
                burst.append(self._seal_packet(b"".join(frames)))
            elif not self._take_acknowledgements():
                self.sending.end_burst()
                break
        return burst

    def _take_acknowledgements(self) -> bool:
        """Let the acknowledgements that have come take effect; return whether there were any.

        That waits until what could go out has gone: a reply comes first.
        """
        if not self._acknowledgements:
            return False
        for frame, came_at in self._acknowledgements:
            # What says that packets arrived which were never sent is not believed.
            if frame.ranges[0][1] < self.sending.next_packet_number:
                self.sending.on_acknowledgement(frame, came_at)
        self._acknowledgements.clear()
        return True

    def _seal_packet(self, frames: bytes) -> bytes:
        number = self.sending.next_packet_number
        self.sending.next_packet_number = number + 1
        header = pack_header(_DATA, self.peer_index, number)
        datagram = self._seal.seal(header, frames)
        self._bytes_sent += len(datagram)
        return datagram

    def close_datagram(self, code: CloseCode) -> bytes:
        """Return a datagram that tells the peer that the connection is over."""
        return self._seal_packet(pack_close(code))

    # Time

    def next_timer(self) -> float:
        """Return when ``handle_timer`` or ``datagrams`` has something to do at the latest."""
        timer = min(self.sending.next_timer(), self._deadline(), self._keepalive_at())
        if self.initiated:
            timer = min(timer, self._renew_at)
        acknowledge_at = self._received.timer()
        if acknowledge_at is not None:
            timer = min(timer, acknowledge_at)
        return timer

    def _deadline(self) -> float:
        if not self.sending.outbox.unfinished:
            return self.heard_at + IDLE_DEATH_S
        patience = GIVE_UP_PROBE_TIMEOUTS * self.sending.recovery.rtt.probe_timeout()
        silence = min(max(GIVE_UP_S, patience), IDLE_DEATH_S)
        return max(self.heard_at, self._waiting_since) + silence

    def _keepalive_at(self) -> float:
        sending = self.sending
        if sending.recovery.in_flight or sending.ping_due:
            return self._deadline()  # what is under way asks for life already
        return max(self.heard_at, sending.sent_at) + KEEPALIVE_S

    def handle_timer(self, now: float) -> None:
        """Do what has become due: give up, count losses, probe, ask for a sign of life."""
        self._take_acknowledgements()
        if now - self._keyed_at >= KEYS_S_MAX:
            self.ended = "its keys could not be renewed"
            return
        if self._deadline() <= now:
            silence = now - self.heard_at
            self.ended = f"nothing came from it for {silence:.1f} s"
            return
        self.sending.handle_timer(now)
        if self._keepalive_at() <= now:
            self.sending.ping_due = True
