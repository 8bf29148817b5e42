"""Several datagrams in one call of the kernel: Linux's UDP segmentation offload (GSO and GRO).

A send gives the kernel a run of datagrams of one length, of which the last may be shorter; a
receive gives back what it has put together again. Old kernels, some of them on phones, have
neither, and some drivers accept the option and then refuse to send: both are found out by trying.
"""

from __future__ import annotations

import contextlib
import errno
import struct
import sys
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from edgellama.values import Address

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_LENGTH: Final = struct.Struct("=H")
_GRO_LENGTH: Final = struct.Struct("=i")
CONTROL_BYTES: Final = 24
"""Room for one control message of an integer: header and padding included, as CMSG_SPACE says."""

SEGMENTS_MAX: Final = 16
"""Datagrams in one send: they leave back to back, and a longer burst would be unpaced."""

JOINED_BYTES_MAX: Final = 65_535
"""What a receive may give in one piece."""

NOT_SEGMENTED: Final = {errno.EIO, errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP}
"""How a kernel or a driver says that it does not segment."""


def can_segment(udp_socket: socket.socket) -> bool:
    """Return whether the kernel takes runs of datagrams on this socket."""
    return _accepts(udp_socket, _UDP_SEGMENT, 0)


def can_join(udp_socket: socket.socket) -> bool:
    """Let the kernel give runs of datagrams in one piece; return whether it will."""
    return _accepts(udp_socket, _UDP_GRO, 1)


def _accepts(udp_socket: socket.socket, option: int, value: int) -> bool:
    if not sys.platform.startswith(("linux", "android")) or not hasattr(udp_socket, "sendmsg"):
        return False
    with contextlib.suppress(OSError):
        udp_socket.setsockopt(_SOL_UDP, option, value)
        return True
    return False


def run_length(datagrams: Iterable[tuple[bytes, Address]]) -> int:
    """Return how many of the datagrams, from the first on, can go out in one send."""
    count, size, address = 0, 0, None
    for data, to in islice(datagrams, SEGMENTS_MAX):
        if address is None:
            size, address = len(data), to
        elif len(data) > size or to != address:
            break
        count += 1
        if len(data) < size:
            break
    return count


def send_run(udp_socket: socket.socket, run: Sequence[bytes], address: Address) -> None:
    """Send datagrams of which only the last may be shorter; raises OSError as sendmsg does."""
    length = [(_SOL_UDP, _UDP_SEGMENT, _LENGTH.pack(len(run[0])))]
    udp_socket.sendmsg(run, length, 0, address)


def joined_length(control: Sequence[tuple[int, int, bytes]]) -> int:
    """Return the length of the datagrams in what was received; 0: it is a single one."""
    for level, kind, value in control:
        if level == _SOL_UDP and kind == _UDP_GRO and len(value) >= _GRO_LENGTH.size:
            return int(_GRO_LENGTH.unpack_from(value)[0])
    return 0
