"""One TCP connection as a sequence of whole encrypted messages; drawn in docs/spec/weights.md.

A message's length travels in a record of its own, so it is authentic before it is believed; then
follow records of at most RECORD_BYTES_MAX. Every length is bounded before anything is read into
memory, and every wait ends.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from edgellama.errors import TransferError
from edgellama.net.tcp_options import tune
from edgellama.net.throttle import PIECE_BYTES
from edgellama.wire.noise import TAG_BYTES
from edgellama.wire.sealing import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellama.net.throttle import Throttle
    from edgellama.wire.noise import TransportKeys

RECORD_BYTES_MAX: Final = 1 << 16
"""Large enough that a record's price is its bytes', small enough to be checked while more come."""

_LENGTH: Final = struct.Struct("<I")
_POLL_LEAST_S: Final = 0.001


class RefusedError(TransferError):
    """The other side broke the protocol, lied or is of another mesh: asking again is no use."""


class RecordStream:
    """Both directions of one connection; closes ``connection``.

    A handshake comes first, with ``send_plain`` and ``receive_plain``; after ``encrypt`` only
    sealed messages pass. Raises TransferError, in words that can follow the peer's name.
    """

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._connection = connection
        self._sealing: Sequence | None = None
        self._opening: Sequence | None = None
        self.throttle: Throttle | None = None  # of what is sent
        tune(connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def abort(self) -> None:
        """End a ``send`` or ``receive`` that another thread waits in."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self._connection.shutdown(socket.SHUT_RDWR)

    def detach(self) -> socket.socket:
        """Return the connection for another use; nothing else is to be done with this."""
        return socket.socket(fileno=self._connection.detach())

    def encrypt(self, keys: TransportKeys) -> None:
        """Use the keys of the handshake that has just ended, from the next byte on."""
        self._sealing = Sequence(keys.sending)
        self._opening = Sequence(keys.receiving)

    def send_plain(self, data: bytes) -> None:
        """Send a part of the handshake as it is."""
        assert self._sealing is None
        self._send(data)

    def receive_plain(self, count: int) -> bytes:
        """Return the next ``count`` bytes of the handshake."""
        assert self._opening is None
        return bytes(self._receive_exactly(count, time.monotonic() + self.timeout_s))

    def send(self, *parts: bytes) -> None:
        """Send one message made of ``parts``; ends after ``timeout_s``, sent or not."""
        sealing = self._sealing
        assert sealing is not None
        message = memoryview(b"".join(parts))
        records = [sealing.seal(_LENGTH.pack(len(message)))]
        records.extend(
            sealing.seal(message[start : start + RECORD_BYTES_MAX])
            for start in range(0, len(message), RECORD_BYTES_MAX)
        )
        self._send(b"".join(records))

    def receive(self, bytes_max: int) -> bytes:
        """Return the next message, which must be whole within ``timeout_s`` from now."""
        past_s = time.monotonic() + self.timeout_s
        (length,) = _LENGTH.unpack(self._receive_record(_LENGTH.size, past_s))
        if length > bytes_max:
            raise RefusedError(f"sent a message of {length} bytes where {bytes_max} are allowed")
        records = []
        while length:
            records.append(self._receive_record(min(length, RECORD_BYTES_MAX), past_s))
            length -= len(records[-1])
        return b"".join(records)

    def _receive_record(self, count: int, past_s: float) -> bytes:
        opening = self._opening
        assert opening is not None
        opened = opening.open(self._receive_exactly(count + TAG_BYTES, past_s))
        if opened is None:
            raise RefusedError("sent bytes that were damaged or are not its own")
        return opened

    def _send(self, data: bytes) -> None:
        try:
            self._connection.settimeout(self.timeout_s)
            for piece in self._pieces(data):
                self._connection.sendall(piece)
        except OSError as error:
            raise TransferError(self._trouble(error)) from error

    def _pieces(self, data: bytes) -> Iterator[memoryview | bytes]:
        """Give what may be sent, piece by piece when it may."""
        if self.throttle is None or len(data) <= PIECE_BYTES:
            yield data
            return
        view = memoryview(data)
        while view:
            # Where nothing limits it, one call sends all the rest.
            piece = view[:PIECE_BYTES] if self.throttle.is_limited() else view
            self.throttle.passed(len(piece))
            yield piece
            view = view[len(piece) :]

    def _receive_exactly(self, count: int, past_s: float) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        try:
            while view:
                # The whole message has one deadline: a byte now and then does not move it.
                self._connection.settimeout(max(_POLL_LEAST_S, past_s - time.monotonic()))
                received = self._connection.recv_into(view)
                if not received:
                    raise TransferError("closed the connection")
                view = view[received:]
        except OSError as error:
            raise TransferError(self._trouble(error)) from error
        return data

    def _trouble(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            return f"did not answer within {self.timeout_s:g} s"
        return f"broke the connection off: {error.strerror or error}"
