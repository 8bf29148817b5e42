"""A datagram opens for the other side of its own connection alone, and shows nothing else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.wire.datagram import DatagramType, pack_header
from edgellama.wire.noise import TransportKeys
from edgellama.wire.sealing import Seal, mesh_psk

A, B = b"a" * 32, b"b" * 32
HERE, THERE = Seal(TransportKeys(A, B)), Seal(TransportKeys(B, A))


@given(
    frames=st.binary(min_size=1, max_size=1168), number=st.integers(0, 2**64 - 1), bit=st.integers()
)
@settings(deadline=None, max_examples=100)
def test_a_datagram_opens_at_the_other_side_and_not_with_any_bit_turned(
    frames: bytes, number: int, bit: int
) -> None:
    header = pack_header(DatagramType.DATA, 77, number)
    datagram = HERE.seal(header, frames)
    assert len(datagram) == 16 + len(frames) + 16
    assert datagram[:16] == header
    assert THERE.open(datagram) == frames
    assert HERE.open(datagram) is None, "a datagram reflected to its sender"
    damaged = bytearray(datagram)
    damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    assert THERE.open(bytes(damaged)) is None
    assert THERE.open(datagram[:-1]) is None


def test_nothing_of_the_frames_can_be_read_and_equal_ones_look_different() -> None:
    frames = b"a secret that is long enough to be found"
    first, second = (
        HERE.seal(pack_header(DatagramType.DATA, 77, number), frames) for number in (1, 2)
    )
    assert frames[:8] not in first
    assert first[16:] != second[16:]


def test_the_packet_number_is_the_nonce_as_the_specification_of_noise_lays_it_out() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    header = pack_header(DatagramType.DATA, 77, 0x0102030405060708)
    nonce = bytes([0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1])
    assert HERE.seal(header, b"x")[16:] == ChaCha20Poly1305(A).encrypt(nonce, b"x", header)


def test_a_mesh_key_of_any_length_makes_a_key_and_none_is_all_zeros() -> None:
    keys = [mesh_psk(key) for key in (b"", b"k", b"k" * 32, bytes(32), b"k" * 1000)]
    assert keys[0] == bytes(32)
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
