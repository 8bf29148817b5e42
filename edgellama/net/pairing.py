"""How a device with a join code gets the mesh's key from one that has it; see docs/spec/joining.md.

SPAKE2 turns the short code into a long key without giving anyone who listens, or who asks, more
than one guess a try. The Noise handshake under that key then proves it on both sides.
"""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

import msgpack

from edgellama.errors import MisuseError, TransferError
from edgellama.net.record_stream import RecordStream, RefusedError
from edgellama.values import NODE_ID_DIGITS, Address, NodeId
from edgellama.wire.noise import EPHEMERAL_BYTES, KEY_BYTES, TAG_BYTES, Opening

if TYPE_CHECKING:
    from edgellama.net.invitations import Invitations
    from edgellama.wire.join_code import JoinCode

PAIRING_VERSION: Final = 1
PAIRING_GREETING: Final = b"ELJOINME" + PAIRING_VERSION.to_bytes(2, "little")
PAIRING_TIMEOUT_S: Final = 10.0  # pure-Python SPAKE2 takes a second on a small board

_POINT_BYTES: Final = 33  # the library's side byte and a compressed point of Ed25519
_NOISE_BYTES: Final = EPHEMERAL_BYTES + TAG_BYTES
_MESSAGE_BYTES_MAX: Final = 256
_NAME_CHARACTERS_MAX: Final = 64


class WrongCodeError(MisuseError):
    """The other side does not have the code that was typed."""


class Welcome(NamedTuple):
    """What a device gets that has joined: the key, and a member to dial by UDP."""

    mesh_key: bytes
    node: NodeId
    name: str
    port: int


def ask_to_join(address: Address, code: JoinCode, own_name: str) -> Welcome:
    """Join with a code at a device whose invitation it is.

    Raises WrongCodeError when the device has another code, TransferError when it cannot be
    reached, has no open invitation or breaks the protocol.
    """
    try:
        connection = socket.create_connection(address, timeout=PAIRING_TIMEOUT_S)
    except OSError as error:
        raise TransferError(f"cannot be reached: {error.strerror or error}") from error
    stream = RecordStream(connection, PAIRING_TIMEOUT_S)
    try:
        key, prologue = _agree_as_client(stream, code)
        noise = Opening(key, prologue).ask(secrets.token_bytes, b"")
        stream.send_plain(noise.message)
        finished = noise.finish(_answer_to_code(stream))
        if finished is None:
            raise WrongCodeError("that device has another code")
        stream.encrypt(finished[1])
        stream.send(_packed(own_name))
        return _parse_welcome(stream.receive(_MESSAGE_BYTES_MAX))
    finally:
        stream.close()


def _answer_to_code(stream: RecordStream) -> bytes:
    try:
        return stream.receive_plain(_NOISE_BYTES)
    except TransferError:
        # Whoever has another code closes without a word.
        raise WrongCodeError("that device has another code") from None


def _agree_as_client(stream: RecordStream, code: JoinCode) -> tuple[bytes, bytes]:
    """Return the key of SPAKE2, and all that was said to agree on it."""
    from spake2 import SPAKE2_A

    side = SPAKE2_A(code.password)
    said = PAIRING_GREETING + bytes([code.slot]) + side.start()
    stream.send_plain(said)
    answer = stream.receive_plain(_POINT_BYTES)
    return _finished(side, answer), said + answer


def admit_device(stream: RecordStream, invitations: Invitations, welcome: Welcome) -> str:
    """Take a device in that has the open code, after its PAIRING_GREETING; return its name.

    Raises RefusedError or TransferError, and then nothing was given away but one guess.
    """
    from spake2 import SPAKE2_B

    asked = stream.receive_plain(1 + _POINT_BYTES)
    code = invitations.begin(asked[0])
    if code is None:
        raise RefusedError("asks for an invitation that is not open")
    try:
        side = SPAKE2_B(code.password)
        answer: bytes = side.start()
        key = _finished(side, asked[1:])
        stream.send_plain(answer)
        prologue = PAIRING_GREETING + asked + answer
        question = Opening(key, prologue).hear(stream.receive_plain(_NOISE_BYTES))
        answered = question and question.answer(secrets.token_bytes(EPHEMERAL_BYTES), b"")
        if answered is None:
            raise RefusedError("has another code")
    except TransferError:
        invitations.fail(code)
        raise
    if not invitations.accept(code):
        raise RefusedError("came second with a code for one device")
    message, keys = answered
    stream.send_plain(message)
    stream.encrypt(keys)
    name = _unpacked(stream.receive(_MESSAGE_BYTES_MAX), 1)[0]
    stream.send(_packed(*welcome))
    return _checked_name(name)


def _finished(side: object, theirs: bytes) -> bytes:
    """Return the key of SPAKE2; RefusedError for what is no point of the other side's."""
    try:
        key: bytes = side.finish(theirs)  # type: ignore[attr-defined]
    except Exception as error:  # the library raises whatever its checks of a point happen to raise
        raise RefusedError("sent what is no part of a key agreement") from error
    assert len(key) == KEY_BYTES
    return key


def _packed(*fields: object) -> bytes:
    packed: bytes = msgpack.packb(list(fields))
    return packed


def _unpacked(data: bytes, count: int) -> list[object]:
    """Return the first fields of a list; RefusedError when it is none."""
    try:
        fields = msgpack.unpackb(
            data, raw=False, max_array_len=16, max_map_len=0, max_ext_len=0, strict_map_key=True
        )
    except ValueError as error:
        raise RefusedError("sent a malformed message") from error
    if not isinstance(fields, list) or len(fields) < count:
        raise RefusedError("sent a malformed message")
    return fields


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or len(name) > _NAME_CHARACTERS_MAX or not name.isprintable():
        raise RefusedError("sent a name that is none")
    return name


def _parse_welcome(data: bytes) -> Welcome:
    key, node, name, port, *_ = _unpacked(data, len(Welcome._fields))
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise RefusedError("sent a key that is none")
    if not isinstance(node, str) or len(node) != NODE_ID_DIGITS:
        raise RefusedError("sent an identity that is none")
    if type(port) is not int or not 1 <= port <= 65535:
        raise RefusedError("sent a port that is none")
    return Welcome(key, node, _checked_name(name), port)
