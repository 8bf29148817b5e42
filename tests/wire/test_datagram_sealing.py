"""A tag opens for its own mesh, direction and handshake alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.wire.sealing import MeshKeys

HEADER = bytes(range(16))


def both_sides(mesh_key: bytes = b"secret", initiator: bytes = b"i", responder: bytes = b"r"):
    keys = MeshKeys(mesh_key)
    return (
        keys.connection(initiator, responder, initiated=True),
        keys.connection(initiator, responder, initiated=False),
    )


@given(frames=st.binary(min_size=1, max_size=1168), bit=st.integers(0))
@settings(deadline=None, max_examples=100)
def test_a_datagram_opens_at_the_other_side_and_not_with_any_bit_turned(
    frames: bytes, bit: int
) -> None:
    initiator, responder = both_sides()
    datagram = initiator.seal(HEADER, frames)
    assert len(datagram) == 16 + len(frames) + 16
    assert datagram[:16] == HEADER
    assert responder.open(datagram) == frames
    damaged = bytearray(datagram)
    damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    assert responder.open(bytes(damaged)) is None
    assert responder.open(datagram[:-1]) is None


def test_each_direction_mesh_and_handshake_has_keys_of_its_own() -> None:
    initiator, responder = both_sides()
    datagram = initiator.seal(HEADER, b"frames")
    assert initiator.open(datagram) is None, "a datagram reflected to its sender"
    for other in (
        both_sides(mesh_key=b"other")[1],
        both_sides(mesh_key=b"")[1],
        both_sides(initiator=b"I")[1],
        both_sides(responder=b"R")[1],
        MeshKeys(b"secret").initiation(),
        MeshKeys(b"secret").response(b"i"),
    ):
        assert other.open(datagram) is None
    assert responder.open(datagram) == b"frames"


def test_the_handshake_seals_are_one_for_a_mesh_and_one_for_an_initiation() -> None:
    here, there = MeshKeys(b"k" * 1000), MeshKeys(b"k" * 1000)
    assert there.initiation().open(here.initiation().seal(HEADER, b"hello")) == b"hello"
    response = here.response(b"mine").seal(HEADER, b"hello")
    assert there.response(b"mine").open(response) == b"hello"
    assert there.response(b"another").open(response) is None
