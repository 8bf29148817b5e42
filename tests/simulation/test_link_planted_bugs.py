"""The simulation can fail: each bug planted in the production code is found within a few seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as CipherContext
from cryptography.hazmat.primitives.ciphers import algorithms

from edgellama.link.acknowledgements import ReceivedPackets
from edgellama.link.connection import Connection
from edgellama.link.outbox import Outbox, Piece
from edgellama.link.ranges import Ranges
from edgellama.link.reassembly import Fate, Reassembly
from edgellama.link.recovery import LossRecovery, SentPacket
from edgellama.link.replay_window import ReplayWindow
from edgellama.link.sending import Sending
from edgellama.testing.link_scenario import ScenarioError, run_link_scenario
from edgellama.wire.sealing import Seal

if TYPE_CHECKING:
    from edgellama.wire.frames import Acknowledgement, Fragment, Parity
    from edgellama.wire.noise import TransportKeys

SEEDS = 20

KEYS: dict[int, tuple[Seal, bytes]] = {}

Plant = Callable[[pytest.MonkeyPatch], None]


def messages_are_not_remembered(patch: pytest.MonkeyPatch) -> None:
    class Forgetful(Ranges):
        def __contains__(self, number: int) -> bool:
            return False

    def forget(self: Reassembly) -> None:
        self._incomplete, self._complete = {}, Forgetful()

    patch.setattr(Reassembly, "__init__", forget)


def a_lost_fragment_is_not_sent_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outbox, "lost", lambda self, piece, packet_number: False)


def the_probe_timer_never_runs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LossRecovery, "probe_timer", lambda self: None)


def ranges_reach_one_packet_too_low(patch: pytest.MonkeyPatch) -> None:
    right = LossRecovery.on_acknowledged

    def wrong(
        self: LossRecovery, frame: Acknowledgement, now: float
    ) -> list[tuple[int, SentPacket]]:
        lower = tuple((max(0, low - 1), high) for low, high in frame.ranges)
        return right(self, frame._replace(ranges=lower), now)

    patch.setattr(LossRecovery, "on_acknowledged", wrong)


def lost_packets_stay_in_flight(patch: pytest.MonkeyPatch) -> None:
    right = LossRecovery.lost

    def wrong(self: LossRecovery, now: float) -> list[tuple[int, SentPacket]]:
        given_up = right(self, now)
        self.in_flight = dict(given_up) | self.in_flight
        return given_up

    patch.setattr(LossRecovery, "lost", wrong)


def the_tag_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    right = Seal.__init__

    def keep(self: Seal, keys: TransportKeys) -> None:
        right(self, keys)
        KEYS[id(self)] = (self, keys.receiving)

    def wrong(self: Seal, datagram: bytes) -> bytes:
        # RFC 8439 section 2.8: the cipher's block 0 keys the tag, the text begins with block 1.
        counter = (1).to_bytes(4, "little") + bytes(4) + datagram[15:7:-1]
        algorithm = algorithms.ChaCha20(KEYS[id(self)][1], counter)
        return CipherContext(algorithm, mode=None).decryptor().update(datagram[16:-16])

    patch.setattr(Seal, "__init__", keep)
    patch.setattr(Seal, "open", wrong)


def a_packet_number_is_used_twice(patch: pytest.MonkeyPatch) -> None:
    right = Sending.end_burst

    def wrong(self: Sending) -> None:
        right(self)
        if self.next_packet_number % 50 == 20:
            self.next_packet_number -= 1

    patch.setattr(Sending, "end_burst", wrong)


def a_nonce_is_used_for_two_texts(patch: pytest.MonkeyPatch) -> None:
    """Both arrive, and nobody who takes part notices: only who looks at the wire can."""
    right = Seal.seal

    def wrong(self: Seal, header: bytes, frames: bytes) -> bytes:
        number = int.from_bytes(header[8:], "big")
        return right(self, header[:8] + (number & ~64).to_bytes(8, "big"), frames)

    patch.setattr(Seal, "seal", wrong)


def old_packets_are_taken_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ReplayWindow, "is_fresh", lambda self, number: True)
    patch.setattr(ReceivedPackets, "seen", lambda self, number: False)


def new_keys_count_packets_from_0(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgellama.link.connection.KEYS_PACKETS_MAX", 100)
    right = Connection.renew

    def wrong(self: Connection, seal: Seal, peer_index: int, now: float) -> None:
        right(self, seal, peer_index, now)
        self.sending.next_packet_number = 0

    patch.setattr(Connection, "renew", wrong)


def fragments_are_put_where_they_come(patch: pytest.MonkeyPatch) -> None:
    right = Reassembly.accept

    def wrong(self: Reassembly, fragment: Fragment) -> bytes | Fate:
        incoming = self._incomplete.get(fragment.message_id)
        if incoming is not None and incoming.parts[fragment.fragment_index] is None:
            fragment = fragment._replace(fragment_index=incoming.parts.index(None))
        return right(self, fragment)

    patch.setattr(Reassembly, "accept", wrong)


def an_acknowledged_fragment_counts_twice(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Outbox, piece: Piece) -> None:
        piece.message.unacknowledged -= 1
        if not piece.message.unacknowledged:
            self.unfinished -= 1
            self._under_way.pop(piece.message.message_id, None)

    patch.setattr(Outbox, "arrived", wrong)


def refused_packets_are_acknowledged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("edgellama.link.reassembly.STARTED_MESSAGES_MAX", 2)
    right = Connection._accept

    def wrong(self: Connection, frame: Fragment | Parity, messages: list[bytes]) -> bool:
        right(self, frame, messages)
        return True

    patch.setattr(Connection, "_accept", wrong)


BUGS: list[Plant] = [
    messages_are_not_remembered,
    a_lost_fragment_is_not_sent_again,
    the_probe_timer_never_runs,
    ranges_reach_one_packet_too_low,
    lost_packets_stay_in_flight,
    the_tag_is_not_checked,
    a_packet_number_is_used_twice,
    a_nonce_is_used_for_two_texts,
    old_packets_are_taken_again,
    new_keys_count_packets_from_0,
    fragments_are_put_where_they_come,
    an_acknowledged_fragment_counts_twice,
    refused_packets_are_acknowledged,
]


def run_all_seeds() -> None:
    for seed in range(SEEDS):
        run_link_scenario(seed)


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_the_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(ScenarioError, match="seed"):
        run_all_seeds()
