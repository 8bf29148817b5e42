"""Hostile bytes, with a valid tag too, raise nothing and disturb no one else."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.link.endpoint import Connected, Endpoint, Identity, MessageReceived, Priority
from edgellama.values import Address
from edgellama.wire.datagram import FRAMES_BYTES_MAX, DatagramType, pack_header
from edgellama.wire.frames import MESSAGE_BYTES_MAX, pack_acknowledgement, pack_fragment
from edgellama.wire.noise import Opening
from edgellama.wire.sealing import LINK_PROLOGUE, mesh_psk

VICTIM, PEER = "a" * 32, "b" * 32
HERE, THERE = Address("10.0.0.1", 7711), Address("10.0.0.2", 7711)

U16 = st.integers(0, 0xFFFF)
FRAMES = st.one_of(
    st.binary(max_size=60),
    st.builds(
        pack_fragment,
        st.integers(0, 3),
        st.integers(0, 40) | st.integers(0, 2**32 - 1),
        st.integers(0, 5) | U16,
        st.integers(0, 6) | U16,
        st.integers(0, 4000) | st.integers(0, MESSAGE_BYTES_MAX + 5) | st.integers(0, 2**32 - 1),
        st.binary(max_size=30) | st.just(bytes(1155)),
    ),
    st.builds(
        lambda high, length: pack_acknowledgement(0.0, 0, [(high - length, high)]),
        st.integers(0, 10) | st.integers(2**63, 2**64 - 1),
        st.integers(0, 0xFFFF),
    ),
    st.just(b"\x01"),
)
PAYLOADS = st.lists(FRAMES, min_size=1, max_size=4).map(lambda f: b"".join(f)[:FRAMES_BYTES_MAX])


def two_connected() -> tuple[Endpoint, Endpoint]:
    dice = random.Random(5)
    victim = Endpoint(Identity(VICTIM, 1), b"k", 100, dice.randbytes)
    peer = Endpoint(Identity(PEER, 1), b"k", 100, dice.randbytes)
    victim.dial(THERE, 0.0)
    for _ in range(3):
        exchange(victim, peer, 0.0)
    assert isinstance(victim.next_event(), Connected)
    assert isinstance(peer.next_event(), Connected)
    return victim, peer


def exchange(here: Endpoint, there: Endpoint, now: float) -> None:
    for data, _ in here.datagrams_to_send(now):
        there.receive_datagram(data, HERE, now)
    for data, _ in there.datagrams_to_send(now):
        here.receive_datagram(data, THERE, now)


def drain(endpoint: Endpoint, now: float) -> list[object]:
    """Do what a driver does, and return the events."""
    events = []
    while (event := endpoint.next_event()) is not None:
        events.append(event)
    for _ in range(100):
        if not endpoint.datagrams_to_send(now):
            break
    else:
        raise AssertionError("it sends without end")
    timer = endpoint.next_timer()
    if timer is not None and timer <= now:
        endpoint.handle_timer(now)
    return events


@given(
    data=st.lists(
        st.tuples(st.binary(max_size=100) | st.binary(min_size=1190, max_size=1210), st.booleans()),
        max_size=20,
    )
)
@settings(deadline=None, max_examples=100)
def test_bytes_from_anywhere_are_dropped_without_a_trace(data: list[tuple[bytes, bool]]) -> None:
    victim, _ = two_connected()
    victim.dial(Address("10.0.0.9", 1), 1.0)
    victim.datagrams_to_send(1.0)
    before = victim.total_counters()
    for body, from_peer in data:
        for kind in (b"", *(bytes([kind, 2, 0, 0]) for kind in range(6)), b"\x03\x03\0\0"):
            victim.receive_datagram(kind + body, THERE if from_peer else HERE, 1.0)
            assert victim.datagrams_to_send(1.0) == []
            assert victim.next_event() is None
    assert victim.total_counters() == before


@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=12), start=st.integers(0, 2**64 - 200))
@settings(deadline=None, max_examples=80)
def test_a_member_that_sends_nonsense_breaks_nothing(payloads: list[bytes], start: int) -> None:
    victim, peer = two_connected()
    connection = peer._connections[VICTIM]
    for number, payload in enumerate(payloads):
        header = pack_header(DatagramType.DATA, connection.peer_index, start + 13 * number)
        now = 0.01 * number
        victim.receive_datagram(connection._seal.seal(header, payload), THERE, now)
        drain(victim, now)
    while victim.peers():  # and its silence ends as any other
        now = victim.next_timer()
        assert now is not None
        victim.handle_timer(now)
        drain(victim, now)
    assert now < 60.0


@given(body=st.binary(min_size=1, max_size=100), kind=st.sampled_from([1, 2, 3]))
@settings(deadline=None, max_examples=200)
def test_a_member_with_a_nonsense_handshake_breaks_nothing(body: bytes, kind: int) -> None:
    victim, _ = two_connected()
    victim.dial(Address("10.0.0.9", 1), 0.0)
    drain(victim, 0.0)
    opening = Opening(mesh_psk(b"k"), LINK_PROLOGUE)
    (dial,) = victim._dials.values()
    question = opening.hear(dial.initiation(0.0)[16:])
    assert question is not None
    for index in (0, dial.receiver_index):
        header = pack_header(DatagramType(kind), index, 0)
        for padded in (body, body.ljust(FRAMES_BYTES_MAX - 32, b"\1")):
            asked = opening.ask(random.Random(1).randbytes, padded).message
            answered = question.answer(random.Random(2).randbytes(32), padded)
            assert answered is not None
            for message in (asked, answered[0]):
                victim.receive_datagram(header + message, HERE, 0.0)
                drain(victim, 0.0)
    assert PEER in victim.peers()


@given(seed=st.integers(0, 2**32 - 1), flips=st.lists(st.tuples(st.integers(0), st.integers(0, 7))))
@settings(deadline=None, max_examples=50)
def test_a_damaged_datagram_is_as_good_as_lost(seed: int, flips: list[tuple[int, int]]) -> None:
    victim, peer = two_connected()
    message = random.Random(seed).randbytes(3000)
    peer.send(VICTIM, message, Priority.DECODE, 0.1)
    for data, _ in peer.datagrams_to_send(0.1):
        damaged = bytearray(data)
        for position, bit in flips:
            damaged[position % len(data)] ^= 1 << bit
        if damaged != data:
            victim.receive_datagram(bytes(damaged), THERE, 0.1)
            assert victim.next_event() is None
        victim.receive_datagram(memoryview(data), THERE, 0.1)
    assert victim.next_event() == MessageReceived(PEER, message)
