"""What is asked of the kernel for a TCP socket: all of it wishes, which an older kernel refuses."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Final

UNSENT_BYTES: Final = 32 << 10
"""What a link's socket keeps of bytes not sent: more would only delay small messages."""

RTO_LEAST_US: Final = 10_000
"""Of a link: the usual least retransmission timeout of 200 ms is forty round trips of Wi-Fi."""

# Linux's numbers where Python has no name for them; elsewhere they mean something else.
_NOTSENT_LOWAT: Final = 25
_RTO_MIN_US: Final = 45


def tune(connection: socket.socket) -> None:
    """Let nothing wait for more to come, and lost packets cost little throughput."""
    _wish(connection, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_CONGESTION"):
        # Twenty times the throughput of cubic at 5 % loss, where the kernel has it.
        _wish(connection, socket.TCP_CONGESTION, b"bbr")


def tune_link(connection: socket.socket) -> None:
    """Do the same for a link, whose messages are small and cannot wait."""
    tune(connection)
    if sys.platform in ("linux", "android"):
        _wish(connection, _NOTSENT_LOWAT, UNSENT_BYTES)
        _wish(connection, _RTO_MIN_US, RTO_LEAST_US)


def _wish(connection: socket.socket, option: int, value: int | bytes) -> None:
    with contextlib.suppress(OSError):  # the peer may be gone already
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
