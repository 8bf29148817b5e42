"""The TCP sockets of a node's links, moved by the link thread beside its datagrams.

Nothing is buffered here but one record for each socket: what the kernel does not take waits in the
link, where a small message still overtakes a large one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
from typing import TYPE_CHECKING, Final

from edgellama.link.streams import CloseStream
from edgellama.net.tcp_options import tune_link

if TYPE_CHECKING:
    from edgellama.link.streams import Streams
    from edgellama.values import Address

READ_BYTES: Final = 64 << 10  # of a socket before the others and the layers above have their turn
_IN_PROGRESS: Final = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN}
_NOT_NOW: Final = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR}


class StreamSockets:
    """Carries out what ``Streams`` wishes; belongs to the link thread."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._sockets: dict[int, socket.socket] = {}
        self._unsent: dict[int, bytes] = {}  # the rest of a record that the kernel did not take
        self._connecting: set[int] = set()
        self._selector: selectors.BaseSelector | None = None

    def attach(self, selector: selectors.BaseSelector) -> None:
        """Let the sockets wake the thread that waits on this selector."""
        self._selector = selector

    def accept(self, connection: socket.socket, now: float) -> None:
        """Take a connection over whose greeting has been read."""
        try:
            host = connection.getpeername()[0]
        except OSError:
            connection.close()
            return
        stream = self._streams.accept(host, now)
        if stream is None:
            connection.close()
            return
        connection.setblocking(False)
        tune_link(connection)
        self._add(stream, connection, selectors.EVENT_READ)

    def close(self) -> None:
        """Close every socket."""
        for stream in list(self._sockets):
            self._close(stream)

    def ready(self, stream: int, now: float) -> None:
        """Read, or finish to connect, a socket that the selector has named."""
        connection = self._sockets.get(stream)
        if connection is None:
            return
        if stream in self._connecting:
            self._finish_connecting(stream, connection, now)
            return
        try:
            data = connection.recv(READ_BYTES)
        except OSError as error:
            if error.errno not in _NOT_NOW:
                self._break(stream, error.strerror or str(error), now)
            return
        if data:
            self._streams.receive(stream, data, now)
        else:
            self._break(stream, "it was closed", now)

    def pump(self, now: float) -> bool:
        """Do what is wished, and write what the sockets take; return whether that was no news."""
        self._do_wishes(now)
        for stream in {*self._unsent, *self._streams.sending()}:
            if stream in self._sockets and stream not in self._connecting:
                self._write(stream, now)
        self._do_wishes(now)
        return not self._streams.has_events

    def _do_wishes(self, now: float) -> None:
        while (wish := self._streams.next_wish()) is not None:
            if isinstance(wish, CloseStream):
                self._close(wish.stream)
            else:
                self._open(wish.stream, wish.address, now)

    def _open(self, stream: int, address: Address, now: float) -> None:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            tune_link(connection)
            code = connection.connect_ex(address)
        except (OSError, OverflowError) as error:  # a port that no socket has
            connection.close()
            self._streams.broken(stream, str(error), now)
            return
        if code not in _IN_PROGRESS and code != 0:
            connection.close()
            self._streams.broken(stream, _words(code), now)
            return
        self._connecting.add(stream)
        self._add(stream, connection, selectors.EVENT_WRITE)

    def _finish_connecting(self, stream: int, connection: socket.socket, now: float) -> None:
        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._break(stream, _words(code), now)
            return
        self._connecting.discard(stream)
        self._watch(stream, selectors.EVENT_READ)
        self._streams.opened(stream, now)

    def _write(self, stream: int, now: float) -> None:
        """Write until the socket is full or there is nothing left; then watch it accordingly."""
        connection = self._sockets[stream]
        while True:
            data = self._unsent.pop(stream, b"") or self._streams.next_data(stream)
            if not data:
                self._watch(stream, selectors.EVENT_READ)
                return
            try:
                sent = connection.send(data)
            except OSError as error:
                if error.errno not in _NOT_NOW:
                    self._break(stream, error.strerror or str(error), now)
                    return
                sent = 0
            if sent < len(data):
                self._unsent[stream] = data[sent:]
                self._watch(stream, selectors.EVENT_READ | selectors.EVENT_WRITE)
                return

    def _add(self, stream: int, connection: socket.socket, events: int) -> None:
        assert self._selector is not None
        self._sockets[stream] = connection
        self._selector.register(connection, events, stream)

    def _watch(self, stream: int, events: int) -> None:
        assert self._selector is not None
        if self._selector.get_key(self._sockets[stream]).events != events:
            self._selector.modify(self._sockets[stream], events, stream)

    def _break(self, stream: int, reason: str, now: float) -> None:
        self._streams.broken(stream, reason, now)
        self._close(stream)

    def _close(self, stream: int) -> None:
        connection = self._sockets.pop(stream, None)
        self._unsent.pop(stream, None)
        self._connecting.discard(stream)
        if connection is not None:
            assert self._selector is not None
            with contextlib.suppress(KeyError, ValueError):  # the selector was closed before
                self._selector.unregister(connection)
            connection.close()


def _words(code: int) -> str:
    return os.strerror(code).lower()
