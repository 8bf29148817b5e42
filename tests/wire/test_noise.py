"""Noise NNpsk0 against the public test vector, an independent implementation, and forgeries."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellama.wire.noise import Cipher, Opening

# The vector Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s of the cacophony collection, which the Noise
# project's wiki names as the common one.
PROLOGUE = bytes.fromhex("4a6f686e2047616c74")
PSK = bytes.fromhex("54686973206973206d7920417573747269616e20706572737065637469766521")
INITIATOR = bytes.fromhex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a")
RESPONDER = bytes.fromhex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b")
MESSAGES = """
4c756477696720766f6e204d69736573
ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944/
fda936bec35a8adfdff198386f7d5475880897edaaf7495314c99095a2e4d66a
4d757272617920526f746862617264
95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843/
4cd2a371993ba41ea11448024fca32766b169183c9e691a7a433279da7e729
462e20412e20486179656b
bc44da303ae0beb08075fc4eb4e58235c67c2d1f53a4f2fff0bca7
4361726c204d656e676572
416d1af83e9fa6966ce4e871156b131aa9bd7e9a1d6f8794f4872a
4a65616e2d426170746973746520536179
8a7d81b77bcc6c072f2b807da066efba6b5fab9edf71a7faceb2c8454b0cfef608
457567656e2042f6686d20766f6e2042617765726b
1e2ee010f72894824a25a867664ff298f2548a145dc4e9d27b1cad83f32fa7c54d69dc3279
"""  # each payload, then its ciphertext


def given_bytes(secret: bytes):
    def entropy(count: int) -> bytes:
        assert count == len(secret)
        return secret

    return entropy


def test_the_public_vector_comes_out_to_the_last_byte() -> None:
    lines = [bytes.fromhex(line) for line in MESSAGES.replace("/\n", "").split()]
    vector = list(zip(lines[::2], lines[1::2], strict=True))
    opening = Opening(PSK, PROLOGUE)
    initiator = opening.ask(given_bytes(INITIATOR), vector[0][0])
    assert initiator.message == vector[0][1]
    question = opening.hear(initiator.message)
    assert question is not None
    assert question.payload == vector[0][0]
    answered = question.answer(RESPONDER, vector[1][0])
    assert answered is not None
    answer, theirs = answered
    assert answer == vector[1][1]
    finished = initiator.finish(answer)
    assert finished is not None
    payload, ours = finished
    assert payload == vector[1][0]
    assert (ours.sending, ours.receiving) == (theirs.receiving, theirs.sending)
    for number, (plain, sealed) in enumerate(vector[2:]):
        sender, receiver = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        assert Cipher(sender.sending).seal(number // 2, plain) == sealed
        assert Cipher(receiver.receiving).open(number // 2, sealed) == plain


@pytest.mark.parametrize("independent_asks", [True, False])
@given(
    psk=st.binary(min_size=32, max_size=32),
    prologue=st.binary(max_size=40),
    payloads=st.tuples(st.binary(max_size=1200), st.binary(max_size=200)),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=25)
def test_an_independent_implementation_understands_ours(
    independent_asks: bool,
    psk: bytes,
    prologue: bytes,
    payloads: tuple[bytes, bytes],
    seed: int,
) -> None:
    noise = pytest.importorskip("noise.connection", reason="noiseprotocol is not installed")
    independent = noise.NoiseConnection.from_name(b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s")
    independent.set_psks(psk)
    independent.set_prologue(prologue)
    (independent.set_as_initiator if independent_asks else independent.set_as_responder)()
    independent.start_handshake()
    dice, opening = random.Random(seed), Opening(psk, prologue)
    if independent_asks:
        question = opening.hear(bytes(independent.write_message(payloads[0])))
        assert question is not None
        assert question.payload == payloads[0]
        answered = question.answer(dice.randbytes(32), payloads[1])
        assert answered is not None
        assert independent.read_message(answered[0]) == payloads[1]
        keys = answered[1]
    else:
        initiator = opening.ask(dice.randbytes, payloads[0])
        assert independent.read_message(initiator.message) == payloads[0]
        finished = initiator.finish(bytes(independent.write_message(payloads[1])))
        assert finished is not None
        assert finished[0] == payloads[1]
        keys = finished[1]
    assert independent.handshake_finished
    for number in range(3):
        plain = dice.randbytes(number * 100)
        assert independent.decrypt(Cipher(keys.sending).seal(number, plain)) == plain
        assert Cipher(keys.receiving).open(number, independent.encrypt(plain)) == plain


def test_another_key_or_prologue_hears_nothing() -> None:
    message = Opening(PSK, b"a").ask(given_bytes(INITIATOR), b"payload").message
    assert Opening(PSK, b"a").hear(message) is not None
    assert Opening(PSK, b"b").hear(message) is None
    assert Opening(bytes(32), b"a").hear(message) is None


@given(at=st.integers(0, 2**16), bit=st.integers(0, 7), cut=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_handshake_message_with_one_bit_turned_or_cut_is_no_message(
    at: int, bit: int, cut: bool
) -> None:
    opening = Opening(PSK, PROLOGUE)
    initiator = opening.ask(given_bytes(INITIATOR), b"question")
    question = opening.hear(initiator.message)
    assert question is not None
    answered = question.answer(RESPONDER, b"answer")
    assert answered is not None
    for true, take in ((initiator.message, opening.hear), (answered[0], initiator.finish)):
        false = bytearray(true[: at % len(true)] if cut else true)
        if not cut:
            false[at % len(true)] ^= 1 << bit
        assert take(bytes(false)) is None
    # Forgeries before it spoil nothing.
    assert initiator.finish(answered[0]) is not None


@pytest.mark.parametrize("order", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f"])
def test_a_public_key_of_small_order_is_refused(order: str) -> None:
    opening = Opening(PSK, b"")
    state = opening._state.copy()
    public = bytes.fromhex(order)
    state.mix_ephemeral(public)
    question = opening.hear(public + state.seal(b"x"))
    assert question is not None
    assert question.answer(RESPONDER, b"y") is None
    assert opening.ask(given_bytes(INITIATOR), b"").finish(public + bytes(16)) is None
